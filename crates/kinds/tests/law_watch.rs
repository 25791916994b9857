//! inotify, pidfd, /proc, namespaces, netlink; what refuses by name.

mod law;

use std::os::fd::{AsFd, OwnedFd};

use law::{Place, again, collect, law, refusal};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::fs::{Mode, OFlags};
use rustix::io::read;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::process::{Pid, PidfdFlags, getpid, pidfd_open};
use yendor_kinds::file::Record;
use yendor_sys::{event, sock};

fn open(path: &str, flags: OFlags) -> OwnedFd {
    rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

fn new() -> OwnedFd {
    inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).unwrap()
}

#[test]
fn watches_keep_numbers_and_masks() {
    let place = Place::new();
    let folder = place.0.join("a\n\u{e4} folder");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(place.0.join("file"), b"x").unwrap();
    let fd = new();
    event::next_watch(fd.as_fd(), 4711).unwrap();
    assert_eq!(inotify::add_watch(&fd, &folder, WatchFlags::CREATE | WatchFlags::ONESHOT).unwrap(), 4711);
    event::next_watch(fd.as_fd(), 26).unwrap();
    let flags = WatchFlags::MODIFY | WatchFlags::EXCL_UNLINK;
    assert_eq!(inotify::add_watch(&fd, place.0.join("file"), flags).unwrap(), 26);
    let image = collect(&[fd.as_fd()]);
    let Record::Inotify(record) = &image.entries[0].record else { panic!("no inotify") };
    assert_eq!(record.watches.iter().map(|w| w.number).collect::<Vec<_>>(), [26, 4711]);
    drop(fd);
    let made = again(&image);
    assert!(read(&made[0], &mut [0u8; 99][..]).is_err(), "the restore itself is not told");
    std::fs::write(folder.join("new"), b"").unwrap();
    let mut told = [0u8; 99];
    read(&made[0], &mut told[..]).unwrap();
    assert_eq!(i32::from_ne_bytes(told[..4].try_into().unwrap()), 4711);
}

#[test]
fn unread_events_become_an_overflow() {
    let place = Place::new();
    let fd = new();
    inotify::add_watch(&fd, &place.0, WatchFlags::CREATE).unwrap();
    std::fs::write(place.0.join("early"), b"").unwrap();
    let made = law(vec![fd]);
    let mut told = [0u8; 99];
    assert_eq!(read(&made[0], &mut told[..]).unwrap(), 16);
    // Watch -1, IN_Q_OVERFLOW.
    assert_eq!(told[..8], [(-1i32).to_ne_bytes(), 0x4000u32.to_ne_bytes()].concat());
    std::fs::write(place.0.join("late"), b"").unwrap();
    assert_eq!(read(&made[0], &mut told[..]).unwrap(), 32);
}

#[test]
fn a_watch_that_no_path_leads_to_is_refused() {
    let place = Place::new();
    let kept = open(place.0.to_str().unwrap(), OFlags::DIRECTORY);
    let fd = new();
    inotify::add_watch(&fd, &place.0, WatchFlags::CREATE).unwrap();
    std::fs::remove_dir(&place.0).unwrap();
    let told = law::collect_from(&[fd.as_fd()], true).map(|image| format!("{:?}", image.entries));
    // The kernel takes the watch away with the directory, unless somebody has it open.
    match told {
        Ok(entries) => assert!(entries.contains("watches: []"), "{entries}"),
        Err(e) => assert!(e.to_string().contains("which no path leads to"), "{e}"),
    }
    drop(kept);
}

#[test]
fn pidfds_of_ourselves_and_of_nobody() {
    let _alone = FORKS.lock();
    let own = pidfd_open(getpid(), PidfdFlags::NONBLOCK).unwrap();
    let made = law(vec![own, yendor_sys::process::ended().unwrap()]);
    assert!(rustix::fs::fcntl_getfl(&made[0]).unwrap().contains(OFlags::NONBLOCK));
    let parent = pidfd_open(rustix::process::getppid().unwrap_or(Pid::INIT), PidfdFlags::empty()).unwrap();
    assert!(refusal(&[parent.as_fd()]).contains("a process outside of the tree"));
}

/// A process that one test forks has for a while what another closes and binds again.
static FORKS: std::sync::Mutex<()> = std::sync::Mutex::new(());

#[test]
fn files_of_proc_and_namespaces() {
    let _alone = FORKS.lock();
    let status = open("/proc/self/status", OFlags::RDONLY);
    read(&status, &mut [0u8; 9][..]).unwrap();
    let made = law(vec![
        status,
        open("/proc/self/fd", OFlags::DIRECTORY),
        open("/proc/self/ns/net", OFlags::RDONLY),
        open("/proc/self/ns/user", OFlags::RDONLY),
    ]);
    assert_eq!(rustix::fs::tell(&made[0]).unwrap(), 9);
    // A process that is no more.
    let mut child = std::process::Command::new("/bin/sleep").arg("9").spawn().unwrap();
    let gone = open(&format!("/proc/{}/status", child.id()), OFlags::RDONLY);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(refusal(&[gone.as_fd()]).contains("its process is no more"));
}

#[test]
fn netlink_sockets() {
    let _alone = FORKS.lock();
    let new = |kind| socket_with(AddressFamily::NETLINK, kind, SocketFlags::CLOEXEC, None).unwrap();
    let bound = new(SocketType::RAW);
    sock::netlink_bind(bound.as_fd(), 0x7ffe_0000 | u32::try_from(getpid().as_raw_nonzero().get()).unwrap()).unwrap();
    for group in [1, 9, 32] {
        yendor_sys::inet::set_number(bound.as_fd(), 270, 1, group).unwrap();
    }
    yendor_sys::inet::set_number(bound.as_fd(), 270, 11, 1).unwrap();
    let image = collect(&[bound.as_fd()]);
    let Record::Netlink(record) = &image.entries[0].record else { panic!("no netlink socket") };
    assert_eq!((record.groups.as_slice(), record.switches.as_slice()), (&[1, 9, 32][..], &[11][..]));
    drop(bound);
    again(&image);
    law(vec![new(SocketType::DGRAM)]);
    // A question whose answer waits.
    let asked = new(SocketType::RAW);
    let mut request = [0u8; 32];
    (request[0], request[4], request[6], request[7]) = (32, 18, 1, 3);
    rustix::net::send(&asked, &request, rustix::net::SendFlags::empty()).unwrap();
    assert!(refusal(&[asked.as_fd()]).contains("with unread messages"));
}

#[test]
fn what_cannot_be_checkpointed_is_named() {
    let vsock = socket_with(AddressFamily::from_raw(17), SocketType::RAW, SocketFlags::CLOEXEC, None);
    if let Ok(packet) = vsock {
        assert!(refusal(&[packet.as_fd()]).contains("AF_PACKET"));
    }
    if let Ok(alg) = socket_with(AddressFamily::from_raw(38), SocketType::SEQPACKET, SocketFlags::CLOEXEC, None) {
        assert!(refusal(&[alg.as_fd()]).contains("AF_ALG"));
    }
}
