//! The stage that makes a host fit for the tests: Debian packages and an account without rights.

use crate::Outcome;
use crate::stage::Session;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

/// What the tests need of a Debian host.
struct Package {
    /// Any of these will do; the first is installed when none is there.
    names: &'static [&'static str],
    why: &'static str,
}

const PACKAGES: &[Package] = &[
    Package { names: &["redis-server"], why: "a real program with a million keys" },
    Package { names: &["redis-tools"], why: "its client" },
    Package { names: &["postgresql"], why: "a real program with an open transaction" },
    Package {
        names: &["nginx-light", "nginx-core", "nginx-full", "nginx"],
        why: "a real program with listening sockets",
    },
    Package { names: &["nethack-console"], why: "a real program that draws on a terminal" },
    Package { names: &["vim", "vim-nox"], why: "a real program with work unsaved" },
    Package { names: &["less"], why: "a real program that reads its keys from /dev/tty" },
    Package { names: &["tmux"], why: "terminals whose screen can be read back" },
    Package { names: &["python3"], why: "a real program with threads and subprocesses" },
    Package { names: &["nodejs"], why: "a real program with timers and worker threads" },
    Package {
        names: &["openjdk-17-jdk-headless", "default-jdk-headless"],
        why: "a real program with fifty threads, and its compiler",
    },
    Package { names: &["gcc"], why: "a build that is caught in the middle" },
    Package { names: &["make"], why: "a build that is caught in the middle" },
    Package { names: &["openssh-server"], why: "a session over the network" },
    Package { names: &["openssh-client"], why: "its other end" },
    Package { names: &["php8.2-fpm", "php-fpm"], why: "a web server with something behind it" },
    Package { names: &["s6"], why: "an init with services" },
    Package { names: &["gdb"], why: "tasks that somebody traces already" },
    Package { names: &["uidmap"], why: "newuidmap and newgidmap, for subordinate ids" },
    Package { names: &["busybox-static"], why: "a root file system of one program, and the lab's programs" },
    Package { names: &["minisign"], why: "the tool that signatures are for" },
    Package { names: &["age"], why: "the tool that encrypted images are for" },
    Package { names: &["iproute2"], why: "devices, addresses and routes inside containers" },
    Package { names: &["bubblewrap"], why: "containers that Yendor did not start" },
    Package { names: &["strace"], why: "tasks that somebody traces already" },
    Package { names: &["procps"], why: "ps and friends inside containers" },
    Package { names: &["qemu-system-x86"], why: "machines with the security modules that this kernel lacks" },
    Package { names: &["apparmor"], why: "compiles policies for them" },
    Package { names: &["checkpolicy"], why: "likewise, for SELinux" },
    Package { names: &["util-linux"], why: "unshare, runuser, taskset" },
];

/// The account whose rights the unprivileged flavour of the tests has.
const ACCOUNT: &str = "yendor-test";
/// Tells the tests that account.
const ACCOUNT_VARIABLE: &str = "YENDOR_TEST_USER";
/// Tells them where their files shall be.
const PLACE: &str = "YENDOR_TEST_PLACE";
/// How many subordinate ids it gets: as many as useradd gives.
const SUBORDINATE_IDS: u32 = 65_536;
const FIRST_SUBORDINATE_ID: u32 = 100_000;

/// Debian's word on whether a package may start its service now.
const POLICY: &str = "/usr/sbin/policy-rc.d";
const NO_SERVICES: &str =
    "#!/bin/sh\n# made by cargo xtask test for the time of one installation: no service is started\nexit 101\n";

/// Installs and makes what is missing when we are root, and says what has to be skipped when not.
///
/// # Errors
/// An installation failed, or the account cannot be made.
pub fn prepare(session: &mut Session) -> Outcome {
    let variables = [(PLACE, place_in_memory()), ("RUST_TEST_THREADS", Some(threads()))];
    for (name, value) in variables {
        if let Some(value) = value.filter(|_| std::env::var_os(name).is_none()) {
            session.export(name, value);
        }
    }
    let target = crate::workspace::target_directory()?;
    if target.starts_with("/tmp") {
        let target = target.display();
        return Err(format!(
            "{target}: containers have a /tmp of their own, where the tests' programs are not: clone elsewhere, or set CARGO_TARGET_DIR"
        )
        .into());
    }
    let root = fs::metadata("/proc/self")?.uid() == 0;
    let missing = missing_packages();
    if !root {
        session.skip("the tests as root and as another user: not root");
        for package in missing {
            session.skip(format!("install {}, {}: not root", package.names[0], package.why));
        }
        return Ok(());
    }
    let account = make_account_with(session, &missing)?;
    session.export(ACCOUNT_VARIABLE, account);
    Ok(())
}

/// Where the tests' files are, if there is room: on a disk tests wait for it most of their time. Some use a disk all the same.
fn place_in_memory() -> Option<String> {
    const MEMORY: &str = "/dev/shm";
    const ROOM: u64 = 4 << 30;
    const TMPFS: i64 = 0x0102_1994;
    let place = rustix::fs::statfs(MEMORY).ok()?;
    let room = place.f_bavail.saturating_mul(u64::try_from(place.f_bsize).ok()?);
    (place.f_type == TMPFS && room >= ROOM).then(|| MEMORY.to_owned())
}

