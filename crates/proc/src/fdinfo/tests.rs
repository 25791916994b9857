use super::{Detail, EpollTarget, Eventfd, FanotifyTarget, Handle, Timerfd, Userfaultfd, parse};
use crate::locks::Kind;
use crate::{Dev, hostile};

/// The common head of an anonymous inode, as captured, and the lines of the kind.
fn text(kind: &str) -> Vec<u8> {
    format!("pos:\t0\nflags:\t02000002\nmnt_id:\t17\nino:\t1038\n{kind}").into_bytes()
}

const EVENTFD: &str = "eventfd-count: fffffffffffffffd\neventfd-id: 1\neventfd-semaphore: 1\n";
const EPOLL: &str = "tfd:        5 events:       19 data:                0  pos:0 ino:26bc sdev:f\n\
    tfd:        3 events: 80000019 data: ffffffffffffffff  pos:0 ino:40e sdev:10\n";
const INOTIFY: &str = "inotify wd:2 ino:1 sdev:15 mask:80000002 ignored_mask:0 \
    fhandle-bytes:c fhandle-type:81 f_handle:010000000000000000000000\n\
    inotify wd:1 ino:3c4a7 sdev:fe00000 mask:fff ignored_mask:0 \n";
const FANOTIFY: &str = "fanotify flags:0 event-flags:8000\n\
    fanotify ino:1 sdev:15 mflags:0 mask:0 ignored_mask:1 fhandle-bytes:c fhandle-type:81 f_handle:010000000000000000000000\n\
    fanotify sdev:fe00000 mflags:0 mask:20 ignored_mask:0\n\
    fanotify mnt_id:1b mflags:40 mask:20 ignored_mask:0\n\
    fanotify ino:3c4a7 sdev:fe00000 mflags:0 mask:3 ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:a7c4030000000000\n";
const TIMERFD: &str =
    "clockid: 1\nticks: 0\nsettime flags: 01\nit_value: (9223370533, 936063156)\nit_interval: (7, 5)\n";
const USERFAULTFD: &str = "pending:\t0\ntotal:\t0\nAPI:\taa:0:80000000000001ff\n";
const IO_URING: &str = "SqMask:\t0x3\nSqHead:\t0\nSQEs:\t0\n    1: opcode:NOP\nPollList:\nNAPI:\tdisabled\n";
const LOCKS: &[u8] = b"pos:\t100\nflags:\t02102002\nmnt_id:\t27\nino:\t10010706\n\
lock:\t1: FLOCK  ADVISORY  WRITE 6036 fe:00:10010706 0 EOF\nlock:\t2: POSIX  ADVISORY  READ 6036 fe:00:10010706 10 14\n\
lock:\t3: OFDLCK ADVISORY  WRITE -1 fe:00:10010706 20 EOF\n";

fn detail(kind: &str) -> Detail {
    let info = parse(&text(kind)).unwrap();
    assert_eq!((info.pos, info.flags, info.mnt_id, info.ino), (0, 0o2_000_002, 17, Some(1038)));
    assert!(info.leftover.is_empty(), "{:?}", info.leftover);
    info.detail
}

#[test]
fn plain_files() {
    assert_eq!(detail(""), Detail::None);
    let old = parse(b"pos:\t9223372036854775807\nflags:\t0100000\nmnt_id:\t0\n").unwrap();
    assert_eq!((old.pos, old.flags, old.ino), (i64::MAX, 0o100_000, None));
}

#[test]
fn eventfd() {
    let full = Eventfd { count: 0xffff_ffff_ffff_fffd, id: Some(1), semaphore: Some(true) };
    assert_eq!(detail(EVENTFD), Detail::Eventfd(full));
    let old = Eventfd { count: 7, id: None, semaphore: None };
    assert_eq!(detail("eventfd-count:                7\n"), Detail::Eventfd(old));
    assert!(parse(&text("eventfd-count: 7\neventfd-semaphore: 2\n")).is_err());
}

#[test]
fn epoll() {
    let Detail::Epoll(targets) = detail(EPOLL) else { panic!("not an epoll") };
    assert_eq!(targets.len(), 2);
    let second = EpollTarget {
        tfd: 3,
        events: 0x8000_0019,
        data: u64::MAX,
        pos: 0,
        ino: 0x40e,
        dev: Dev { major: 0, minor: 16 },
    };
    assert_eq!(targets[1], second);
}

#[test]
fn inotify() {
    let Detail::Inotify(watches) = detail(INOTIFY) else { panic!("not an inotify") };
    assert_eq!((watches[0].wd, watches[0].mask), (2, 0x8000_0002));
    let handle = watches[0].handle.as_ref().unwrap();
    assert_eq!((handle.kind, handle.bytes.as_slice()), (0x81, &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..]));
    assert_eq!((watches[1].ino, watches[1].dev), (0x3c4a7, Dev { major: 254, minor: 0 }));
    assert_eq!(watches[1].handle, None);
    let short = INOTIFY.replace("fhandle-bytes:c", "fhandle-bytes:b");
    assert_eq!(parse(&text(&short)).unwrap_err().what, "f_handle");
}

