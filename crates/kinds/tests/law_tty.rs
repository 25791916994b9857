//! Pseudo-terminals. One test: their numbers belong to everybody on the machine.

mod law;

use std::os::fd::{AsFd, OwnedFd};

use law::{again, collect, law, refusal, twin};
use rustix::event::PollFlags;
use rustix::fs::OFlags;
use rustix::io::{Errno, read, write};
use rustix::pty::{OpenptFlags, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use yendor_kinds::file::external::Filled;
use yendor_kinds::file::{Record, ptmx};
use yendor_sys::tty;

const ICANON: u32 = 0o2;
const ECHO: u32 = 0o10;
const OPOST: u32 = 1;
const ISIG: u32 = 1;

fn pair() -> (OwnedFd, OwnedFd) {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    unlockpt(&master).unwrap();
    let slave = ptmx::peer(master.as_fd(), OFlags::RDWR).unwrap();
    (master, slave)
}

fn change(fd: &OwnedFd, f: impl FnOnce(&mut tty::Termios)) {
    let mut termios = tty::termios(fd.as_fd()).unwrap();
    f(&mut termios);
    tty::set_termios(fd.as_fd(), &termios).unwrap();
}

fn take(fd: &OwnedFd, most: usize) -> Vec<u8> {
    let mut buffer = vec![0; most];
    let n = read(fd, &mut buffer[..]).unwrap();
    buffer.truncate(n);
    buffer
}

fn has(fd: &OwnedFd, events: PollFlags) -> bool {
    tty::ready(fd.as_fd(), events).unwrap().contains(events)
}

/// Bytes take a moment from one side to the other.
fn arrive(fd: &OwnedFd) {
    for _ in 0..500 {
        if has(fd, PollFlags::IN) {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    panic!("nothing arrives");
}

/// Before Linux 4.13 there was no TIOCGPTPEER; and where /dev/ptmx is missing nothing here can be tested.
#[test]
fn pseudo_terminals() {
    if std::env::var_os(LOOKER).is_some() {
        return look_for_ever();
    }
    settings_and_output();
    lines_and_an_unfinished_one();
    raw_input();
    ends_that_went();
    the_console();
    the_controlling_terminal();
    killed_while_looking();
}

/// Set in a copy of this program that does nothing but look, until it is killed.
const LOOKER: &str = "YENDOR_LAW_TTY_LOOK";

fn look_for_ever() {
    let open = |n| {
        law::directory("/proc/self/fd").as_fd().try_clone_to_owned().and_then(|d| {
            rustix::fs::openat(d, format!("{n}"), OFlags::RDWR | OFlags::NOCTTY, rustix::fs::Mode::empty())
                .map_err(std::io::Error::from)
        })
    };
    // Standard output is a slave; the master cannot be opened anew and comes as standard input.
    let (master, slave) = (std::io::stdin(), open(1).unwrap());
    loop {
        tty::look(master.as_fd(), slave.as_fd()).unwrap();
    }
}

/// Whenever the looker dies, nothing is lost, and the settings are as they were.
fn killed_while_looking() {
    let (master, slave) = pair();
    change(&slave, |t| t.lflag &= !ECHO);
    write(&slave, b"some output\n").unwrap();
    write(&master, b"line\nrest").unwrap();
    arrive(&slave);
    let before = (tty::look(master.as_fd(), slave.as_fd()).unwrap(), tty::termios(slave.as_fd()).unwrap());
    for round in 0..40u64 {
        let mut looker = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "pseudo_terminals"])
            .env(LOOKER, "1")
            .stdin(twin(&master))
            .stdout(twin(&slave))
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_micros(20_000 + round * 731 % 9000));
        assert!(looker.try_wait().unwrap().is_none(), "the looker ended by itself");
        looker.kill().unwrap();
        looker.wait().unwrap();
        // Its child may still be at work.
        std::thread::sleep(std::time::Duration::from_millis(50));
        let after = (tty::look(master.as_fd(), slave.as_fd()).unwrap(), tty::termios(slave.as_fd()).unwrap());
        let text = |q: &tty::Queues| String::from_utf8_lossy(&q.output).into_owned();
        assert!(text(&after.0).contains("some output\r\n"), "{:?}", text(&after.0));
        assert_eq!((&after.0.input, &after.0.ends, after.1), (&before.0.input, &before.0.ends, before.1));
    }
}

fn settings_and_output() {
    let (master, slave) = pair();
    // One more below, so that the number is not the first free one.
    let (below, _) = (pair(), ());
    let (above_master, above_slave) = pair();
    drop(below);
    tcsetwinsize(&master, Winsize { ws_row: 123, ws_col: 45, ws_xpixel: 6, ws_ypixel: 65_535 }).unwrap();
    change(&slave, |t| {
        t.oflag |= OPOST;
        t.cc[0] = 0x7f;
        t.cc[18] = 0xee;
    });
    write(&slave, b"line\n and tail").unwrap();
    tty::set_exclusive(above_slave.as_fd()).unwrap();
    tty::set_packet(above_master.as_fd(), true).unwrap();
    rustix::fs::fchmod(&slave, rustix::fs::Mode::from_raw_mode(0o642)).unwrap();
    let fds = vec![twin(&slave), master, above_slave, above_master, slave];
    let image = collect(&fds.iter().map(AsFd::as_fd).collect::<Vec<_>>());
    assert_eq!(image.entries.len(), 4);
    // What waits is still there.
    assert_eq!(take(&fds[1], 99), b"line\r\n and tail");
    drop(fds);
    let made = again(&image);
    assert_eq!(take(&made[1], 99), b"line\r\n and tail");
    assert_eq!(take_packet(&made[2], &made[3]), b"\0hello");
}

