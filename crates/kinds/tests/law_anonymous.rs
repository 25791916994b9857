//! eventfd, timerfd, signalfd, epoll, memfd.

mod law;

use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use law::{again, collect, law, refusal, twin};
use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};
use rustix::fs::{MemfdFlags, OFlags, SealFlags};
use rustix::io::{Errno, read, write};
use rustix::time::{ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags};
use rustix::time::{clock_gettime, timerfd_create, timerfd_gettime, timerfd_settime};
use yendor_kinds::file::Record;

fn number(fd: &OwnedFd) -> Result<u64, Errno> {
    let mut word = [0u8; 8];
    read(fd, &mut word[..])?;
    Ok(u64::from_ne_bytes(word))
}

#[test]
fn eventfds() {
    let make = |count: u64, flags| {
        let fd = eventfd(0, flags | EventfdFlags::CLOEXEC).unwrap();
        if count > 0 {
            write(&fd, &count.to_ne_bytes()).unwrap();
        }
        fd
    };
    let made = law(vec![
        make(0, EventfdFlags::NONBLOCK),
        make(u64::MAX - 1, EventfdFlags::empty()),
        make((1 << 40) + 3, EventfdFlags::SEMAPHORE | EventfdFlags::NONBLOCK),
    ]);
    assert_eq!(number(&made[0]), Err(Errno::AGAIN));
    assert_eq!(number(&made[1]), Ok(u64::MAX - 1));
    assert_eq!((number(&made[2]), number(&made[2])), (Ok(1), Ok(1)));
    assert!(!rustix::fs::fcntl_getfl(&made[1]).unwrap().contains(OFlags::NONBLOCK));
}

#[test]
fn signalfds() {
    let mask = 1 << 63 | 1 << 33 | 1 << 9;
    let made = law(vec![yendor_sys::event::signalfd(mask).unwrap(), yendor_sys::event::signalfd(0).unwrap()]);
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", made[0].as_raw_fd())).unwrap();
    assert!(text.contains(&format!("sigmask:\t{mask:016x}")), "{text}");
}

fn spec(value: Duration, interval: Duration) -> Itimerspec {
    let one =
        |d: Duration| Timespec { tv_sec: i64::try_from(d.as_secs()).unwrap(), tv_nsec: i64::from(d.subsec_nanos()) };
    Itimerspec { it_interval: one(interval), it_value: one(value) }
}

/// Equal but for the moment between reading a clock and reading a timer.
fn nearly(a: &mut Record, b: &mut Record) {
    let (Record::Timerfd(a), Record::Timerfd(b)) = (a, b) else { panic!("no timerfds") };
    let nanos = |e: Option<(i64, u32)>| e.map(|(s, n)| i128::from(s) * 1_000_000_000 + i128::from(n));
    match (nanos(a.expiry), nanos(b.expiry)) {
        (None, None) => {}
        // Never earlier by more than the collecting takes; a second on a loaded machine is generous.
        (Some(x), Some(y)) => assert!((y - x).abs() < 1_000_000_000, "{a:?} {b:?}"),
        _ => panic!("{a:?} {b:?}"),
    }
    b.expiry = a.expiry;
    assert_eq!(a, b);
}

#[test]
fn timerfds() {
    let zero = Duration::ZERO;
    let year = Duration::from_secs(365 * 86_400);
    let timer = |clock| timerfd_create(clock, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK).unwrap();
    let set =
        |fd: &OwnedFd, flags, value, interval| timerfd_settime(fd, flags, &spec(value, interval)).map(|_| ()).unwrap();
    let none = TimerfdTimerFlags::empty();
    let wall = Duration::from_secs(u64::try_from(clock_gettime(ClockId::Realtime).tv_sec).unwrap());
    let unarmed = timer(TimerfdClockId::Monotonic);
    let once = timer(TimerfdClockId::Monotonic);
    set(&once, none, year, zero);
    let absolute = timer(TimerfdClockId::Realtime);
    let cancel = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
    set(&absolute, cancel, wall + year, Duration::new(7, 5));
    let relative = timer(TimerfdClockId::Realtime);
    set(&relative, none, year, zero);
    let boot = timer(TimerfdClockId::Boottime);
    set(&boot, TimerfdTimerFlags::ABSTIME, Duration::from_secs(9_000_000_000), zero);
    let fired = timer(TimerfdClockId::Monotonic);
    set(&fired, none, Duration::from_nanos(1), zero);
    let periodic = timer(TimerfdClockId::Monotonic);
    set(&periodic, none, Duration::from_nanos(1), Duration::from_secs(10_000));
    std::thread::sleep(Duration::from_millis(2));
    let fds = [&unarmed, &once, &absolute, &relative, &boot, &fired, &periodic];
    let mut first = collect(&fds.map(AsFd::as_fd));
    let made = first.rebuild();
    let mut second = collect(&made.iter().map(AsFd::as_fd).collect::<Vec<_>>());
    for (a, b) in first.entries.iter_mut().zip(&mut second.entries) {
        nearly(&mut a.record, &mut b.record);
        assert_eq!(a, b);
    }
    assert_eq!(number(&made[0]), Err(Errno::AGAIN));
    assert_eq!(number(&made[5]), Ok(1));
    assert_eq!(number(&made[6]), Ok(1));
    let left = timerfd_gettime(&made[6]).unwrap().it_value.tv_sec;
    assert!((9_000..10_000).contains(&left), "{left}");
}

