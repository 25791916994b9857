//! Shared memory that no descriptor leads to: shared anonymous mappings, and memfds and tmpfs files that are mapped but
//! closed.
//! *Read from:* the memory of a task that has it mapped, device and inode from /proc/PID/smaps.
//! *Made again by:* a memfd of the workshop, filled from the image, mapped by all that had it.
//! *Lost:* the name in /proc/PID/maps becomes that of a memfd, once; what no task has mapped.

use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};
use yendor_image::{Bytes, PAGE_BYTES, PageRun, Reader, ShmId};

use crate::{Cause, Named, Result};

/// A shared object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// By what mappings name it.
    pub id: ShmId,
    /// The name it had.
    pub name: Bytes,
    /// Bytes: up to the end of the furthest mapping, or its own before that.
    pub size: u64,
    /// Its pages, with offsets in the object as addresses.
    pub pages: Vec<PageRun>,
}

/// Makes it again.
///
/// # Errors
/// The kernel's; `Corrupt` when its pages lie outside.
pub fn rebuild(record: &Record, reader: &Reader) -> Result<OwnedFd> {
    let Record { id, name, size, pages } = record;
    let shown = || format!("shared object {id} ({name})");
    // memfd_create wants a C string of at most 249 bytes. What was a memfd already has the word before its name.
    let bare = name.0.strip_prefix(b"/memfd:").unwrap_or(&name.0);
    let plain: String =
        bare.iter().take(200).map(|b| if b.is_ascii_graphic() { char::from(*b) } else { '_' }).collect();
    let fd = rustix::fs::memfd_create(plain.trim_start_matches('/'), rustix::fs::MemfdFlags::CLOEXEC)
        .named("memfd_create", shown)?;
    rustix::fs::ftruncate(&fd, *size).named("ftruncate", || format!("{}, {size}", shown()))?;
    for run in pages {
        reader.check_run(run)?;
        let bytes = run.pages * PAGE_BYTES;
        if run.addr.0.checked_add(bytes).is_none_or(|end| end > *size) {
            return Err(Cause::corrupt(format!("{}: pages beyond its end", shown())));
        }
        let name = yendor_image::pages_name(run.file);
        let (file, _) = reader.open_file(&name)?;
        let (mut from, mut to) = (run.offset, run.addr.0);
        let mut buffer = vec![0u8; 256 * 1024];
        let end = run.offset + bytes;
        while from < end {
            reader.wanted(&name)?;
            let want = buffer.len().min(usize::try_from(end - from).unwrap_or(usize::MAX));
            let n = rustix::io::pread(&file, &mut buffer[..want], from).named("pread64", shown)?;
            let w = rustix::io::pwrite(&fd, &buffer[..n], to).named("pwrite64", shown)?;
            if n == 0 || w != n {
                return Err(Cause::corrupt(format!("{}: the pages file ends early", shown())));
            }
            from += n as u64;
            to += n as u64;
        }
    }
    Ok(fd)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::path::PathBuf;

    use yendor_image::{Addr, Writer};

    use super::*;

    /// An image of a page in `pages-0`, which is removed in the end, and whoever waits for what is in it.
    pub(crate) struct Awaited {
        place: PathBuf,
        pub(crate) reader: Reader,
        pub(crate) front: Option<UnixStream>,
    }

    impl Awaited {
        pub(crate) fn new(name: &str) -> Awaited {
            let place = std::env::temp_dir().join(format!("yendor-test-{name}-{}", std::process::id()));
            let writer = Writer::create(&place).expect("create");
            let mut file = writer.file("pages-0").expect("file");
            file.write_all(&[7; 4096]).expect("write");
            file.finish().expect("finish");
            writer.records(&()).expect("records");
            writer.commit(std::time::SystemTime::now()).expect("commit");
            let mut reader = Reader::open(&*place).expect("open");
            let (front, ours) = UnixStream::pair().expect("a pair");
            reader.read_for(ours.as_fd()).expect("dup");
            Awaited { place, reader, front: Some(front) }
        }

        /// It is done as long as somebody waits, and then no more.
        #[track_caller]
        pub(crate) fn while_awaited(mut self, what: impl Fn(&Reader) -> Result<()>) {
            what(&self.reader).expect("somebody waits for it");
            self.front.take();
            let said = what(&self.reader).expect_err("nobody waits for it").to_string();
            assert!(said.contains("pages-0: read"), "{said}");
        }
    }

    impl Drop for Awaited {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.place);
        }
    }

    /// What is in one file can be in very many objects, and each as long as it likes.
    #[test]
    fn nothing_is_copied_for_nobody() {
        let run = PageRun { addr: Addr(0), pages: 1, file: 0, offset: 0 };
        let record = Record { id: ShmId(0), name: Bytes(b"x".to_vec()), size: PAGE_BYTES, pages: vec![run] };
        Awaited::new("shared").while_awaited(|reader| rebuild(&record, reader).map(drop));
    }
}
