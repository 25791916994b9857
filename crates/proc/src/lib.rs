//! Pure parsers of `/proc` text: bytes in, values out.
//!
//! No module here opens anything; whoever calls has read the file, from a live kernel or from a capture. Names are bytes,
//! because nothing makes a file name or a `comm` UTF-8.
//!
//! Two promises hold in every module:
//! - Input is hostile: any bytes give a value or a [`ParseError`], never a panic. Text that was cut off is an error,
//!   since half a number still looks like a number.
//! - Nothing is dropped: what the kernel prints and this crate does not know ends in a field called `leftover`, so that a
//!   checkpoint can refuse by name what it does not understand.

mod field;

pub mod auxv;
pub mod cgroup;
pub mod children;
pub mod fdinfo;
pub mod id_map;
pub mod limits;
pub mod locks;
pub mod maps;
pub mod meminfo;
pub mod mountinfo;
pub mod multicast;
pub mod net_config;
pub mod net_unix;
pub mod personality;
pub mod smaps;
pub mod stat;
pub mod status;
pub mod syscall;
pub mod sysvipc;
pub mod timens_offsets;
pub mod timers;

#[cfg(test)]
mod hostile;

/// Text that is not what the kernel prints in that file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{file}: line {line}: bad or missing {what}")]
pub struct ParseError {
    /// The file, named as below `/proc` (`maps`, `fdinfo`, `net/unix`).
    pub file: &'static str,
    /// Line in that file, from 1.
    pub line: usize,
    /// The field that could not be read.
    pub what: &'static str,
}

/// A device number, split into its parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Dev {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

impl Dev {
    /// From the kernel's own `dev_t` (major above 20 bits of minor), which inotify, fanotify and epoll print as `sdev`.
    /// Source: `include/linux/kdev_t.h`, `MAJOR` and `MINOR`.
    #[must_use]
    pub fn from_kernel(sdev: u32) -> Dev {
        Dev { major: sdev >> 20, minor: sdev & 0xf_ffff }
    }

    /// From the 32-bit number that is given to user space, as in `tty_nr`. Source: `kdev_t.h`, `new_decode_dev`.
    #[must_use]
    pub fn from_user(encoded: u32) -> Dev {
        Dev { major: (encoded & 0xf_ff00) >> 8, minor: (encoded & 0xff) | ((encoded >> 12) & 0xf_ff00) }
    }

    /// As `st_dev` of stat(2) has it. Source: makedev(3).
    #[must_use]
    pub fn st_dev(self) -> u64 {
        let (major, minor) = (u64::from(self.major), u64::from(self.minor));
        ((major & 0xffff_f000) << 32) | ((major & 0xfff) << 8) | ((minor & 0xffff_ff00) << 12) | (minor & 0xff)
    }
}

#[cfg(test)]
mod tests {
    use super::Dev;

    #[test]
    fn device_numbers_of_both_encodings() {
        let vda = Dev { major: 254, minor: 0 };
        assert_eq!(Dev::from_kernel(0x0fe0_0000), vda);
        assert_eq!(vda.st_dev(), 0xfe00);
        let pts = Dev { major: 136, minor: 0x123 };
        assert_eq!(Dev::from_user(0x0010_8823), pts);
        assert_eq!(pts.st_dev(), 0x0010_8823);
        assert_eq!(Dev { major: 0x1234, minor: 1 }.st_dev(), 0x1000_0002_3401);
    }
}
