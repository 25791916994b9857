//! An image that shares pages with others becomes one that has its own, and only those that it needs.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use yendor_image::upgrade::Version;
use yendor_image::{
    Compression, Digest, Durable, PAGE_BYTES, PageRun, RECORDS_FILE, Reader, TREE_ENDING, Writer, is_pages_name,
    pages_name,
};
use yendor_kinds::memory::pages::PAGES;
use yendor_sys::SysError;

use crate::error::{At, Error, Result, Step};
use crate::load::Opened;
use crate::sign::Signer;

/// How many bytes of pages are copied at once.
const CHUNK: u64 = 256 * 1024;

/// Writes an image anew at `output`, which must not exist. How many bytes it has, and its name by content.
///
/// # Errors
/// A damaged image; the new one cannot be written, and nothing is left of it.
pub fn flatten(
    image: Opened,
    output: &Path,
    sign: Option<&Signer>,
    compress: Option<Compression>,
) -> Result<(u64, Digest)> {
    let Opened { reader, mut snapshot, signed_by: _ } = image;
    reader.verify_all().at(Step::Load)?;
    let mut writer = Writer::create(output).at(Step::Store)?;
    writer.generation(reader.manifest().generation);
    writer.kind(reader.manifest().kind);
    compress.into_iter().for_each(|how| writer.compress(how));
    let pages = snapshot.page_runs().next().is_some();
    if pages {
        let mut pages = Pages { reader: &reader, files: BTreeMap::new(), done: BTreeMap::new(), offset: 0 };
        let mut out = writer.file(&pages_name(PAGES)).at(Step::Store)?;
        snapshot.page_runs().try_for_each(|run| pages.copy(run, &mut out))?;
        out.finish().at(Step::Store)?;
    }
    // With what they are made of, which the writer says anew.
    let is_pages = |name: &str| is_pages_name(name.strip_suffix(TREE_ENDING).unwrap_or(name));
    let others = reader.manifest().files.iter().filter(|f| f.name != RECORDS_FILE && !is_pages(&f.name));
    for entry in others {
        let (mut from, _) = reader.open_file(&entry.name).at(Step::Load)?;
        let mut to = writer.file(&entry.name).at(Step::Store)?;
        io::copy(&mut from, &mut to).map_err(|e| SysError::io("write", entry.name.clone(), &e)).at(Step::Store)?;
        to.finish().at(Step::Store)?;
    }
    writer.records(&snapshot).at(Step::Store)?;
    // What was copied is what was compared before, unless somebody has changed it meanwhile.
    reader.verify_all().at(Step::Load)?;
    let created = UNIX_EPOCH.checked_add(Duration::from_secs(reader.manifest().created)).unwrap_or(UNIX_EPOCH);
    let signed = writer.durable(created, |manifest| sign.map(|s| s.sign(manifest)).transpose());
    let manifest = signed.and_then(Durable::publish).at(Step::Store)?;
    Ok((manifest.bytes(), manifest.seal(Version::NEWEST).at(Step::Store)?))
}

/// The pages file that is being written.
struct Pages<'r> {
    reader: &'r Reader,
    files: BTreeMap<u16, File>,
    /// Where runs are now that several records have.
    done: BTreeMap<(u16, u64, u64), u64>,
    offset: u64,
}

impl Pages<'_> {
    /// Copies a run, and says so in it.
    fn copy(&mut self, run: &mut PageRun, out: &mut impl Write) -> Result<()> {
        self.reader.check_run(run).at(Step::Load)?;
        let from = *run;
        let bytes = from.pages.saturating_mul(PAGE_BYTES);
        run.file = PAGES;
        if let Some(offset) = self.done.get(&(from.file, from.offset, from.pages)) {
            run.offset = *offset;
            return Ok(());
        }
        let file = match self.files.entry(from.file) {
            std::collections::btree_map::Entry::Occupied(file) => file.into_mut(),
            std::collections::btree_map::Entry::Vacant(place) => {
                place.insert(self.reader.open_file(&pages_name(from.file)).at(Step::Load)?.0)
            }
        };
        let failed =
            |call: &'static str, e: &io::Error| Error::new(Step::Store, SysError::io(call, pages_name(from.file), e));
        let mut buffer = vec![0; usize::try_from(bytes.min(CHUNK)).unwrap_or(0)];
        let mut done = 0;
        while done < bytes {
            let chunk = usize::try_from((bytes - done).min(CHUNK)).unwrap_or(0);
            let chunk = &mut buffer[..chunk];
            file.read_exact_at(chunk, from.offset + done).map_err(|e| failed("pread64", &e))?;
            out.write_all(chunk).map_err(|e| failed("write", &e))?;
            done += chunk.len() as u64;
        }
        run.offset = self.offset;
        self.done.insert((from.file, from.offset, from.pages), self.offset);
        self.offset += bytes;
        Ok(())
    }
}
