//! From the initramfs to a machine that looks like a host.

use std::ffi::{CStr, CString};
use std::fs;
use std::io::{Error, ErrorKind};
use std::os::fd::IntoRawFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitCode};

const SELF: &str = "/lab/lab-guest";
const NEW: &str = "/new";

/// What a host has, in the order of mounting: directory, type, options. What the kernel does not know is left out.
const MOUNTS: &[(&str, &CStr, &CStr)] = &[
    ("/proc", c"proc", c""),
    ("/sys", c"sysfs", c""),
    ("/dev", c"devtmpfs", c""),
    ("/dev/pts", c"devpts", c"ptmxmode=0666,mode=0620"),
    ("/dev/shm", c"tmpfs", c"mode=1777"),
    ("/tmp", c"tmpfs", c"mode=1777"),
    ("/run", c"tmpfs", c"mode=0755"),
    ("/sys/kernel/security", c"securityfs", c""),
    ("/sys/fs/selinux", c"selinuxfs", c""),
    ("/sys/fs/smackfs", c"smackfs", c""),
    ("/sys/fs/cgroup", c"cgroup2", c""),
];

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nyendor-test:x:1000:1000::/home/yendor-test:/bin/sh\n";
const GROUP: &str = "root:x:0:\nyendor-test:x:1000:\n";
const APPLETS: &[&str] = &["sh", "true", "sleep", "cat", "echo", "id", "ls", "ip", "mount", "kill", "ps"];

/// In the initramfs: everything moves to a tmpfs, which becomes the root.
pub fn first() -> ExitCode {
    report(|| {
        mount("/dev", c"devtmpfs", c"")?;
        speak()?;
        mount(NEW, c"tmpfs", c"mode=0755")?;
        for entry in fs::read_dir("/")? {
            let name = entry?.file_name();
            if !["new", "dev", "init"].contains(&&*name.to_string_lossy()) {
                transfer(&Path::new("/").join(&name), &Path::new(NEW).join(&name))?;
            }
        }
        std::env::set_current_dir(NEW)?;
        // SAFETY: strings with their zero.
        check("mount --move", unsafe {
            libc::mount(c".".as_ptr(), c"/".as_ptr(), std::ptr::null(), libc::MS_MOVE, std::ptr::null())
        })?;
        // SAFETY: a string with its zero.
        check("chroot", unsafe { libc::chroot(c".".as_ptr()) })?;
        std::env::set_current_dir("/")?;
        Err(Command::new(SELF).arg("second").exec())
    })
}

/// On the tmpfs: mounts, accounts, modules; then the tests.
pub fn second() -> ExitCode {
    report(|| {
        for (directory, kind, options) in MOUNTS {
            // The kernel makes these directories itself where it has what they are for.
            if !directory.starts_with("/sys/") {
                fs::create_dir_all(directory)?;
            }
            match mount(directory, kind, options) {
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENOENT)) => {}
                other => other?,
            }
        }
        furnish()?;
        // A kernel that has everything built in has no such directory.
        let modules = fs::read_dir("/lab/modules").into_iter().flatten().flatten();
        let mut modules: Vec<_> = modules.map(|entry| entry.path()).collect();
        modules.sort();
        modules.iter().try_for_each(|module| load(module))?;
        crate::tomoyo::activate()?;
        let run = Command::new(SELF).arg("run").env("PATH", "/bin:/sbin").spawn()?;
        Ok(wait_for(run.id()))
    })
}

fn furnish() -> std::io::Result<()> {
    fs::write("/etc/passwd", PASSWD)?;
    fs::write("/etc/group", GROUP)?;
    fs::create_dir_all("/home/yendor-test")?;
    std::os::unix::fs::chown("/home/yendor-test", Some(1000), Some(1000))?;
    for applet in APPLETS {
        symlink("busybox", format!("/bin/{applet}"))?;
    }
    fs::create_dir_all("/usr")?;
    symlink("/bin", "/usr/bin")?;
    symlink("/proc/self/fd", "/dev/fd").or_else(exists)?;
    Command::new("/bin/ip").args(["link", "set", "lo", "up"]).status()?;
    Ok(())
}

