//! `yendor exec`: one more command in a running container.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::Args;
use rustix::process::DumpableBehavior;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::thread::{CapabilitySet, ThreadNameSpaceType as Ns, move_into_thread_name_spaces};
use yendor_engine::process::{Terminal, lead_session};
use yendor_engine::session::Session;
use yendor_engine::state::{Places, State};
use yendor_policy::lsm::Entry;

use yendor_policy::capability;

use crate::failure::{Denied, Failure, Outcome};
use crate::modes::Modes;
use crate::terminal::{Relay, resize};
use crate::{container, foreground, parse, signal};

/// Run a command in a running container, beside what runs there
///
/// A checkpoint of the container stops it for as long, but has it in no image, and says so.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  yendor exec web -- ps ax\n  yendor exec -t web -- sh")]
pub struct Exec {
    /// Give the command a terminal
    #[arg(short, long)]
    tty: bool,
    /// Keep standard input open (it always is)
    #[arg(short, long)]
    interactive: bool,
    /// Set a variable of the environment, or take it over from the caller
    #[arg(short, long = "env", value_name = "K=V")]
    env: Vec<OsString>,
    /// Working directory inside
    #[arg(short, long, value_name = "DIR", default_value = "/")]
    workdir: PathBuf,
    /// User and group inside, in numbers
    #[arg(short, long, value_name = "UID[:GID]", value_parser = parse::user)]
    user: Option<(u32, u32)>,
    /// The container
    container: String,
    /// The command and its arguments
    #[arg(required = true, last = true)]
    command: Vec<OsString>,
}

impl Exec {
    /// Runs it.
    pub fn run(self) -> Outcome {
        yendor_engine::exec::keep_to_ourselves()?;
        let found = container::find_running(&Places::from_environment()?, &self.container)?;
        let gone = || Failure::Failed(format!("container {} has ended", self.container));
        let init = found.init()?.ok_or_else(gone)?;
        yendor_engine::exec::from_a_copy(found.state.init)?;
        let session = Session::begin(&found.directory)?;
        join_cgroup(&found.state)?;
        let denied = |e: yendor_policy::lsm::SysError| {
            Denied::by_kernel(format!("the container's label: {e}"), e.call, e.args, e.errno.raw_os_error())
        };
        let labels: Vec<Entry> = yendor_engine::exec::labels(&found.state)?;
        let keeper = yendor_engine::exec::ask(&found.directory)?;
        enter(&init, found.state.init)?;
        yendor_engine::exec::confine(&found.state.request, keeper)?;
        labels.iter().try_for_each(Entry::enter).map_err(denied)?;
        // From here paths are the container's: no link among them (proc(5)) leads through what we have open.
        drop((init, labels));
        std::env::set_current_dir(&self.workdir).map_err(|e| Failure::io("chdir", &self.workdir, &e))?;
        drop_capabilities(&found.state.request.cap_drop)?;
        if found.state.request.policy.no_new_privs {
            let failed = |e| Failure::Failed(format!("prctl(PR_SET_NO_NEW_PRIVS): {e}"));
            rustix::thread::set_no_new_privs(true).map_err(failed)?;
        }
        let mut command = self.command()?;
        let signals = foreground::block_signals(if self.tty { &[signal::WINCH] } else { &[] })?;
        signals.spare(&mut command);
        if !self.tty {
            let child = lead_session(&mut command, Terminal::None).spawn().map_err(|e| self.not_started(&e))?;
            session.begun()?;
            return foreground::see_child(&signals, child);
        }
        let (master, peer) = terminal()?;
        resize(std::io::stdin().as_fd(), &master);
        for (number, stdio) in [Command::stdin, Command::stdout, Command::stderr].into_iter().zip(copies(&peer)?) {
            number(&mut command, stdio);
        }
        let child = lead_session(&mut command, Terminal::StandardInput).spawn().map_err(|e| self.not_started(&e))?;
        session.begun()?;
        // Else the terminal stays open for ever: in us, and in the command that holds it for further spawns.
        drop((command, peer));
        let pid = rustix::process::Pid::from_child(&child);
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty());
        let pidfd = pidfd.map_err(|e| Failure::Failed(format!("pidfd_open: {e}")))?;
        let relay = Relay {
            master: &master,
            signals: &signals,
            target: &pidfd,
            ended: &pidfd,
            detachable: false,
            drawn: false,
        };
        let mut modes = Modes::default();
        let relayed = relay.run(std::io::stdin().as_fd(), std::io::stdout().as_fd(), &mut modes);
        modes.leave(std::io::stdout().as_fd());
        relayed?;
        foreground::see_child(&signals, child)
    }

    fn command(&self) -> Result<Command, Failure> {
        let mut words = self.command.iter();
        let mut command = Command::new(words.next().map(OsString::as_os_str).unwrap_or_default());
        command.args(words).env_clear();
        let root = self.user.is_none_or(|(uid, _)| uid == 0);
        let lines = parse::environment(&self.env, self.tty, if root { "/root" } else { "/" });
        for line in lines.map_err(Failure::Usage)? {
            let at = line.0.iter().position(|b| *b == b'=').unwrap_or(line.0.len());
            let (name, value) = line.0.split_at(at);
            let value = value.get(1..).unwrap_or_default();
            command.env(OsString::from_vec(name.to_vec()), OsString::from_vec(value.to_vec()));
        }
        if let Some((uid, gid)) = self.user {
            command.gid(gid).uid(uid);
        }
        Ok(command)
    }

    fn not_started(&self, error: &std::io::Error) -> Failure {
        const ACCES: i32 = rustix::io::Errno::ACCESS.raw_os_error();
        let name = self.command.first().map(|c| c.to_string_lossy().into_owned()).unwrap_or_default();
        match error.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => {
                Failure::Said { code: 127, what: format!("{name}: command not found in the container") }
            }
            // EPERM is also what setuid and setgroups say; then there is a user.
            ErrorKind::PermissionDenied if self.user.is_none() || error.raw_os_error() == Some(ACCES) => {
                Failure::Said { code: 126, what: format!("{name}: not executable in the container") }
            }
            _ => Failure::io("run", Path::new(&name), error),
        }
    }
}

