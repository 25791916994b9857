//! What rustix lacks of files that tell events: epoll(7) by number, signalfd(2), timerfd_create(2).

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;

use crate::{Result, SysError, fd};

/// A registration: the target, the number by which the epoll knows it, events, user data.
#[derive(Debug, Clone, Copy)]
pub struct Interest<'a> {
    /// The target.
    pub target: BorrowedFd<'a>,
    /// The descriptor number that it is registered under: half of its key.
    pub number: i32,
    /// `EPOLL*`.
    pub events: u32,
    /// User data.
    pub data: u64,
    /// A one-shot target that has fired. Such targets come first.
    pub spent: bool,
}

/// Registers targets under numbers of the caller's choice, in a copy of the descriptor table: ours stays as it is.
///
/// # Errors
/// What `dup2` and `epoll_ctl` say, in the order of `items`.
pub fn register(epoll: BorrowedFd<'_>, items: &[Interest<'_>]) -> Result<()> {
    if items.is_empty() {
        return Ok(());
    }
    fd::in_own_table(|| items.iter().try_for_each(|item| register_one(epoll.as_raw_fd(), item)))
}

/// Leaves the (private) table as it found it, since a number may be the place of a later target.
fn register_one(epoll: RawFd, item: &Interest<'_>) -> Result<()> {
    let target = item.target.as_raw_fd();
    if target == item.number {
        return add(epoll, item);
    }
    let saved = match fd::dup(item.number, 0) {
        Ok(saved) => Some(saved),
        Err(e) if e.errno == Errno::BADF => None,
        Err(e) => return Err(e),
    };
    fd::dup2(target, item.number)?;
    let epoll = if epoll == item.number { saved.unwrap_or(epoll) } else { epoll };
    let added = add(epoll, item);
    match saved {
        Some(saved) => {
            fd::dup2(saved, item.number)?;
            fd::close(saved);
        }
        None => fd::close(item.number),
    }
    added
}

fn add(epoll: RawFd, item: &Interest<'_>) -> Result<()> {
    /// Every event that tells that a file is ready.
    const ANY: u32 = 0x2fdf;
    if !item.spent {
        return control(epoll, libc::EPOLL_CTL_ADD, item, item.events);
    }
    control(epoll, libc::EPOLL_CTL_ADD, item, item.events | ANY)?;
    let mut event = libc::epoll_event { events: 0, u64: 0 };
    // SAFETY: room for the one event that is asked for. Taking it is what disarms the target.
    let n = unsafe { libc::epoll_wait(epoll, &raw mut event, 1, 0) };
    // Nothing is ready: armed for what cannot be masked, errors and hang-ups.
    if n == 1 { Ok(()) } else { control(epoll, libc::EPOLL_CTL_MOD, item, item.events) }
}

fn control(epoll: RawFd, operation: i32, item: &Interest<'_>, events: u32) -> Result<()> {
    let mut event = libc::epoll_event { events, u64: item.data };
    // SAFETY: `event` outlives the call.
    let ret = unsafe { libc::epoll_ctl(epoll, operation, item.number, &raw mut event) };
    let name = if operation == libc::EPOLL_CTL_ADD { "EPOLL_CTL_ADD" } else { "EPOLL_CTL_MOD" };
    if ret < 0 {
        Err(SysError::last("epoll_ctl", format!("{epoll}, {name}, {}, {events:#x}", item.number)))
    } else {
        Ok(())
    }
}

/// A signalfd for the signals of `mask` (bit 0 is signal 1).
///
/// # Errors
/// `EMFILE`, `ENFILE`, `ENOMEM`.
pub fn signalfd(mask: u64) -> Result<OwnedFd> {
    const NO_FD: i32 = -1;
    let flags = libc::SFD_CLOEXEC;
    let size = std::mem::size_of::<u64>();
    // SAFETY: the kernel reads eight bytes of `mask`, which outlives the call.
    let ret = unsafe { libc::syscall(libc::SYS_signalfd4, NO_FD, &raw const mask, size, flags) };
    owned(ret, "signalfd4", || format!("-1, {mask:#x}, {size}, SFD_CLOEXEC"))
}

/// `timerfd_create` for any clock, also those that rustix does not know.
///
/// # Errors
/// `EINVAL` for a clock without timers, `EPERM` for an alarm clock without `CAP_WAKE_ALARM`.
pub fn timerfd(clock: i32) -> Result<OwnedFd> {
    // SAFETY: takes no pointer.
    let ret = unsafe { libc::syscall(libc::SYS_timerfd_create, clock, libc::TFD_CLOEXEC) };
    owned(ret, "timerfd_create", || format!("{clock}, TFD_CLOEXEC"))
}

/// Arms a timerfd: `value` and `interval` as seconds and nanoseconds, `flags` `TFD_TIMER_*`.
///
/// # Errors
/// `EINVAL` for nanoseconds out of range.
pub fn timerfd_settime(fd: &impl AsFd, flags: u32, value: (i64, i64), interval: (i64, i64)) -> Result<()> {
    let spec = |(tv_sec, tv_nsec)| libc::timespec { tv_sec, tv_nsec };
    let new = libc::itimerspec { it_interval: spec(interval), it_value: spec(value) };
    let raw = fd.as_fd().as_raw_fd();
    // SAFETY: `new` outlives the call; a null pointer asks for no old value.
    let ret = unsafe {
        libc::syscall(libc::SYS_timerfd_settime, raw, flags, &raw const new, std::ptr::null_mut::<libc::itimerspec>())
    };
    if ret < 0 { Err(SysError::last("timerfd_settime", format!("{raw}, {flags:#x}, {value:?}"))) } else { Ok(()) }
}