#[test]
fn a_timer_that_is_due_before_the_rebuild_fires_then() {
    let fd = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC).unwrap();
    timerfd_settime(&fd, TimerfdTimerFlags::empty(), &spec(Duration::from_millis(200), Duration::ZERO)).unwrap();
    let image = collect(&[fd.as_fd()]);
    assert!(matches!(&image.entries[0].record, Record::Timerfd(t) if t.expiry.is_some() && t.ticks == 0));
    std::thread::sleep(Duration::from_millis(250));
    assert_eq!(number(&image.rebuild()[0]), Ok(1));
}

#[test]
fn unread_expirations_of_a_periodic_timer_are_counted() {
    let fd = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC).unwrap();
    let milli = Duration::from_millis(1);
    timerfd_settime(&fd, TimerfdTimerFlags::empty(), &spec(milli, milli)).unwrap();
    std::thread::sleep(Duration::from_millis(30));
    let image = collect(&[fd.as_fd()]);
    let Record::Timerfd(t) = &image.entries[0].record else { panic!("no timerfd") };
    assert!(t.ticks >= 30, "{t:?}");
    assert!(number(&image.rebuild()[0]).unwrap() >= t.ticks);
}

fn add(epoll: &OwnedFd, target: &OwnedFd, data: u64, flags: epoll::EventFlags) {
    epoll::add(epoll, target, epoll::EventData::new_u64(data), flags).unwrap();
}

fn ready(epoll: &OwnedFd) -> Vec<u64> {
    let mut events = Vec::with_capacity(16);
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    epoll::wait(epoll, rustix::buffer::spare_capacity(&mut events), Some(&at_once)).unwrap();
    let mut data: Vec<u64> = events.iter().map(|e| e.data.u64()).collect();
    data.sort_unstable();
    data
}

fn counter(count: u64) -> OwnedFd {
    let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
    write(&fd, &count.to_ne_bytes()).unwrap();
    fd
}

fn new_epoll() -> OwnedFd {
    epoll::create(epoll::CreateFlags::CLOEXEC).unwrap()
}

#[test]
fn epolls_watch_what_they_watched() {
    use epoll::EventFlags as E;
    let (a, b, c, d) = (counter(1), counter(0), counter(1), counter(1));
    let (outer, inner, empty) = (new_epoll(), new_epoll(), new_epoll());
    add(&inner, &a, u64::MAX, E::IN | E::ET);
    add(&inner, &b, 2, E::IN | E::RDHUP | E::PRI);
    add(&inner, &c, 3, E::IN | E::ONESHOT);
    add(&inner, &d, 4, E::IN | E::EXCLUSIVE);
    add(&outer, &inner, 5, E::IN);
    assert_eq!(ready(&inner), [3, 4, u64::MAX]);
    // The one-shot has fired, the edge was seen.
    assert_eq!(ready(&inner), [4]);
    let fds = vec![outer, inner, a, b, c, d, empty];
    let made = law(fds);
    assert_eq!(ready(&made[0]), [5]);
    assert_eq!(ready(&made[1]), [4, u64::MAX]);
    assert_eq!(ready(&made[1]), [4]);
    write(&made[3], &1u64.to_ne_bytes()).unwrap();
    assert_eq!(ready(&made[1]), [2, 4]);
}

