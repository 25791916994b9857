//! A scratch directory and a small image that has everything.
#![allow(dead_code)] // each test program uses a part

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, UNIX_EPOCH};
use yendor_image::{Addr, Bytes, Error, FdNum, FileId, Manifest, NsPid, PageRun, Reader, Writer};

/// Removed with everything in it at the end of the test.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new() -> Scratch {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("yendor-image-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Scratch(path)
    }

    pub fn image(&self) -> PathBuf {
        self.0.join("image")
    }

    pub fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.0).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Records {
    pub tasks: Vec<Task>,
    pub files: BTreeMap<FileId, File>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Task {
    pub pid: NsPid,
    pub comm: Bytes,
    pub fds: BTreeMap<FdNum, FileId>,
    pub runs: Vec<PageRun>,
    pub nice: Option<i32>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum File {
    Null,
    Eventfd { count: u64, semaphore: bool },
    Pipe(Bytes),
}

pub fn records() -> Records {
    let run = PageRun { addr: Addr(0x7fff_f000), pages: 2, file: 0, offset: 0 };
    Records {
        tasks: vec![Task {
            pid: NsPid(2),
            comm: Bytes(b"a\xffb".to_vec()),
            fds: [(FdNum(0), FileId(0)), (FdNum(7), FileId(9))].into(),
            runs: vec![run, PageRun { file: 1, pages: 1, ..run }],
            nice: Some(-20),
        }],
        files: [
            (FileId(0), File::Null),
            (FileId(8), File::Eventfd { count: u64::MAX - 1, semaphore: true }),
            (FileId(9), File::Pipe(Bytes(vec![0; 30]))),
        ]
        .into(),
    }
}

pub fn page(seed: u8) -> Vec<u8> {
    (0..4096u32).map(|at| u8::try_from(at % 251).unwrap() ^ seed).collect()
}

pub fn write(path: &Path) -> Manifest {
    let mut writer = Writer::create(path).unwrap();
    writer.generation(3);
    let mut pages = writer.file("pages-0").unwrap();
    pages.write_all(&page(1)).unwrap();
    assert_eq!(pages.offset(), 4096);
    pages.write_all(&page(2)).unwrap();
    pages.finish().unwrap();
    writer.raw("pages-1").unwrap().write_all(&page(3)).unwrap();
    writer.adopt("pages-1").unwrap();
    writer.records(&records()).unwrap();
    writer.file("empty").unwrap().finish().unwrap();
    writer.commit(UNIX_EPOCH + Duration::from_secs(1_767_225_600)).unwrap()
}

/// Reads everything that an image has, as a restore would.
pub fn read(path: &Path) -> Result<(Manifest, Records), Error> {
    let reader = Reader::open(path)?;
    let records: Records = reader.records()?;
    reader.verify_all()?;
    for run in records.tasks.iter().flat_map(|task| &task.runs) {
        reader.check_run(run)?;
    }
    Ok((reader.manifest().clone(), records))
}