fn exists(error: Error) -> std::io::Result<()> {
    if error.kind() == ErrorKind::AlreadyExists { Ok(()) } else { Err(error) }
}

fn load(module: &Path) -> std::io::Result<()> {
    const COMPRESSED: libc::c_int = 4;
    let file = fs::File::open(module)?.into_raw_fd();
    let flags = if module.extension().is_some_and(|extension| extension == "xz") { COMPRESSED } else { 0 };
    // SAFETY: a descriptor of ours and a string with its zero.
    let loaded = unsafe { libc::syscall(libc::SYS_finit_module, file, c"".as_ptr(), flags) };
    if loaded == 0 { Ok(()) } else { Err(named(&format!("finit_module {}", module.display()))) }
}

/// Reaps whoever loses its parent, until this child has ended: its exit code.
fn wait_for(child: u32) -> i32 {
    loop {
        let mut status = 0;
        // SAFETY: the pointer is that of a local variable.
        let ended = unsafe { libc::waitpid(-1, &mut status, 0) };
        if u32::try_from(ended) == Ok(child) {
            let status = std::process::ExitStatus::from_raw(status);
            return status.code().unwrap_or(126);
        }
    }
}

/// Does it, and ends the machine whatever came of it.
fn report(what: impl FnOnce() -> std::io::Result<i32>) -> ExitCode {
    let code = what().unwrap_or_else(|error| {
        println!("lab: init: {error}");
        125
    });
    println!("lab: end {code}");
    // SAFETY: system calls without memory. The serial line is drained before the machine goes.
    unsafe {
        libc::tcdrain(1);
        libc::sync();
    }
    exit_machine(u8::try_from(code).unwrap_or(124))
}

#[cfg(target_arch = "x86_64")]
fn exit_machine(code: u8) -> ExitCode {
    const PORT: u16 = 0xf4;
    // SAFETY: the port is that of qemu's exit device; writing to it ends the machine, so nothing can go wrong later.
    unsafe {
        if libc::ioperm(PORT.into(), 1, 1) == 0 {
            std::arch::asm!("out dx, al", in("dx") PORT, in("al") code);
        }
    }
    println!("lab: init: no exit device");
    ExitCode::from(code)
}

#[cfg(not(target_arch = "x86_64"))]
fn exit_machine(code: u8) -> ExitCode {
    ExitCode::from(code)
}

/// Standard descriptors become the serial line.
fn speak() -> std::io::Result<()> {
    let console = fs::OpenOptions::new().read(true).write(true).open("/dev/ttyS0")?.into_raw_fd();
    for fd in 0..3 {
        // SAFETY: descriptors are numbers.
        check("dup2", unsafe { libc::dup2(console, fd) })?;
    }
    Ok(())
}

fn mount(directory: &str, kind: &CStr, options: &CStr) -> std::io::Result<()> {
    let target = CString::new(directory)?;
    // SAFETY: strings with their zeros.
    let done = unsafe { libc::mount(kind.as_ptr(), target.as_ptr(), kind.as_ptr(), 0, options.as_ptr().cast()) };
    if done == 0 { Ok(()) } else { Err(named(&format!("mount {directory}"))) }
}

/// Moves a tree to another file system, so that it takes its memory only once.
fn transfer(from: &Path, to: &Path) -> std::io::Result<()> {
    let data = fs::symlink_metadata(from)?;
    if data.is_symlink() {
        return symlink(fs::read_link(from)?, to);
    }
    if !data.is_dir() {
        fs::copy(from, to)?;
        return fs::remove_file(from);
    }
    fs::create_dir(to)?;
    fs::set_permissions(to, fs::Permissions::from_mode(data.permissions().mode()))?;
    for entry in fs::read_dir(from)? {
        let name = entry?.file_name();
        transfer(&from.join(&name), &to.join(&name))?;
    }
    Ok(())
}

fn check(call: &str, result: libc::c_int) -> std::io::Result<()> {
    if result == -1 { Err(named(call)) } else { Ok(()) }
}

/// The last error, with what was tried; its errno stays.
fn named(what: &str) -> Error {
    let error = Error::last_os_error();
    if !what.starts_with("mount /sys/fs/") {
        println!("lab: init: {what}: {error}");
    }
    error
}