#[test]
fn fanotify() {
    let Detail::Fanotify { flags, event_flags, marks } = detail(FANOTIFY) else { panic!("not a fanotify") };
    assert_eq!((flags, event_flags, marks.len()), (0, 0x8000, 4));
    assert_eq!(marks[1].target, FanotifyTarget::FileSystem(Dev { major: 254, minor: 0 }));
    assert_eq!((&marks[2].target, marks[2].mark_flags, marks[2].mask), (&FanotifyTarget::Mount(0x1b), 0x40, 0x20));
    let handle = Some(Handle { kind: 1, bytes: vec![0xa7, 0xc4, 3, 0, 0, 0, 0, 0] });
    assert_eq!(marks[3].target, FanotifyTarget::Inode { ino: 0x3c4a7, dev: Dev { major: 254, minor: 0 }, handle });
    let newer = "fanotify flags:0 event-flags:0\nfanotify mnt_ns:4026531841 mflags:0 mask:1000000 ignored_mask:0\n";
    let Detail::Fanotify { marks, .. } = detail(newer) else { panic!("not a fanotify") };
    assert_eq!(marks[0].target, FanotifyTarget::MountNamespace(4_026_531_841));
    let unknown = "fanotify flags:0 event-flags:0\nfanotify moon:1 mask:0\n";
    assert_eq!(parse(&text(unknown)).unwrap().leftover, [b"fanotify moon:1 mask:0"]);
}

#[test]
fn timers_signals_and_processes() {
    let timer = Timerfd { clock: 1, ticks: 0, settime_flags: 1, value: (9_223_370_533, 936_063_156), interval: (7, 5) };
    assert_eq!(detail(TIMERFD), Detail::Timerfd(timer));
    assert_eq!(parse(&text("clockid: 1\nticks: 0\n")).unwrap_err().what, "settime flags");
    assert_eq!(detail("sigmask:\t8000000000000200\n"), Detail::Signalfd { mask: 0x8000_0000_0000_0200 });
    assert_eq!(detail("Pid:\t6036\nNSpid:\t6036\t2\n"), Detail::Pidfd { pid: 6036, ns_pids: vec![6036, 2] });
    assert_eq!(detail("Pid:\t-1\nNSpid:\t-1\n"), Detail::Pidfd { pid: -1, ns_pids: vec![-1] });
}

#[test]
fn the_rest() {
    assert_eq!(detail("tty-index:\t0\n"), Detail::TtyIndex(0));
    assert_eq!(detail("scm_fds: 2\n"), Detail::UnixSocket { scm_fds: 2 });
    let uffd = Userfaultfd { pending: 0, total: 0, api: 0xaa, features: 0, available: 0x8000_0000_0000_01ff };
    assert_eq!(detail(USERFAULTFD), Detail::Userfaultfd(uffd));
    let Detail::IoUring(lines) = detail(IO_URING) else { panic!("not an io_uring") };
    assert_eq!(lines.len(), 6);
    assert_eq!(lines[3], b"    1: opcode:NOP");
}

#[test]
fn locks() {
    let info = parse(LOCKS).unwrap();
    assert_eq!((info.pos, info.locks.len(), &info.detail), (100, 3, &Detail::None));
    assert_eq!((info.locks[1].kind, info.locks[1].start, info.locks[1].end), (Kind::Posix, 10, Some(14)));
    assert_eq!((info.locks[2].kind, info.locks[2].pid), (Kind::Ofd, -1));
}

#[test]
fn unknown_lines_are_kept() {
    let map = parse(&text("map_type:\t2\nkey_size:\t4\nodd\n")).unwrap();
    assert_eq!(map.leftover, [&b"map_type:\t2"[..], b"key_size:\t4", b"odd"]);
    let two = parse(&text("sigmask:\t1\nsigmask:\t2\n")).unwrap();
    assert_eq!((two.detail, two.leftover), (Detail::Signalfd { mask: 1 }, vec![b"sigmask:\t2".to_vec()]));
    let mixed = parse(&text(&format!("{EPOLL}scm_fds: 2\n"))).unwrap();
    assert_eq!(mixed.leftover, [b"scm_fds: 2"]);
    assert!(parse(&text("sigmask:\t1 2\n")).is_err());
    assert_eq!(parse(b"pos:\t0\nmnt_id:\t1\n").unwrap_err().what, "flags");
    assert!(parse(b"").is_err());
}

#[test]
fn hostile_input() {
    hostile::survives(LOCKS, parse);
    for kind in [EVENTFD, EPOLL, INOTIFY, FANOTIFY, TIMERFD, USERFAULTFD, IO_URING, "Pid:\t6036\nNSpid:\t6036\t2\n"] {
        hostile::survives(&text(kind), parse);
        hostile::refuses_cuts(&text(kind), parse);
    }
}

#[test]
fn this_process() {
    let _pair = std::os::unix::net::UnixStream::pair().unwrap();
    let mut seen = 0;
    for entry in std::fs::read_dir("/proc/self/fdinfo").unwrap() {
        // Other test threads open and close descriptors meanwhile.
        if let Ok(text) = std::fs::read(entry.unwrap().path()) {
            assert_eq!(parse(&text).unwrap().leftover, Vec::<Vec<u8>>::new());
            seen += 1;
        }
    }
    assert!(seen > 2);
}
