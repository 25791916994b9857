//! The init of a virtual machine of `cargo xtask lab`, and the tests that it runs.
//!
//! As `/init` of the initramfs it makes a root file system that one can pivot from, mounts what a host has, loads
//! modules and policies, runs [`table::TESTS`] in a child, and writes what became of it to qemu's exit device.
//!
//! Other uses: `lab-guest run` runs the tests; `lab-guest enter MODULE LABEL COMMAND...` starts a command with a label,
//! `lab-guest delegated COMMAND...` in a cgroup of its own.
#![allow(unsafe_code)]

mod apparmor;
mod enter;
mod init;
mod labels;
mod limits;
mod place;
mod selinux;
mod smack;
mod table;
mod tomoyo;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["run"] => table::run(),
        ["hold-udp"] => hold_udp(),
        ["hold-sockets", label] => hold_sockets(label),
        ["hold-smack", label] => hold_smack(label),
        ["hold-memory", mebibytes] => hold_memory(mebibytes),
        ["hold-labels", labels @ ..] => hold_labels(labels),
        ["enter", module, label, command @ ..] => enter::enter(module, label, command),
        ["delegated", command @ ..] => limits::enter(command),
        ["second"] => init::second(),
        _ if std::process::id() == 1 => init::first(),
        _ => {
            eprintln!("lab-guest is the init of a virtual machine: cargo xtask lab");
            ExitCode::from(2)
        }
    }
}

/// A program with a connected socket, and an open file.
fn hold_udp() -> ExitCode {
    let file = std::fs::File::create("/tmp/forbidden");
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").and_then(|s| s.connect("127.0.0.1:9").map(|()| s));
    println!("{}", if socket.is_ok() && file.is_ok() { "ready" } else { "no socket, or no file" });
    std::thread::sleep(std::time::Duration::from_secs(1000));
    ExitCode::SUCCESS
}

/// A program with a System V segment, and sockets as 3, 4 and 5: one with this label, and a pair with its own; and a pipe.
fn hold_sockets(label: &str) -> ExitCode {
    let choose = |text: &str| std::fs::write("/proc/self/attr/sockcreate", text);
    let labelled = choose(label).and_then(|()| std::net::UdpSocket::bind("127.0.0.1:0"));
    let pair = choose("\0").and_then(|()| std::os::unix::net::UnixStream::pair());
    let pipe = std::io::pipe();
    // SAFETY: numbers only.
    let segment = unsafe { libc::shmget(libc::IPC_PRIVATE, 4096, 0o600) };
    match (labelled, pair, pipe) {
        (Ok(_labelled), Ok(_pair), Ok(_pipe)) if segment >= 0 => {
            println!("ready");
            std::thread::sleep(std::time::Duration::from_secs(1000));
            ExitCode::SUCCESS
        }
        failed => {
            println!("{failed:?}, {segment}");
            ExitCode::FAILURE
        }
    }
}

/// A program with so much memory.
fn hold_memory(mebibytes: &str) -> ExitCode {
    let memory = vec![1_u8; mebibytes.parse::<usize>().expect("a number") << 20];
    println!("ready");
    std::thread::sleep(std::time::Duration::from_secs(1000));
    ExitCode::from(memory[0])
}

/// A program with a socket that it has given this label, of what goes out.
fn hold_smack(label: &str) -> ExitCode {
    let socket = std::os::unix::net::UnixDatagram::unbound().expect("a socket");
    let (fd, name) = (std::os::fd::AsRawFd::as_raw_fd(&socket), c"security.SMACK64IPOUT");
    // SAFETY: a descriptor of ours, a string with its zero, and bytes with their length.
    let given = unsafe { libc::fsetxattr(fd, name.as_ptr(), label.as_ptr().cast(), label.len(), 0) };
    if given != 0 {
        println!("{:?}", std::io::Error::last_os_error());
        return ExitCode::FAILURE;
    }
    println!("ready");
    std::thread::sleep(std::time::Duration::from_secs(1000));
    ExitCode::SUCCESS
}

/// A program with labels for what is to come: `FILE=LABEL`.
fn hold_labels(labels: &[&str]) -> ExitCode {
    for (file, label) in labels.iter().filter_map(|one| one.split_once('=')) {
        if let Err(error) = std::fs::write(format!("/proc/self/attr/{file}"), label) {
            println!("{file}: {error}");
            return ExitCode::FAILURE;
        }
    }
    println!("ready");
    std::thread::sleep(std::time::Duration::from_secs(1000));
    ExitCode::SUCCESS
}
