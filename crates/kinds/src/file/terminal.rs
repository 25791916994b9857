//! The state that both sides of a terminal share, and how a session gets it as its controlling terminal.
//! *Read from:* `TCGETS2`, `TIOCGWINSZ`.
//! *Made again by:* `TCSETS2`, `TIOCSWINSZ`; `TIOCSCTTY` and `TIOCSPGRP` in the session's leader.
//! *Lost:* nothing; a line discipline other than `N_TTY` is refused.

use std::os::fd::BorrowedFd;

use rustix::termios::{Winsize, tcgetwinsize, tcsetwinsize};
use serde::{Deserialize, Serialize};
use yendor_image::{Bytes, FdNum, NsPid};
use yendor_sys::tty::{self, Termios};
use yendor_task::script::bytes;
use yendor_task::{Nr, Script, args};

use crate::{Cause, Named, Result};

const TIOCSCTTY: u32 = 0x540e;
const TIOCSPGRP: u32 = 0x5410;

/// Settings of a terminal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// `c_iflag`, `c_oflag`, `c_cflag`, `c_lflag`.
    pub modes: [u32; 4],
    /// `c_cc`, 19 bytes.
    pub characters: Bytes,
    /// Input and output speed, baud.
    pub speeds: (u32, u32),
    /// Rows, columns, and pixels in each direction.
    pub size: [u16; 4],
}

/// Reads them.
///
/// # Errors
/// `EIO` when the other side has gone; `Unsupported` for a line discipline that is not the usual one.
pub fn collect(fd: BorrowedFd<'_>) -> Result<Record> {
    let discipline = tty::discipline(fd)?;
    let Termios { iflag, oflag, cflag, lflag, line, cc, ispeed, ospeed } = tty::termios(fd)?;
    if discipline != 0 || line != 0 {
        return Err(Cause::unsupported(format!("a terminal with the line discipline {discipline}")));
    }
    let size = tcgetwinsize(fd).named("ioctl", || "TIOCGWINSZ".into())?;
    Ok(Record {
        modes: [iflag, oflag, cflag, lflag],
        characters: Bytes(cc.to_vec()),
        speeds: (ispeed, ospeed),
        size: [size.ws_row, size.ws_col, size.ws_xpixel, size.ws_ypixel],
    })
}

impl Record {
    /// As the kernel wants them.
    ///
    /// # Errors
    /// `Corrupt` for another number of special characters.
    pub fn termios(&self) -> Result<Termios> {
        let Record { modes: [iflag, oflag, cflag, lflag], characters, speeds: (ispeed, ospeed), size: _ } = self;
        let cc = <[u8; 19]>::try_from(&*characters.0)
            .map_err(|_| Cause::corrupt(format!("a terminal with {} special characters", characters.0.len())))?;
        let (iflag, oflag, cflag, lflag) = (*iflag, *oflag, *cflag, *lflag);
        Ok(Termios { iflag, oflag, cflag, lflag, line: 0, cc, ispeed: *ispeed, ospeed: *ospeed })
    }

    /// Sets the size.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_size(&self, fd: BorrowedFd<'_>) -> Result<()> {
        let [ws_row, ws_col, ws_xpixel, ws_ypixel] = self.size;
        let size = Winsize { ws_row, ws_col, ws_xpixel, ws_ypixel };
        Ok(tcsetwinsize(fd, size).named("ioctl", || format!("TIOCSWINSZ, {ws_row} x {ws_col}"))?)
    }
}

/// The session leader that executes this takes the terminal behind its descriptor `number` as its controlling terminal.
pub fn take(number: FdNum, script: &mut Script) {
    script.call(Nr::IOCTL, args![number.0, TIOCSCTTY, 0]);
}

/// The session leader makes `group` the foreground process group; once all groups exist, and while the leader's own is in
/// the foreground, as it is after [`take`].
pub fn set_foreground(number: FdNum, group: NsPid, script: &mut Script) {
    script.call(Nr::IOCTL, args![number.0, TIOCSPGRP, bytes(group.0.to_ne_bytes())]);
}