/// Sets the number of expirations that nobody has read (`TFD_IOC_SET_TICKS`, ioctl_timerfd in timerfd_create(2)).
///
/// # Errors
/// `ENOTTY` from a kernel without CONFIG_CHECKPOINT_RESTORE.
pub fn timerfd_set_ticks(fd: &impl AsFd, ticks: u64) -> Result<()> {
    const TFD_IOC_SET_TICKS: u64 = 0x4008_5400;
    let raw = fd.as_fd().as_raw_fd();
    // SAFETY: the kernel reads eight bytes of `ticks`, which outlives the call.
    let ret = unsafe { libc::ioctl(raw, TFD_IOC_SET_TICKS, &raw const ticks) };
    if ret < 0 { Err(SysError::last("ioctl", format!("{raw}, TFD_IOC_SET_TICKS, {ticks}"))) } else { Ok(()) }
}

/// How an epoll polls devices busily (`struct epoll_params`, ioctl_eventpoll(2)): microseconds, packets at once, whether it prefers to.
pub type BusyPoll = (u32, u16, u8);

/// How an epoll polls busily (`EPIOCGPARAMS`).
///
/// # Errors
/// `ENOTTY`, `EINVAL` or `EOPNOTSUPP` from a kernel before 6.9, or one without it.
pub fn busy_poll(epoll: &impl AsFd) -> Result<BusyPoll> {
    const EPIOCGPARAMS: u64 = 0x8008_8a02;
    let raw = epoll.as_fd().as_raw_fd();
    let mut params = [0_u8; 8];
    // SAFETY: the kernel writes eight bytes, which `params` has.
    let ret = unsafe { libc::ioctl(raw, EPIOCGPARAMS, params.as_mut_ptr()) };
    if ret < 0 {
        return Err(SysError::last("ioctl", format!("{raw}, EPIOCGPARAMS")));
    }
    let [a, b, c, d, e, f, prefer, _] = params;
    Ok((u32::from_ne_bytes([a, b, c, d]), u16::from_ne_bytes([e, f]), prefer))
}

/// Sets it (`EPIOCSPARAMS`).
///
/// # Errors
/// As [`busy_poll`]; `EPERM` for many packets at once without `CAP_NET_ADMIN`.
pub fn set_busy_poll(epoll: &impl AsFd, (usecs, budget, prefer): BusyPoll) -> Result<()> {
    const EPIOCSPARAMS: u64 = 0x4008_8a01;
    let raw = epoll.as_fd().as_raw_fd();
    let mut params = [0_u8; 8];
    params[..4].copy_from_slice(&usecs.to_ne_bytes());
    params[4..6].copy_from_slice(&budget.to_ne_bytes());
    params[6] = prefer;
    // SAFETY: the kernel reads eight bytes of `params`, which outlives the call.
    let ret = unsafe { libc::ioctl(raw, EPIOCSPARAMS, params.as_ptr()) };
    if ret < 0 { Err(SysError::last("ioctl", format!("{raw}, EPIOCSPARAMS, {params:?}"))) } else { Ok(()) }
}

/// The number of the next watch of an inotify (`INOTIFY_IOC_SETNEXTWD`, linux/inotify.h).
///
/// # Errors
/// `EINVAL` for a number below 1, `ENOTTY` from a kernel without CONFIG_CHECKPOINT_RESTORE.
pub fn next_watch(inotify: BorrowedFd<'_>, number: i32) -> Result<()> {
    const INOTIFY_IOC_SETNEXTWD: u64 = 0x4004_4900;
    let raw = inotify.as_raw_fd();
    // SAFETY: takes a number, no pointer.
    let ret = unsafe { libc::ioctl(raw, INOTIFY_IOC_SETNEXTWD, number) };
    if ret < 0 { Err(SysError::last("ioctl", format!("{raw}, INOTIFY_IOC_SETNEXTWD, {number}"))) } else { Ok(()) }
}

fn owned(ret: i64, call: &'static str, args: impl FnOnce() -> String) -> Result<OwnedFd> {
    match RawFd::try_from(ret) {
        // SAFETY: the kernel has just made this descriptor; nobody else knows it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(SysError::last(call, args())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::epoll;
    use rustix::event::eventfd;

    fn targets(fd: &OwnedFd) -> String {
        let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).unwrap();
        text.lines().filter(|l| l.starts_with("tfd:")).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn targets_get_the_numbers_of_others_and_of_the_epoll_itself() {
        let efd = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let a = eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
        let b = eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
        let one = Interest { target: a.as_fd(), number: b.as_raw_fd(), events: 1, data: 7, spent: false };
        let two = Interest { target: b.as_fd(), number: efd.as_raw_fd(), events: 1, data: u64::MAX, spent: false };
        let three = Interest { target: b.as_fd(), number: 500, events: 1, data: 8, spent: false };
        register(efd.as_fd(), &[one, two, three]).unwrap();
        let text = targets(&efd);
        for number in [b.as_raw_fd(), efd.as_raw_fd(), 500] {
            assert!(text.contains(&format!("tfd: {number:8} ")), "{text}");
        }
        rustix::io::write(&a, &1u64.to_ne_bytes()).unwrap();
        let mut events = Vec::with_capacity(4);
        epoll::wait(&efd, rustix::buffer::spare_capacity(&mut events), None).unwrap();
        assert_eq!(events.iter().map(|e| e.data.u64()).collect::<Vec<_>>(), [7]);
        assert!(rustix::io::fcntl_getfd(&a).is_ok() && rustix::io::fcntl_getfd(&b).is_ok());
    }
}