#[test]
fn a_spent_one_shot_that_is_not_ready_stays_quiet() {
    let (r, w) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let epoll = new_epoll();
    add(&epoll, &r, 6, epoll::EventFlags::IN | epoll::EventFlags::ONESHOT);
    write(&w, b"x").unwrap();
    assert_eq!(ready(&epoll), [6]);
    read(&r, &mut [0u8; 1][..]).unwrap();
    let image = collect(&[epoll.as_fd(), r.as_fd(), w.as_fd()]);
    let made = image.rebuild();
    write(&made[2], b"y").unwrap();
    assert_eq!(ready(&made[0]), [] as [u64; 0]);
    epoll::modify(&made[0], &made[1], epoll::EventData::new_u64(7), epoll::EventFlags::IN).unwrap_err();
}

#[test]
fn an_epoll_finds_a_description_whose_number_is_another_file_now() {
    let (epoll, a, b) = (new_epoll(), counter(1), counter(0));
    let number = a.as_raw_fd();
    add(&epoll, &a, 1, epoll::EventFlags::IN);
    let moved = twin(&a);
    drop(a);
    let again_there = rustix::io::fcntl_dupfd_cloexec(&b, number).unwrap();
    assert!(again_there.as_raw_fd() >= number);
    add(&epoll, &again_there, 2, epoll::EventFlags::IN);
    let made = law(vec![epoll, moved, b]);
    assert_eq!(ready(&made[0]), [1]);
}

#[test]
fn an_epoll_with_a_target_outside_is_refused() {
    let (epoll, a, b) = (new_epoll(), counter(0), counter(0));
    add(&epoll, &a, 0, epoll::EventFlags::IN);
    assert!(refusal(&[epoll.as_fd(), b.as_fd()]).contains("nobody in the tree holds"));
}

#[test]
fn memfds_with_holes_seals_names_and_positions() {
    let name = &b"\xff / na\nme"[..];
    let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    let mut file = std::fs::File::from(fd);
    file.set_len((1 << 33) + 17).unwrap();
    file.write_all(b"start").unwrap();
    file.seek(SeekFrom::Start(1 << 32)).unwrap();
    file.write_all(&vec![7; 10_000]).unwrap();
    let fd = OwnedFd::from(file);
    let other = rustix::fs::open(
        format!("/proc/self/fd/{}", fd.as_raw_fd()).as_str(),
        OFlags::RDONLY | OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )
    .unwrap();
    rustix::fs::fchmod(&fd, rustix::fs::Mode::from_raw_mode(0o640)).unwrap();
    rustix::fs::fcntl_add_seals(&fd, SealFlags::FUTURE_WRITE | SealFlags::GROW | SealFlags::SEAL).unwrap();
    let plain = rustix::fs::memfd_create("plain", MemfdFlags::CLOEXEC).unwrap();
    let made = law(vec![fd, other, plain]);
    let mut file = std::fs::File::from(twin(&made[1]));
    assert_eq!(file.stream_position().unwrap(), 0);
    let mut start = [0; 6];
    file.read_exact(&mut start).unwrap();
    assert_eq!(&start, b"start\0");
    file.seek(SeekFrom::Start((1 << 32) + 9_999)).unwrap();
    let mut end = [0; 2];
    file.read_exact(&mut end).unwrap();
    assert_eq!(end, [7, 0]);
    assert_eq!(write(&made[0], b"x"), Err(Errno::PERM));
    assert_eq!(rustix::fs::fcntl_get_seals(&made[2]).unwrap(), SealFlags::SEAL);
    let link = std::fs::read_link(format!("/proc/self/fd/{}", made[0].as_raw_fd())).unwrap();
    assert!(std::os::unix::ffi::OsStrExt::as_bytes(link.as_os_str()).starts_with(b"/memfd:\xff / na\nme"));
}

#[test]
fn a_memfd_that_may_not_be_executed() {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::NOEXEC_SEAL;
    let Ok(fd) = rustix::fs::memfd_create("n", flags) else { panic!("memfd_create(MFD_NOEXEC_SEAL) needs Linux 6.3") };
    let image = collect(&[fd.as_fd()]);
    let Record::Memfd(m) = &image.entries[0].record else { panic!("no memfd") };
    assert_eq!((m.mode & 0o111, m.seals & SealFlags::EXEC.bits()), (0, SealFlags::EXEC.bits()));
    again(&image);
}

#[test]
fn thousands_of_anonymous_files_are_told_apart() {
    let fds: Vec<OwnedFd> = (0..200).map(counter).collect();
    let mut borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    borrowed.extend_from_within(..100);
    let image = collect(&borrowed);
    assert_eq!(image.entries.len(), 200);
    assert_eq!(image.ids[..100], image.ids[200..]);
}
