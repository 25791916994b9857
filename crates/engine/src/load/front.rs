//! Waiting for what a process reads from an image, as long as whoever has asked for it is there: an image may make that take as long as it likes.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use yendor_kinds::{Cause, Named};
use yendor_sys::sandbox::{self, Copy};
use yendor_sys::wait::Event;
use yendor_sys::{Errno, SysError};
use yendor_task::Dead;

use super::{NO_ANSWER, NO_SANDBOX, NO_WORD};
use crate::error::{At, Error, Result, Step};
use crate::{blame, who};

const SIGKILL: i32 = 9;
const SIGSYS: i32 = 31;

/// The connection with whoever has asked; none: it is this process itself that waits.
#[derive(Debug, Clone, Copy)]
pub struct Front<'c>(Option<BorrowedFd<'c>>);

impl<'c> Front<'c> {
    /// Nobody else.
    pub const OWN: Front<'static> = Front(None);

    /// At the other end of this.
    #[must_use]
    pub fn of(control: &'c impl AsFd) -> Front<'c> {
        Front(Some(control.as_fd()))
    }

    /// Whether it is there still.
    ///
    /// # Errors
    /// It is not.
    pub fn lives(self) -> std::result::Result<(), Cause> {
        let Some(control) = self.0 else { return Ok(()) };
        let mut fds = [PollFd::from_borrowed_fd(control, PollFlags::RDHUP)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        match poll(&mut fds, Some(&now)).named("poll", || "control".into())? {
            0 => Ok(()),
            _ => Err(gone()),
        }
    }

    /// Waits until something can be read.
    fn until(self, other: BorrowedFd<'_>) -> std::result::Result<(), Cause> {
        let mut fds = vec![PollFd::from_borrowed_fd(other, PollFlags::IN)];
        fds.extend(self.0.map(|control| PollFd::from_borrowed_fd(control, PollFlags::RDHUP)));
        rustix::io::retry_on_intr(|| poll(&mut fds, None)).named("poll", || "the loader".into())?;
        match fds.get(1) {
            Some(control) if !control.revents().is_empty() => Err(gone()),
            _ => Ok(()),
        }
    }

    /// Reads to the end, or until there is more than `most`.
    pub(super) fn read(self, from: BorrowedFd<'_>, most: u64) -> Result<Vec<u8>> {
        let (mut bytes, mut chunk) = (Vec::new(), vec![0; 64 << 10]);
        while u64::try_from(bytes.len()).is_ok_and(|length| length <= most) {
            self.until(from).at(Step::Load)?;
            let length = match rustix::io::read(from, &mut *chunk) {
                Err(Errno::INTR) => continue,
                length => length.map_err(|e| SysError::new("read", "from the loader", e)).at(Step::Load)?,
            };
            let Some(part) = chunk.get(..length).filter(|part| !part.is_empty()) else { break };
            bytes.extend_from_slice(part);
        }
        Ok(bytes)
    }

    /// Waits until a process has ended as it should.
    ///
    /// # Errors
    /// It has not: whoever reads an image ends so because of that, but where the system has refused something that is not the image's doing.
    pub(super) fn ended(self, copy: Copy) -> Result<()> {
        copy.pidfd().map_or(Ok(()), |pidfd| self.until(pidfd)).at(Step::Load)?;
        let reader = "the process that reads the image";
        let tid = copy.pid();
        let message = match copy.wait().at(Step::Load)? {
            Event::Exited(0) => return Ok(()),
            Event::Exited(sandbox::NO_MEMORY) => format!("{reader} got no memory"),
            Event::Exited(sandbox::NOT_CLOSED) => {
                format!("{reader} could not close its descriptors (is close_range refused here?)")
            }
            Event::Exited(code @ (NO_SANDBOX | NO_WORD | NO_ANSWER)) => {
                format!("{reader} had to give up (code {code})")
            }
            // By nobody here: of memory that is short the kernel takes some back so.
            Event::Killed(SIGKILL) => format!("{reader} was killed (was memory short?)"),
            // Its own filter lets it go nowhere else; where the caller has one it may be either.
            event @ Event::Killed(SIGSYS) if who::is_filtered() => {
                let by = format!("{}, or that of {reader}: then the image is hostile", who::CALLERS_FILTER);
                return Err(blame::filter(Error::new(Step::Load, Dead { tid, event }), Some(by)));
            }
            ended => return Err(Cause::corrupt(format!("its reader could not go on: {ended:?}"))).at(Step::Load),
        };
        Err(Cause::Reported { message, code: 1 }).at(Step::Load)
    }
}

fn gone() -> Cause {
    Cause::Reported { message: "the caller has died".into(), code: 1 }
}