/// Tests wait more than they work: for the kernel's end of namespaces, for programs to start, for timers.
fn threads() -> String {
    (1 + std::thread::available_parallelism().map_or(1, |n| n.get())).to_string()
}

fn make_account_with(session: &mut Session, missing: &[&Package]) -> Outcome<&'static str> {
    if !missing.is_empty() && !has("apt-get") {
        for package in missing {
            session.skip(format!("install {}, {}: no apt-get here", package.names[0], package.why));
        }
    } else if !missing.is_empty() {
        install(missing)?;
    }
    make_account()?;
    Ok(ACCOUNT)
}

fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

fn missing_packages() -> Vec<&'static Package> {
    let missing = |package: &&Package| !package.names.iter().any(|name| is_installed(name));
    PACKAGES.iter().filter(missing).collect()
}

fn is_installed(name: &str) -> bool {
    let query = Command::new("dpkg-query").args(["-W", "-f", "${db:Status-Status}", name]).output();
    query.is_ok_and(|output| output.stdout == b"installed")
}

fn install(missing: &[&Package]) -> Outcome {
    let names = missing.iter().map(|package| package.names[0]);
    println!("installing {}", names.clone().collect::<Vec<_>>().join(" "));
    let _no_services = NoServices::begin()?;
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(["-q", "-y", "-o", "DPkg::Lock::Timeout=120"]).args(arguments);
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
    };
    done(&mut apt(&["update"]))?;
    done(apt(&["install", "--no-install-recommends"]).args(names))
}

fn done(command: &mut Command) -> Outcome {
    let status = command.stdin(Stdio::null()).status()?;
    if status.success() { Ok(()) } else { Err(format!("{command:?}: {status}").into()) }
}

/// While it lives, packages that are installed do not start their services: the tests start their own, and
/// nobody who runs tests wants a database on the host. A policy that is there already is the host's own.
struct NoServices {
    ours: bool,
}

impl NoServices {
    fn begin() -> Outcome<Self> {
        // One that an earlier run of ours was killed with counts as ours, or it would stay for ever.
        let ours = fs::read_to_string(POLICY).map_or(true, |text| text == NO_SERVICES);
        if ours {
            fs::write(POLICY, NO_SERVICES)?;
            fs::set_permissions(POLICY, fs::Permissions::from_mode(0o755))?;
        }
        Ok(Self { ours })
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours
            && let Err(error) = fs::remove_file(POLICY)
        {
            eprintln!("remove {POLICY}: {error}: remove it by hand, or no package can start its service");
        }
    }
}

fn make_account() -> Outcome {
    let exists = Command::new("id").arg(ACCOUNT).stdout(Stdio::null()).stderr(Stdio::null()).status()?.success();
    if !exists {
        done(Command::new("useradd").args(["--create-home", "--shell", "/bin/sh", ACCOUNT]))?;
        println!("made the account {ACCOUNT}");
    }
    for (file, option) in [("/etc/subuid", "--add-subuids"), ("/etc/subgid", "--add-subgids")] {
        let ranges = if Path::new(file).exists() { fs::read_to_string(file)? } else { String::new() };
        if let Some(first) = range_to_add(&ranges, ACCOUNT)? {
            let range = format!("{first}-{}", first + SUBORDINATE_IDS - 1);
            done(Command::new("usermod").args([option, &range, ACCOUNT]))?;
            println!("gave {ACCOUNT} the subordinate ids {range} in {file}");
        }
    }
    Ok(())
}

/// The first id of a free range above all others when the account has none yet (subuid(5)).
fn range_to_add(ranges: &str, account: &str) -> Outcome<Option<u32>> {
    let mut free = FIRST_SUBORDINATE_ID;
    let ranges = ranges.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
    for line in ranges {
        let mut fields = line.split(':');
        let (owner, first, count) = (fields.next(), fields.next(), fields.next());
        if owner == Some(account) {
            return Ok(None);
        }
        let number = |field: Option<&str>| field.and_then(|text| text.trim().parse::<u32>().ok());
        let (Some(first), Some(count)) = (number(first), number(count)) else {
            return Err(format!("not a line of subuid(5): `{line}`").into());
        };
        free = free.max(first.saturating_add(count));
    }
    let last = free.checked_add(SUBORDINATE_IDS).ok_or("no subordinate ids left above the ranges in use")?;
    Ok(Some(last - SUBORDINATE_IDS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_added_above_all_others_or_not_at_all() -> Outcome {
        assert_eq!(range_to_add("", "me")?, Some(FIRST_SUBORDINATE_ID));
        assert_eq!(range_to_add("you:100000:65536\nshe:300000:65536\n", "me")?, Some(365_536));
        assert_eq!(range_to_add("you:1000:5\n", "me")?, Some(FIRST_SUBORDINATE_ID));
        assert_eq!(range_to_add("me:100000:65536\n", "me")?, None);
        assert!(range_to_add("you:4294900000:65536\n", "me").is_err());
        assert!(range_to_add("nonsense\n", "me").is_err());
        Ok(())
    }

    #[test]
    fn a_package_that_nobody_has_is_missing() {
        assert!(!is_installed("no-such-package-in-debian"));
    }
}
