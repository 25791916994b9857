//! What is in the compressed files of an image, in files without a name.
//!
//! It is done like decryption ([`super::decrypt`]), by processes that can do nothing else, and of an image that is encrypted too by
//! others than the one that decrypts: that one has secret keys, and what decodes zstd is a library in C, which an image may take
//! over. All that it could do then is to write into what is that image's anyway. See docs/adr/0017.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::pipe::{PipeFlags, pipe_with};
use yendor_image::{Error as Damage, FileEntry, Reader};
use yendor_kinds::{Cause, Named};

use super::decrypt::{Plain, Raised, nameless, seal};
use super::{Front, Loader, memory, start};
use crate::error::{At, Error, Result, Step};

/// Bytes of content from which on several processes are worth their while.
const LARGE: u64 = 16 << 20;
/// Processes at most.
const MOST: u64 = 4;
/// What a process is told: to decode the next file, to look which of its blocks is damaged, or whether all of them are what the table says.
const DECODE: u8 = 1;
const FIND: u8 = 2;
const LOOK: u8 = 3;

/// A file, where its compressed bytes are, and where its content goes.
struct Job<'a> {
    entry: &'a FileEntry,
    packed: File,
    content: File,
}

/// Decodes the compressed files of an image whose signature, if one is asked for, is right already. `plain`: what is in its files
/// if it is encrypted, which was compared with their digests; of others each is compared before it is decoded.
///
/// # Errors
/// A damaged image, and which block of it; too little memory.
pub(super) fn decode(reader: &Reader, plain: Option<Plain>) -> Result<Option<Plain>> {
    let manifest = reader.manifest();
    if manifest.files.iter().all(|entry| entry.compressed.is_none()) {
        return Ok(plain);
    }
    let _limit = Raised::raise();
    let (encrypted, records) = (plain.is_some(), plain.as_ref().and_then(Plain::index));
    let mut decrypted = plain.map(Plain::into_files).unwrap_or_default().into_iter();
    let (mut jobs, mut all) = (Vec::new(), Vec::new());
    for entry in manifest.files.iter().filter(|entry| manifest.is_wrapped(entry)) {
        let packed = match decrypted.next() {
            Some(file) => file,
            None => reader.open_stored(entry).at(Step::Load)?,
        };
        if entry.compressed.is_some() {
            jobs.push(Job { entry, packed, content: nameless().at(Step::Load)? });
            all.push(None);
        } else {
            all.push(Some(packed));
        }
    }
    let bytes = jobs.iter().map(|job| job.entry.content_bytes()).fold(0, u64::saturating_add);
    // Before decryption that was asked for both together; of what is available now that has taken its part.
    if !encrypted && let Err(e) = memory::enough("compressed", bytes) {
        // What only claims to need so much is damaged.
        look(&jobs)?;
        return Err(e);
    }
    let crew = crew(&jobs, bytes)?;
    for job in &jobs {
        // What was encrypted was compared when it was decrypted.
        if !encrypted && let Err(damage) = reader.verify(&job.entry.name) {
            return Err(find(crew, damage));
        }
        crew.iter().for_each(|worker| worker.tell(DECODE));
    }
    for Worker { loader, turn } in crew {
        drop(turn);
        loader.answer::<()>(Front::OWN)?;
    }
    let mut decoded = jobs.into_iter().map(|job| job.content);
    let all: Vec<File> = all.into_iter().filter_map(|file| file.or_else(|| decoded.next())).collect();
    all.iter().try_for_each(seal).at(Step::Load)?;
    Ok(Some(Plain::made(all, records)))
}

/// A process that decodes every so manieth block.
struct Worker {
    loader: Loader,
    turn: OwnedFd,
}

impl Worker {
    fn tell(&self, word: u8) {
        // One that is gone has given up, and says why.
        let _ = rustix::io::retry_on_intr(|| rustix::io::write(&self.turn, &[word]));
    }
}

