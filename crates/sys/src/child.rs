//! Children that do one thing with all signals blocked, and outlive us if need be (clone(2)).

use rustix::io::Errno;

use crate::{Result, SysError, undo};

/// A child at work, and what is done if we die meanwhile.
pub(crate) struct Forked {
    pid: i32,
    _work: undo::Held<'static>,
}

impl Forked {
    /// Waits for its end; its wait status.
    pub(crate) fn reap(self) -> Result<i32> {
        reap(self.pid)
    }
}

/// Runs `f` in a child with all signals blocked. `f` must not allocate: another thread may hold that lock. What it takes it puts
/// back, and says so by a call; if we die, our tracees wait for that.
pub(crate) fn forked(f: impl FnOnce(&dyn Fn()) -> i32) -> Result<Forked> {
    let work = undo::work()?;
    // Nobody who traces us, and kills us, shall stop it.
    let pid = spawn(libc::CLONE_UNTRACED, || f(&|| undo::done(&work)))?;
    Ok(Forked { pid, _work: work })
}

/// Runs `f` in a child with all signals blocked, made with these flags of clone(2), none of which makes it share our memory; its pid. `f`
/// must not allocate.
pub(crate) fn spawn(flags: i32, f: impl FnOnce() -> i32) -> Result<i32> {
    // SAFETY: sigset_t is plain data; both sets outlive the calls.
    let before = unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        let mut before: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
        before
    };
    // SAFETY: without CLONE_VM the child has its own copy of memory and only this thread; it runs `f`, which makes system
    // calls and does not allocate, and ends without returning.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags | libc::SIGCHLD, 0, 0, 0, 0) };
    if pid == 0 {
        let mut end = End(libc::ENOTRECOVERABLE);
        end.0 = f();
        drop(end);
    }
    let failed = SysError::last("clone", format!("{flags:#x}"));
    // SAFETY: `before` is what pthread_sigmask gave.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut()) };
    i32::try_from(pid).ok().filter(|pid| *pid > 0).ok_or(failed)
}

/// Ends the process when it goes, with this status: a panic must not unwind into what the parent shares with its child.
struct End(i32);

impl Drop for End {
    fn drop(&mut self) {
        // SAFETY: ends the child at once, without destructors.
        unsafe { libc::_exit(self.0) };
    }
}

pub(crate) fn reap(child: i32) -> Result<i32> {
    let mut status = 0;
    loop {
        // SAFETY: `status` outlives the call.
        let ret = unsafe { libc::waitpid(child, &raw mut status, libc::__WALL) };
        if ret == child {
            return Ok(status);
        }
        let error = SysError::last("waitpid", child.to_string());
        if error.errno != Errno::INTR {
            return Err(error);
        }
    }
}
