//! One boot of a virtual machine: its serial line goes to a file, its exit code comes from a device, and it ends in time.

use super::parts::Kernel;
use crate::Outcome;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How a boot went.
pub struct Boot {
    /// What the guest's init wrote to the exit device; none when it did not get that far.
    pub code: Option<i32>,
    /// Everything on the serial line.
    pub log: String,
}

/// What is booted.
pub struct Parts<'a> {
    /// The emulator.
    pub qemu: &'a Path,
    /// The kernel.
    pub kernel: &'a Kernel,
    /// The first file system.
    pub initramfs: &'a Path,
    /// A disk.
    pub disk: &'a Path,
    /// Whether what is written to the disk is forgotten: several machines may then use it at a time.
    pub snapshot: bool,
}

/// Boots and waits for the end, or makes it.
///
/// # Errors
/// qemu does not start, or the log cannot be read.
pub fn boot(parts: &Parts<'_>, words: &str, log: &Path, limit: Duration) -> Outcome<Boot> {
    let Parts { qemu, kernel, initramfs, disk, snapshot } = *parts;
    let serial = format!("file:{}", log.display());
    // On a busy host an emulated timer ticks too late for the kernel's own test of it, which would end in a panic.
    // Programs at the same addresses each time are translated once: half of the time.
    let words = format!("console=ttyS0 quiet loglevel=4 panic=-1 no_timer_check norandmaps {words}");
    // Beside tests it takes what they leave of the processors, which is a good part: they wait a lot.
    let mut command = Command::new("nice");
    command.arg(qemu);
    // /dev/kvm is often there and fails when it is used, so emulation always.
    command.args(["-accel", "tcg,thread=multi", "-machine", "q35", "-cpu", "max", "-smp", "2", "-m", "1G"]);
    command.args(["-display", "none", "-monitor", "none", "-nodefaults", "-no-user-config", "-no-reboot"]);
    command.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=0x04", "-serial", &serial, "-append", &words]);
    command.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(initramfs);
    let snapshot = if snapshot { "on" } else { "off" };
    let drive = format!("file={},if=none,id=disk,format=raw,snapshot={snapshot},file.locking=off", disk.display());
    command.args(["-drive", &drive, "-device", "nvme,drive=disk,serial=lab"]);
    command.stdin(Stdio::null());
    let child = command.spawn().map_err(|error| format!("{}: {error}", qemu.display()))?;
    let status = Machine(child).ended(limit)?;
    let log = String::from_utf8_lossy(&fs::read(log)?).into_owned();
    // The device makes (N << 1) | 1 of N: zero means that the guest ended without it, which is a panic or a power-off.
    let code = status.and_then(|status| status.code()).filter(|code| code & 1 == 1).map(|code| code >> 1);
    Ok(Boot { code, log })
}

/// A running qemu, ended when dropped.
struct Machine(Child);

impl Machine {
    fn ended(mut self, limit: Duration) -> Outcome<Option<ExitStatus>> {
        let end = Instant::now() + limit;
        while Instant::now() < end {
            if let Some(status) = self.0.try_wait()? {
                return Ok(Some(status));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(None)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
