//! What follows when the image is safe: the tasks end, or stay stopped.

use std::os::fd::OwnedFd;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use yendor_image::Writer;
use yendor_kinds::Named;
use yendor_sys::process::Signals;
use yendor_sys::{Errno, SysError};
use yendor_task::tree::FrozenTree;

use super::marker::Marker;
use super::stop::Stop;
use super::{Options, Target};
use crate::error::{At, Error, Result, Step};

/// A tree that will end, or stay stopped, as soon as its image is there: whatever else can fail has been done.
pub(super) struct End {
    tree: FrozenTree,
    how: How,
    /// Who wants us to end waits until it is decided, as far as signals can be made to wait.
    _later: Signals,
}

enum How {
    Stay(Stop),
    Tree,
    Container(Container),
}

struct Container {
    keeper: OwnedFd,
    /// Its pid 1, and that one's number, when it is ours and not the program.
    init: Option<(OwnedFd, i32)>,
    _marker: Marker,
}

impl End {
    /// Makes ready to end a tree.
    pub(super) fn ready(target: &Target, tree: FrozenTree, options: &Options) -> Result<End> {
        let how = match target {
            _ if options.leave_stopped => How::Stay(Stop::ready(&tree).at(Step::Store)?),
            Target::Tree(_) => How::Tree,
            Target::Container(state, directory) => How::Container(Container {
                keeper: pidfd(state.keeper).at(Step::Store)?,
                init: match state.init {
                    init if init == state.main => None,
                    init => Some((pidfd(init).at(Step::Store)?, init)),
                },
                _marker: Marker::make(directory).at(Step::Store)?,
            }),
        };
        let signals = [Signal::HUP, Signal::INT, Signal::TERM].map(Signal::as_raw);
        Ok(End { tree, how, _later: Signals::block(&signals).at(Step::Store)? })
    }

    /// Ends it; `then` what is to be done at once. While an error is not `broken` the tree runs on, and its image, of `writer`, is taken back.
    pub(super) fn end(self, writer: &Writer, then: impl FnOnce() -> Result<()>) -> Result<()> {
        let End { tree, how, _later } = self;
        let broken = |e| Error { broken: true, ..Error::new(Step::Thaw, e) };
        // Before the tree runs: nobody may restore a second one. What cannot be taken back is told by the first error.
        let runs_on = |e| {
            let _ = writer.withdraw();
            e
        };
        let container = match how {
            How::Stay(stop) => return stop.all().at(Step::Thaw).map_err(runs_on),
            How::Tree => {
                tree.bind().kill().map_err(broken)?;
                return then();
            }
            How::Container(container) => container,
        };
        let bound = tree.bind();
        // With its pid 1 a container ends as one.
        if let Some((pidfd, init)) = &container.init {
            match pidfd_send_signal(pidfd, Signal::KILL) {
                Ok(()) | Err(Errno::SRCH) => {}
                failed => {
                    let what = || format!("{init}, SIGKILL");
                    failed.named("pidfd_send_signal", what).at(Step::Thaw).map_err(runs_on)?;
                }
            }
        }
        bound.kill().map_err(broken)?;
        let done = then();
        // Until the keeper knows why; one that hangs is not waited for.
        let limit = rustix::event::Timespec { tv_sec: 10, tv_nsec: 0 };
        let mut fds = [rustix::event::PollFd::new(&container.keeper, rustix::event::PollFlags::IN)];
        let _ = rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, Some(&limit)));
        done
    }
}

pub(super) fn pidfd(pid: i32) -> std::result::Result<OwnedFd, SysError> {
    let open = Pid::from_raw(pid).ok_or(Errno::SRCH).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()));
    open.named("pidfd_open", || pid.to_string())
}
