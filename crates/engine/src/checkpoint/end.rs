//! What follows when the image is safe: the tasks end, or stay stopped.

use yendor_kinds::Named;
use yendor_task::tree::FrozenTree;

use super::{Options, Target, stop};
use crate::error::{At, Error, Result, Step};

/// Ends them; `then` what is to be done at once.
pub(super) fn end(
    target: &Target,
    tree: FrozenTree,
    options: &Options,
    then: impl FnOnce() -> Result<()>,
) -> Result<()> {
    if options.leave_stopped {
        return stop::all(&tree).at(Step::Thaw);
    }
    let broken = |e| Error { broken: true, ..Error::new(Step::Thaw, e) };
    let Target::Container(state, _) = target else {
        tree.kill().map_err(broken)?;
        return then();
    };
    // With its pid 1 a container ends as one: if we die now, nothing of it is left over.
    let process = |pid| {
        let open = rustix::process::Pid::from_raw(pid).ok_or(rustix::io::Errno::SRCH);
        open.and_then(|p| rustix::process::pidfd_open(p, rustix::process::PidfdFlags::empty()))
            .named("pidfd_open", || format!("{pid}"))
    };
    let keeper = process(state.keeper).at(Step::Thaw)?;
    process(state.init)
        .and_then(|init| {
            rustix::process::pidfd_send_signal(&init, rustix::process::Signal::KILL)
                .named("pidfd_send_signal", || format!("{}, SIGKILL", state.init))
        })
        .at(Step::Thaw)?;
    tree.kill().map_err(broken)?;
    let done = then();
    // Until the keeper knows why; one that hangs is not waited for.
    let limit = rustix::event::Timespec { tv_sec: 10, tv_nsec: 0 };
    let mut fds = [rustix::event::PollFd::new(&keeper, rustix::event::PollFlags::IN)];
    let _ = rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, Some(&limit)));
    done
}