fn take_packet(slave: &OwnedFd, master: &OwnedFd) -> Vec<u8> {
    write(slave, b"hello").unwrap();
    arrive(master);
    take(master, 99)
}

fn lines_and_an_unfinished_one() {
    let (master, slave) = pair();
    change(&slave, |t| {
        t.lflag |= ICANON;
        t.lflag &= !ECHO;
    });
    // Two lines, an end of file behind some bytes, an end of file alone, and an edit with an erased character.
    write(&master, b"one\nsecond\x16\x03\n").unwrap();
    write(&master, b"eof\x04\x04unfinishedx\x7f").unwrap();
    arrive(&slave);
    std::thread::sleep(std::time::Duration::from_millis(20));
    let image = collect(&[master.as_fd(), slave.as_fd()]);
    let Record::Ptmx(record) = &image.entries[0].record else { panic!("no ptmx") };
    let lines: Vec<&[u8]> = record.lines.iter().map(|l| l.0.as_slice()).collect();
    assert_eq!(lines, [&b"one\n"[..], b"second\x03\n", b"eof", b""]);
    assert_eq!(record.input.0, b"unfinished");
    // Still there, and so after the rebuild.
    let check = |master: &OwnedFd, slave: &OwnedFd| {
        for line in [&b"one\n"[..], b"second\x03\n", b"eof", b""] {
            assert!(has(slave, PollFlags::IN));
            assert_eq!(take(slave, 99), line);
        }
        assert!(!has(slave, PollFlags::IN));
        write(master, b" now\n").unwrap();
        arrive(slave);
        assert_eq!(take(slave, 99), b"unfinished now\n");
    };
    check(&master, &slave);
    drop((master, slave));
    let made = again(&image);
    check(&made[0], &made[1]);
}

fn raw_input() {
    let (master, slave) = pair();
    change(&slave, |t| {
        t.lflag &= !(ICANON | ECHO | ISIG);
        t.cc[6] = 200;
    });
    // Fewer than VMIN: poll does not tell.
    write(&master, b"\x03\x04raw\xff\x00").unwrap();
    std::thread::sleep(std::time::Duration::from_millis(20));
    let made = law(vec![master, slave]);
    assert!(!has(&made[1], PollFlags::IN));
    change(&made[1], |t| t.cc[6] = 1);
    arrive(&made[1]);
    assert_eq!(take(&made[1], 99), b"\x03\x04raw\xff\x00");

    // Suspended output stays suspended until somebody types ^Q.
    let (master, slave) = pair();
    change(&slave, |t| t.lflag &= !ECHO);
    write(&master, b"\x13").unwrap();
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert!(!has(&slave, PollFlags::OUT));
    let made = law(vec![master, slave]);
    assert!(!has(&made[1], PollFlags::OUT));
    write(&made[0], b"\x11").unwrap();
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert!(has(&made[1], PollFlags::OUT));
}

fn ends_that_went() {
    let (master, slave) = pair();
    write(&slave, b"bye").unwrap();
    drop(slave);
    let made = law(vec![master]);
    assert_eq!(take(&made[0], 99), b"bye");
    assert_eq!(read(&made[0], &mut [0u8; 1][..]), Err(Errno::IO));

    let (master, slave) = pair();
    drop(master);
    let made = law(vec![slave]);
    assert_eq!(read(&made[0], &mut [0u8; 1][..]), Ok(0));

    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    let made = law(vec![master]);
    assert!(ptmx::peer(made[0].as_fd(), OFlags::RDWR).is_err());
    unlockpt(&made[0]).unwrap();
    assert!(ptmx::peer(made[0].as_fd(), OFlags::RDWR).is_ok());
}

fn the_console() {
    let (_master, opened) = pair();
    let open = |flags| {
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&opened));
        rustix::fs::open(path.as_str(), flags | OFlags::NOCTTY | OFlags::CLOEXEC, rustix::fs::Mode::empty()).unwrap()
    };
    let (slave, second) = (open(OFlags::RDWR), open(OFlags::WRONLY));
    change(&slave, |t| t.lflag &= !ECHO);
    let image = collect(&[slave.as_fd(), second.as_fd()]);
    assert!(image.entries.iter().all(|e| matches!(e.record, Record::Console(_))));
    assert!(image.try_rebuild(Filled::default()).unwrap_err().to_string().contains("--tty"));
    let (other_master, other) = pair();
    let filled = Filled { console: Some(twin(&other)), ..Filled::default() };
    let made = image.try_rebuild(filled).unwrap();
    let again = collect(&made.iter().map(AsFd::as_fd).collect::<Vec<_>>());
    assert_eq!(again.entries, image.entries);
    write(&made[1], b"hello").unwrap();
    assert_eq!(take(&other_master, 9), b"hello");
    assert!(refusal(&[slave.as_fd(), other.as_fd()]).contains("a second terminal from outside"));
}

fn the_controlling_terminal() {
    let (master, slave) = pair();
    let root = law::directory("/");
    let flags = OFlags::RDWR.bits();
    let dev_tty = tty::open_controlling(slave.as_fd(), root.as_fd(), c"dev/tty", flags).unwrap();
    let stat = rustix::fs::fstat(&dev_tty).unwrap();
    assert_eq!((rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)), (5, 0));
    assert!(refusal(&[dev_tty.as_fd()]).contains("which the tree has not opened otherwise"));
    let made = law(vec![dev_tty, master, slave]);
    write(&made[0], b"via /dev/tty").unwrap();
    assert_eq!(take(&made[1], 99), b"via /dev/tty");
}
