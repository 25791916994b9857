//! Reading a container's log, of which the oldest part may have become a hole.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::Path;

use rustix::fs::SeekFrom as Place;
use rustix::io::Errno;

use crate::failure::Failure;
use crate::modes::Modes;

/// A log, read from its first line that is still there.
pub struct Log {
    file: File,
    at: u64,
}

impl Log {
    /// Opens that of a container's directory; nothing if it has none.
    pub fn open(directory: &Path) -> Result<Option<Log>, Failure> {
        let path = directory.join("log");
        match File::open(&path) {
            Ok(file) => Ok(Some(Log { file, at: 0 })),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Failure::io("open", &path, &e)),
        }
    }

    /// Passes by what was written until now.
    pub fn skip(&mut self) {
        self.at = self.file.metadata().map_or(0, |m| m.len());
    }

    /// Prints what has been written since; `false` when nobody reads that. What is not there any more is said on standard error.
    pub fn print(&mut self) -> Result<bool, Failure> {
        self.show(&mut Modes::default())
    }

    /// The same, for a terminal.
    pub fn show(&mut self, modes: &mut Modes) -> Result<bool, Failure> {
        let failed = |e: &io::Error| Failure::Failed(format!("read the container's log: {e}"));
        let mut buffer = vec![0; 64 << 10];
        loop {
            let gone = self.pass_hole().map_err(|e| failed(&e))?;
            let got = self.file.read(&mut buffer).map_err(|e| failed(&e))?;
            self.at += u64::try_from(got).unwrap_or(0);
            let Some(mut bytes) = buffer.get(..got).filter(|b| !b.is_empty()) else { return Ok(true) };
            if gone > 0 {
                // It begins amid a line.
                bytes = bytes.splitn(2, |b| *b == b'\n').nth(1).unwrap_or(bytes);
                crate::print::note(&format!("{gone} bytes of this log are gone: its last megabytes are kept"));
            }
            modes.see(bytes);
            match io::stdout().write_all(bytes).and_then(|()| io::stdout().flush()) {
                Ok(()) => {}
                Err(e) if e.kind() == ErrorKind::BrokenPipe => return Ok(false),
                Err(e) => return Err(Failure::Failed(format!("write to standard output: {e}"))),
            }
        }
    }

    /// Goes on behind a hole; how long it was. From the start, where the container has cut its log.
    fn pass_hole(&mut self) -> io::Result<u64> {
        if self.file.metadata()?.len() < self.at {
            self.at = 0;
        }
        let data = match rustix::fs::seek(&self.file, Place::Data(self.at)) {
            Ok(data) => data,
            // There is nothing more yet, or a file system without holes.
            Err(Errno::NXIO | Errno::INVAL) => self.file.seek(SeekFrom::Start(self.at))?,
            Err(e) => return Err(e.into()),
        };
        let gone = data - self.at;
        self.at = data;
        Ok(gone)
    }
}
