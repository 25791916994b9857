//! Pipes and named pipes.

mod law;

use std::os::fd::{AsFd, OwnedFd};

use law::{Place, again, collect, law, refusal, twin};
use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, read, write};
use rustix::pipe::{PipeFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with};
use yendor_kinds::file::Record;

fn pipe(flags: PipeFlags) -> (OwnedFd, OwnedFd) {
    pipe_with(flags | PipeFlags::CLOEXEC).unwrap()
}

fn take(fd: &OwnedFd, most: usize) -> Vec<u8> {
    let mut buffer = vec![0; most];
    let n = read(fd, &mut buffer[..]).unwrap();
    buffer.truncate(n);
    buffer
}

#[test]
fn content_capacity_and_flags_come_back_and_the_original_keeps_its_own() {
    let (r, w) = pipe(PipeFlags::empty());
    fcntl_setpipe_size(&w, 1 << 17).unwrap();
    let bytes: Vec<u8> = (0..100_000u32).map(|i| u8::try_from(i % 251).unwrap()).collect();
    write(&w, &bytes).unwrap();
    rustix::fs::fcntl_setfl(&r, OFlags::NONBLOCK).unwrap();
    let image = collect(&[r.as_fd(), w.as_fd()]);
    let made = again(&image);
    assert_eq!(fcntl_getpipe_size(&made[0]).unwrap(), 1 << 17);
    assert_eq!(take(&made[0], 1 << 20), bytes);
    assert_eq!(read(&made[0], &mut [0u8; 1][..]), Err(Errno::AGAIN));
    assert!(!rustix::fs::fcntl_getfl(&made[1]).unwrap().contains(OFlags::NONBLOCK));
    write(&made[1], b"more").unwrap();
    assert_eq!(take(&made[0], 9), b"more");
    assert_eq!(take(&r, 1 << 20), bytes);
}

#[test]
fn many_small_writes_in_a_full_pipe() {
    let (r, w) = pipe(PipeFlags::NONBLOCK);
    // 4097 bytes do not share a page: the pipe is full long before its capacity.
    let mut n = 0;
    while let Ok(written) = write(&w, &[b'x'; 4097]) {
        n += written;
    }
    let made = law(vec![r, w]);
    // Full it stays: one more page does not fit, however few the bytes.
    assert_eq!(write(&made[1], &[b'y'; 4096]), Err(Errno::AGAIN));
    assert_eq!(take(&made[0], 1 << 20).len(), n);
}

#[test]
fn packets_and_plain_bytes_in_one_pipe() {
    let (r, w) = pipe(PipeFlags::NONBLOCK);
    // A whole page: a smaller one would be joined by the packet.
    write(&w, &[b'p'; 4096]).unwrap();
    rustix::fs::fcntl_setfl(&w, OFlags::NONBLOCK | OFlags::DIRECT).unwrap();
    write(&w, b"packet").unwrap();
    rustix::fs::fcntl_setfl(&w, OFlags::NONBLOCK).unwrap();
    write(&w, b"plain again").unwrap();
    let made = law(vec![r, w]);
    assert_eq!(take(&made[0], 8192), [&[b'p'; 4096][..], b"packet"].concat());
    assert_eq!(take(&made[0], 100), b"plain again");
}

#[test]
fn a_small_write_joins_the_last_buffer() {
    let (r, w) = pipe(PipeFlags::NONBLOCK);
    fcntl_setpipe_size(&w, 4096).unwrap();
    write(&w, b"begun").unwrap();
    let made = law(vec![r, w]);
    write(&made[1], b" and ended").unwrap();
    assert_eq!(take(&made[0], 100), b"begun and ended");
}

#[test]
fn packets_stay_packets() {
    let (r, w) = pipe(PipeFlags::DIRECT | PipeFlags::NONBLOCK);
    for packet in [&b"one"[..], b"t", &[0; 4096]] {
        write(&w, packet).unwrap();
    }
    let made = law(vec![r, w]);
    assert_eq!(take(&made[0], 2), b"on");
    assert_eq!(take(&made[0], 100), b"t");
    assert_eq!(take(&made[0], 8192).len(), 4096);
}

#[test]
fn a_single_packet_is_a_packet() {
    let (r, w) = pipe(PipeFlags::DIRECT | PipeFlags::NONBLOCK);
    write(&w, b"alone").unwrap();
    let made = law(vec![r, w]);
    write(&made[1], b"next").unwrap();
    assert_eq!(take(&made[0], 100), b"alone");
}