fn crew(jobs: &[Job<'_>], bytes: u64) -> Result<Vec<Worker>> {
    let processors = std::thread::available_parallelism().map_or(1, |n| u64::try_from(n.get()).unwrap_or(1));
    let many = if bytes < LARGE { 1 } else { processors.min(MOST) };
    (0..many).map(|first| worker(jobs, (first, many))).collect()
}

fn worker(jobs: &[Job<'_>], share: (u64, u64)) -> Result<Worker> {
    let (turn_read, turn) = pipe_with(PipeFlags::CLOEXEC).named("pipe2", || "O_CLOEXEC".into()).at(Step::Load)?;
    let mut keep: Vec<BorrowedFd<'_>> = jobs.iter().flat_map(|job| [job.packed.as_fd(), job.content.as_fd()]).collect();
    keep.push(turn_read.as_fd());
    let loader = start(true, &keep, |_| work(jobs, share, &turn_read))?;
    loader.begin()?;
    Ok(Worker { loader, turn })
}

/// Runs in the process that decodes: each file when it is told that its digest is right.
fn work(jobs: &[Job<'_>], share: (u64, u64), turn: &OwnedFd) -> Result<()> {
    for Job { entry, packed, content } in jobs {
        let mut word = [0];
        match rustix::io::retry_on_intr(|| rustix::io::read(turn, &mut word)) {
            Ok(1) if word == [DECODE] => yendor_image::decode(entry, packed, share, content).at(Step::Load)?,
            Ok(1) if word == [LOOK] => yendor_image::find_damage(entry, packed).at(Step::Load)?,
            Ok(1) => return yendor_image::find_damage(entry, packed).at(Step::Load),
            // Whoever waited for it has found the image damaged, or is gone.
            _ => return Err(Error::new(Step::Load, Cause::corrupt("not all of its files are right"))),
        }
    }
    Ok(())
}

/// Whether the blocks of all files say what the table of contents says, without decoding one.
fn look(jobs: &[Job<'_>]) -> Result<()> {
    let Worker { loader, turn } = worker(jobs, (0, 1))?;
    for _ in jobs {
        // One that is gone has given up, and says why.
        let _ = rustix::io::retry_on_intr(|| rustix::io::write(&turn, &[LOOK]));
    }
    drop(turn);
    loader.answer(Front::OWN)
}

/// A file is not what it was: one of the processes looks which block that is.
fn find(crew: Vec<Worker>, damage: Damage) -> Error {
    let whole = |damage: Damage| Error::new(Step::Load, Cause::from(damage));
    match crew.into_iter().next() {
        Some(worker) if matches!(damage, Damage::Digest { .. }) => {
            worker.tell(FIND);
            drop(worker.turn);
            worker.loader.answer::<()>(Front::OWN).err().unwrap_or_else(|| whole(damage))
        }
        _ => whole(damage),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, Write};
    use std::time::{Duration, Instant, SystemTime};
    use yendor_image::{Compression, Writer};

    struct Scratch(std::path::PathBuf);

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    /// An image of two compressed files.
    fn image(name: &str) -> (Scratch, Reader) {
        let top = std::env::temp_dir().join(format!("yendor-decode-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&top);
        std::fs::create_dir(&top).expect("mkdir");
        let scratch = Scratch(top);
        let at = scratch.0.join("image");
        let mut writer = Writer::create(&at).expect("create");
        writer.compress(Compression::Zstd(1));
        for name in ["one", "two"] {
            let mut file = writer.file(name).expect("file");
            file.write_all(&name.as_bytes().repeat(100_000)).expect("write");
            file.finish().expect("finish");
        }
        writer.records(&()).expect("records");
        writer.commit(SystemTime::now()).expect("commit");
        (scratch, Reader::open(&at).expect("open"))
    }

    fn jobs(reader: &Reader) -> Vec<Job<'_>> {
        let compressed = reader.manifest().files.iter().filter(|entry| entry.compressed.is_some());
        let job = |entry| Job {
            entry,
            packed: reader.open_stored(entry).expect("open"),
            content: nameless().expect("memfd"),
        };
        compressed.map(job).collect()
    }

    fn status(pid: i32) -> String {
        std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it waits")
    }

    #[test]
    fn what_decodes_has_nothing_but_the_files() {
        let (_scratch, reader) = image("rights");
        let jobs = jobs(&reader);
        let worker = worker(&jobs, (0, 1)).expect("a process");
        let (pid, begin) = (worker.loader.copy.pid(), Instant::now());
        // With its filter it is past everything that it gives up.
        while !status(pid).contains("\nSeccomp:\t2") {
            assert!(begin.elapsed() < Duration::from_secs(60), "{}", status(pid));
            std::thread::sleep(Duration::from_millis(2));
        }
        let all = status(pid);
        for nothing in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert!(all.contains(&format!("\n{nothing}:\t0000000000000000\n")), "{all}");
        }
        assert!(all.contains("\nNoNewPrivs:\t1\n") && all.starts_with("Name:\tyendor-load\n"), "{all}");
        // Who has another user's ids is not to be looked into by everybody.
        if let Ok(open) = std::fs::read_dir(format!("/proc/{pid}/fd")) {
            let links = open.flatten().map(|fd| std::fs::read_link(fd.path()).expect("a link"));
            let mut links: Vec<String> = links.map(|link| link.to_string_lossy().into_owned()).collect();
            links.retain(|link| !link.starts_with("pipe:"));
            links.sort_unstable();
            let memory = "/memfd:yendor-image (deleted)".to_owned();
            let stored = |name: &str| reader_path(&reader, name);
            assert_eq!(links, [memory.clone(), memory, stored("one.zst"), stored("two.zst")]);
        }
        // The second file is never told to be right.
        worker.tell(DECODE);
        drop(worker.turn);
        let error = worker.loader.answer::<()>(Front::OWN).expect_err("one is missing");
        assert_eq!(error.exit_code(), 4, "{error}");
    }

    fn reader_path(reader: &Reader, name: &str) -> String {
        use std::os::fd::AsRawFd;
        let directory = std::fs::read_link(format!("/proc/self/fd/{}", reader.directory().as_raw_fd()));
        directory.expect("a link").join(name).to_string_lossy().into_owned()
    }

    #[test]
    fn all_of_it_is_decoded_and_nobody_can_change_it() {
        let (_scratch, reader) = image("all");
        let files = decode(&reader, None).expect("decode").expect("compressed").into_files();
        for (file, name) in files.iter().zip(["one", "two"]) {
            let mut file = file.try_clone().expect("dup");
            let mut content = Vec::new();
            file.rewind().expect("lseek");
            file.read_to_end(&mut content).expect("read");
            assert!(content == name.as_bytes().repeat(100_000), "{name}");
            file.write_all(b"x").expect_err("it is sealed");
        }
        assert_eq!(files.len(), 2);
    }
}
