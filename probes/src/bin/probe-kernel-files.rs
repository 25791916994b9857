//! Files that are windows into the kernel: below /proc, namespaces, netlink sockets.
#![allow(unsafe_code)]

use probe::{expect, expect_that, field, ok, own};
use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};

fn open(path: &str, flags: i32) -> OwnedFd {
    let path = CString::new(path).unwrap();
    own("open", unsafe { libc::open(path.as_ptr(), flags) })
}

fn read_from_start(fd: &OwnedFd) -> String {
    let mut text = [0_u8; 8192];
    let n = ok("pread", unsafe { libc::pread(fd.as_raw_fd(), text.as_mut_ptr().cast(), text.len(), 0) });
    String::from_utf8_lossy(&text[..n as usize]).into_owned()
}

fn link(fd: &OwnedFd) -> String {
    std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap().to_string_lossy().into_owned()
}

fn inode(path: &str) -> String {
    std::fs::read_link(path).unwrap().to_string_lossy().into_owned()
}

/// Port and groups.
fn name(fd: &OwnedFd) -> (u32, u32) {
    unsafe {
        let mut address: libc::sockaddr_nl = std::mem::zeroed();
        let mut length = size_of::<libc::sockaddr_nl>() as u32;
        ok("getsockname", libc::getsockname(fd.as_raw_fd(), (&raw mut address).cast(), &mut length));
        (address.nl_pid, address.nl_groups)
    }
}

/// RTMGRP_LINK and RTMGRP_IPV4_IFADDR.
const GROUPS: u32 = 1 | 0x10;

fn netlink(port: Option<u32>) -> OwnedFd {
    let fd = own("socket", unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) });
    if let Some(port) = port {
        unsafe {
            let mut address: libc::sockaddr_nl = std::mem::zeroed();
            (address.nl_family, address.nl_pid, address.nl_groups) = (libc::AF_NETLINK as u16, port, GROUPS);
            let length = size_of::<libc::sockaddr_nl>() as u32;
            ok("bind", libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length));
            let group = 9_i32; // RTNLGRP_IPV6_IFADDR
            ok("setsockopt", libc::setsockopt(fd.as_raw_fd(), 270, 1, (&raw const group).cast(), 4));
        }
    }
    fd
}

/// The number of links that a dump tells.
fn links(fd: &OwnedFd) -> usize {
    let mut request = [0_u8; 32];
    request[0] = 32;
    (request[4], request[6], request[7]) = (18, 1, 3); // RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP
    ok("send", unsafe { libc::send(fd.as_raw_fd(), request.as_ptr().cast(), request.len(), 0) });
    let mut count = 0;
    loop {
        let mut text = [0_u8; 32_768];
        let n = ok("recv", unsafe { libc::recv(fd.as_raw_fd(), text.as_mut_ptr().cast(), text.len(), 0) }) as usize;
        let mut at = 0;
        while at + 16 <= n {
            let length = u32::from_ne_bytes(text[at..at + 4].try_into().unwrap()) as usize;
            match u16::from_ne_bytes(text[at + 4..at + 6].try_into().unwrap()) {
                3 => return count,
                _ => count += 1,
            }
            at += length.max(16).next_multiple_of(4);
        }
    }
}

struct State {
    proc: [OwnedFd; 4],
    namespaces: [OwnedFd; 2],
    netlink: [OwnedFd; 2],
    links: [String; 4],
    names: [(u32, u32); 2],
}

fn setup() -> State {
    let proc = [
        open("/proc/self/status", libc::O_RDONLY | libc::O_CLOEXEC),
        open("/proc/self/fd", libc::O_RDONLY | libc::O_DIRECTORY),
        open("/proc/uptime", libc::O_RDONLY),
        open("/proc/self/comm", libc::O_RDWR),
    ];
    let mut some = [0_u8; 6];
    ok("read", unsafe { libc::read(proc[0].as_raw_fd(), some.as_mut_ptr().cast(), some.len()) });
    let namespaces = ["net", "user"].map(|name| open(&format!("/proc/self/ns/{name}"), libc::O_RDONLY));
    let netlink = [netlink(Some(0x7fff_0000 + std::process::id())), netlink(None)];
    let links = proc.each_ref().map(link);
    let names = netlink.each_ref().map(name);
    State { proc, namespaces, netlink, links, names }
}

fn check(state: State) {
    let State { proc, namespaces, netlink, links: before, names } = state;
    expect("paths", proc.each_ref().map(link), before);
    let pid = std::process::id().to_string();
    expect("own status", field(&read_from_start(&proc[0]), "Pid"), pid);
    let position = unsafe { libc::lseek(proc[0].as_raw_fd(), 0, libc::SEEK_CUR) };
    expect("position", position, 6);
    let comm = read_from_start(&proc[3]);
    expect_that("own name", !comm.is_empty(), &comm);
    expect_that("uptime", read_from_start(&proc[2]).contains('.'), 0);
    for (fd, name) in namespaces.iter().zip(["net", "user"]) {
        expect("own namespace", link(fd), inode(&format!("/proc/self/ns/{name}")));
    }
    expect("names of netlink sockets", netlink.each_ref().map(self::name), names);
    expect("no port before the first message", self::name(&netlink[1]).0, 0);
    let interfaces = std::fs::read_to_string("/proc/self/net/dev").unwrap().lines().count() - 2;
    expect("interfaces that netlink tells", links(&netlink[1]), interfaces);
}

fn main() {
    probe::run(setup, check)
}