#[test]
fn widowed_ends_come_back_widowed() {
    let (r, w) = pipe(PipeFlags::empty());
    write(&w, b"last words").unwrap();
    drop(w);
    let made = law(vec![r]);
    assert_eq!(take(&made[0], 100), b"last words");
    assert_eq!(take(&made[0], 100), b"");

    let (r, w) = pipe(PipeFlags::empty());
    drop(r);
    let made = law(vec![w]);
    assert_eq!(write(&made[0], b"x"), Err(Errno::PIPE));
}

#[test]
fn an_end_outside_is_refused() {
    let (r, w) = pipe(PipeFlags::empty());
    assert!(refusal(&[r.as_fd()]).contains("its writing end is held outside"));
    assert!(refusal(&[w.as_fd()]).contains("its reading end is held outside"));
}

#[test]
fn several_descriptions_and_duplicates_of_one_end() {
    let (r, w) = pipe(PipeFlags::empty());
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&w));
    let both = rustix::fs::open(path.as_str(), OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).unwrap();
    let image = collect(&[w.as_fd(), both.as_fd(), w.as_fd(), r.as_fd()]);
    assert_eq!(image.entries.len(), 3);
    assert_eq!(image.ids[0], image.ids[2]);
    drop((r, w, both));
    let made = again(&image);
    write(&made[1], b"through").unwrap();
    assert_eq!(take(&made[3], 9), b"through");
}

#[test]
fn named_pipes() {
    let place = Place::new();
    let path = place.0.join("a\n\u{e4} pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, Mode::from_raw_mode(0o640), 0).unwrap();
    let open = |flags| rustix::fs::open(&path, flags | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty()).unwrap();
    // A reader alone, before any writer.
    law(vec![open(OFlags::RDONLY)]);
    let (r, w) = (open(OFlags::RDONLY), open(OFlags::WRONLY));
    write(&w, b"named").unwrap();
    let image = collect(&[r.as_fd(), w.as_fd()]);
    assert!(refusal(&[r.as_fd()]).contains("its writing end"));
    drop((r, w));
    let made = again(&image);
    assert_eq!(take(&made[0], 99), b"named");
    drop(made);
    let both = open(OFlags::RDWR);
    write(&both, b"self").unwrap();
    let made = law(vec![both]);
    assert!(matches!(collect(&[made[0].as_fd()]).entries[0].record, Record::Fifo(_)));
    assert_eq!(take(&made[0], 99), b"self");
    let lost = twin(&made[0]);
    std::fs::remove_file(&path).unwrap();
    assert!(refusal(&[lost.as_fd()]).contains("no longer leads to"));
}

/// Pipes of one user are small from `fs.pipe-user-pages-soft` on (pipe(7)): that a copy cannot be large is no reason to give up.
#[test]
fn a_user_with_many_pipes() {
    const USER: u32 = 1_054_321;
    let limit = std::fs::read_to_string("/proc/sys/fs/pipe-user-pages-soft").unwrap();
    if !rustix::process::getuid().is_root() || limit.trim() != "16384" {
        eprintln!("skipped: needs root, who can be a user without pipes, and the kernel's own limit of them");
        return;
    }
    let (r, w) = pipe(PipeFlags::NONBLOCK);
    write(&w, b"little").unwrap();
    let (full, full_write) = pipe(PipeFlags::NONBLOCK);
    write(&full_write, &[b'x'; 1 << 16]).unwrap();
    let user = rustix::process::Uid::from_raw(USER);
    rustix::thread::set_thread_res_uid(user, user, rustix::process::Uid::ROOT).unwrap();
    let large: Vec<_> = (0..64).map(|_| pipe(PipeFlags::empty())).collect();
    for (_, w) in &large {
        fcntl_setpipe_size(w, 1 << 20).unwrap();
    }
    assert_eq!(fcntl_setpipe_size(&pipe(PipeFlags::empty()).1, 1 << 16), Err(Errno::PERM));
    let image = collect(&[r.as_fd(), w.as_fd()]);
    let refused = law::try_collect(&[full.as_fd(), full_write.as_fd()]).err().expect("more than a small pipe takes");
    rustix::thread::set_thread_res_uid(rustix::process::Uid::ROOT, rustix::process::Uid::ROOT, user).unwrap();
    drop(large);
    assert!(format!("{refused:?}").contains("F_SETPIPE_SZ"), "{refused:?}");
    let made = again(&image);
    assert_eq!(take(&made[0], 100), b"little");
    assert_eq!(fcntl_getpipe_size(&made[0]).unwrap(), 1 << 16);
}
