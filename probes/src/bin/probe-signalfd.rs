//! signalfd: its mask, its flags, and what is pending for it.
#![allow(unsafe_code)]

use probe::{expect, fdinfo, ok, own, read_at_once};
use std::os::fd::{AsRawFd, OwnedFd};

const RT: i32 = 50;

fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

fn signalfd(mask: u64, flags: i32) -> OwnedFd {
    own("signalfd4", unsafe { libc::syscall(libc::SYS_signalfd4, -1, &mask, 8, flags) } as i32)
}

fn mask(how: i32) {
    let mask = bit(RT) | bit(RT + 1) | bit(libc::SIGWINCH) | bit(64);
    ok("sigprocmask", unsafe { libc::syscall(libc::SYS_rt_sigprocmask, how, &mask, 0, 8) });
}

type State = (Vec<OwnedFd>, Vec<Vec<String>>);

fn setup() -> State {
    mask(libc::SIG_BLOCK);
    let all = vec![
        signalfd(bit(RT) | bit(64) | bit(libc::SIGWINCH), libc::SFD_NONBLOCK | libc::SFD_CLOEXEC),
        signalfd(bit(RT + 1), libc::SFD_NONBLOCK),
        signalfd(!bit(libc::SIGKILL) & !bit(libc::SIGSTOP), 0),
    ];
    let pid = std::process::id() as i32;
    for (signal, value) in [(RT, 0x1111_2222_3333_4444_usize), (64, usize::MAX), (RT, 5), (libc::SIGWINCH, 0)] {
        let value = libc::sigval { sival_ptr: value as *mut _ };
        ok("sigqueue", unsafe { libc::sigqueue(pid, signal, value) });
    }
    let before = all.iter().map(fdinfo).collect();
    (all, before)
}

/// Number, value of the next signal.
fn next(fd: &OwnedFd) -> Option<(u32, u64, u32)> {
    let bytes = read_at_once(fd, size_of::<libc::signalfd_siginfo>())?;
    expect("length", bytes.len(), size_of::<libc::signalfd_siginfo>());
    let info = unsafe { bytes.as_ptr().cast::<libc::signalfd_siginfo>().read_unaligned() };
    Some((info.ssi_signo, info.ssi_ptr, info.ssi_pid))
}

fn check((all, before): State) {
    expect("mask and flags", all.iter().map(fdinfo).collect::<Vec<_>>(), before);
    let of_exec = [0, 1, 2].map(|number| unsafe { libc::fcntl(all[number].as_raw_fd(), libc::F_GETFD) });
    expect("close on exec", of_exec, [1, 0, 0]);
    let own = std::process::id();
    let want = [
        (libc::SIGWINCH as u32, 0, own),
        (RT as u32, 0x1111_2222_3333_4444, own),
        (RT as u32, 5, own),
        (64, u64::MAX, own),
    ];
    want.into_iter().for_each(|want| expect("signal", next(&all[0]), Some(want)));
    expect("signals left", (next(&all[0]), next(&all[1])), (None, None));
    ok("kill", unsafe { libc::kill(own as i32, RT + 1) });
    expect("new signal", next(&all[1]), Some((RT as u32 + 1, 0, own)));
    mask(libc::SIG_UNBLOCK);
}

fn main() {
    probe::run(setup, check)
}