/// Enters all namespaces of pid 1 that are not ours already; of the pid namespace, the next child does. From then on this
/// process belongs to the container in all but its memory, which must stay out of the container's reach.
fn enter(init: &OwnedFd, pid: i32) -> Result<(), Failure> {
    let failed = |call: &'static str| {
        move |e: rustix::io::Errno| match e {
            rustix::io::Errno::PERM | rustix::io::Errno::ACCESS => {
                let what = format!("{call} into the container: {e}");
                Denied::by_kernel(what, call, "the container".into(), e.raw_os_error())
            }
            e => Failure::Failed(format!("{call} into the container: {e}")),
        }
    };
    let all = [
        ("user", Ns::USER),
        ("mnt", Ns::MOUNT),
        ("pid", Ns::PROCESS_ID),
        ("net", Ns::NETWORK),
        ("ipc", Ns::INTER_PROCESS_COMMUNICATION),
        ("uts", Ns::HOST_NAME_AND_NIS_DOMAIN_NAME),
        ("cgroup", Ns::CONTROL_GROUP),
        ("time", Ns::TIME),
    ];
    let mut wanted = Ns::empty();
    for (name, flag) in all {
        let inode = |path: String| rustix::fs::stat(path.as_str()).map(|s| s.st_ino).map_err(failed("stat"));
        if inode(format!("/proc/{pid}/ns/{name}"))? != inode(format!("/proc/self/ns/{name}"))? {
            wanted |= flag;
        }
    }
    let hide = || rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(failed("prctl"));
    hide()?;
    if !wanted.is_empty() {
        move_into_thread_name_spaces(init.as_fd(), wanted).map_err(failed("setns"))?;
    }
    if wanted.contains(Ns::USER) && !rustix::process::geteuid().is_root() && can_be_root() {
        // Real root's ids may have no meaning inside.
        let (uid, gid) = (rustix::process::Uid::ROOT, rustix::process::Gid::ROOT);
        rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(failed("setresgid"))?;
        rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(failed("setresuid"))?;
    }
    // Other ids and rights have made it what `fs.suid_dumpable` says.
    hide()
}

