//! A terminal with somebody at it: what a command shows is read, what it should hear is typed.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::task::{Started, wait_until};

/// The side of the person.
pub struct Terminal {
    master: File,
    slave: Option<OwnedFd>,
    shown: Vec<u8>,
}

impl Terminal {
    /// A terminal of this size.
    pub fn new(rows: u16, columns: u16) -> Self {
        let (mut master, mut slave) = (-1, -1);
        let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: two places for descriptors and a size; no name and no settings are asked for.
        let made =
            unsafe { libc::openpty(&raw mut master, &raw mut slave, std::ptr::null_mut(), std::ptr::null(), &size) };
        assert_eq!(made, 0, "openpty: {}", std::io::Error::last_os_error());
        for fd in [master, slave] {
            // SAFETY: descriptors of ours.
            unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
        // SAFETY: as above; reading must not wait for ever.
        unsafe { libc::fcntl(master, libc::F_SETFL, libc::O_NONBLOCK) };
        // SAFETY: openpty has just made both, and nobody else has them.
        let (master, slave) = unsafe { (File::from_raw_fd(master), OwnedFd::from_raw_fd(slave)) };
        Self { master, slave: Some(slave), shown: Vec::new() }
    }

    /// Starts a command at it, as a session of its own.
    pub fn start(&mut self, command: &mut Command) -> Started {
        let slave = self.slave.take().expect("one command for each terminal");
        let side = || Stdio::from(slave.try_clone().expect("dup"));
        command.stdin(side()).stdout(side()).stderr(side());
        // SAFETY: system calls only; descriptor 0 is the terminal by then.
        unsafe {
            command.pre_exec(|| {
                if libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        Started::new(command)
    }

    /// Types.
    pub fn write(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).expect("type");
    }

    /// Makes it larger or smaller.
    pub fn resize(&self, rows: u16, columns: u16) {
        let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the ioctl reads a winsize.
        let set = unsafe { libc::ioctl(self.master.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
        assert_eq!(set, 0, "TIOCSWINSZ: {}", std::io::Error::last_os_error());
    }

    /// Waits until this has been shown since the last such wait. Panics with what there was, if it is not.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str, limit: Duration) {
        let found = wait_until(limit, || {
            self.look();
            self.shown.windows(text.len()).any(|w| w == text.as_bytes())
        });
        assert!(found, "{text:?} is not shown within {limit:?}:\n{}", self.text());
        let end = self.shown.windows(text.len()).position(|w| w == text.as_bytes()).unwrap_or(0) + text.len();
        self.shown.drain(..end);
    }

    /// What was shown since.
    pub fn text(&mut self) -> String {
        self.look();
        String::from_utf8_lossy(&self.shown).into_owned()
    }

    fn look(&mut self) {
        let mut buffer = [0; 4096];
        // The end, nothing there, or a terminal that nobody has any more: all the same to who looks.
        while let Ok(n @ 1..) = self.master.read(&mut buffer) {
            self.shown.extend_from_slice(&buffer[..n]);
        }
    }
}