/// What nobody in the container gets, this command does not get: no program that it starts can.
fn drop_capabilities(names: &[String]) -> Result<(), Failure> {
    let mask = capability::mask(names).map_err(|e| Failure::Failed(e.to_string()))?;
    for one in CapabilitySet::from_bits_retain(mask).iter() {
        rustix::thread::remove_capability_from_bounding_set(one)
            .map_err(|e| Failure::Failed(format!("prctl(PR_CAPBSET_DROP): {e}")))?;
    }
    Ok(())
}

/// Whether the id that the caller has inside is nobody's: then the container's root is meant.
fn can_be_root() -> bool {
    const OVERFLOW: u32 = 65534;
    rustix::process::geteuid().as_raw() == OVERFLOW
}

/// The container's limits hold for the command, too.
fn join_cgroup(state: &State) -> Result<(), Failure> {
    if state.request.memory.is_none() && state.request.pids.is_none() {
        return Ok(());
    }
    let of = |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let (theirs, ours) = (of(&state.init.to_string()), of("self"));
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for line in theirs.lines().filter(|line| !ours.lines().any(|own| own == *line)) {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let Some(root) = cgroup_root(&mounts, controllers) else {
            return Err(Failure::NotYet(format!("exec in the container's cgroup {line}: it is not mounted here")));
        };
        let file = PathBuf::from(format!("{root}{path}/cgroup.procs"));
        std::fs::write(&file, "0").map_err(|e| Failure::io("write", &file, &e))?;
    }
    Ok(())
}

/// Where a hierarchy is mounted from its root on: `controllers` as in /proc/PID/cgroup, empty for version 2.
fn cgroup_root(mounts: &str, controllers: &str) -> Option<String> {
    mounts.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ').skip(3);
        let (top, place) = (left.next()?, left.next()?);
        let mut right = right.split(' ');
        let (kind, options) = (right.next()?, right.nth(1)?);
        let has = |wanted: &str| options.split(',').any(|option| option == wanted);
        let fits = match controllers {
            "" => kind == "cgroup2",
            list => kind == "cgroup" && list.split(',').all(has),
        };
        (top == "/" && fits).then(|| place.to_owned())
    })
}

/// A pseudo-terminal of the container's own: master and peer.
fn terminal() -> Result<(OwnedFd, OwnedFd), Failure> {
    let failed = |e: rustix::io::Errno| Failure::Failed(format!("a terminal in the container: {e}"));
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags).map_err(failed)?;
    unlockpt(&master).map_err(failed)?;
    let peer = ioctl_tiocgptpeer(&master, flags).map_err(failed)?;
    Ok((master, peer))
}

fn copies(fd: &OwnedFd) -> Result<Vec<Stdio>, Failure> {
    let copy = |_| fd.try_clone().map(Stdio::from).map_err(|e| Failure::Failed(format!("dup: {e}")));
    (0..3).map(copy).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_found_by_their_controllers() {
        let mounts = "30 29 0:26 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw\n\
                      31 29 0:27 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
                      32 29 0:28 /a /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        assert_eq!(cgroup_root(mounts, "").as_deref(), Some("/sys/fs/cgroup/unified"));
        assert_eq!(cgroup_root(mounts, "cpu,cpuacct").as_deref(), Some("/sys/fs/cgroup/cpu,cpuacct"));
        assert_eq!((cgroup_root(mounts, "memory"), cgroup_root(mounts, "pids")), (None, None));
    }
}
