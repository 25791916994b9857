//! Containers as the state directory and /proc show them.

use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use yendor_engine::claim;
use yendor_engine::state::{self, Places, State, Status};

use crate::failure::{Denied, Failure};
use crate::{name, signal};

/// What a container is doing, checked against the processes that are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Now {
    /// It runs.
    Running,
    /// It ended with this wait status.
    Exited(i32),
    /// It was checkpointed, and ended by that.
    Checkpointed,
    /// Its keeper died without a word.
    Lost,
}

/// A container of which there is a state.
#[derive(Debug, Clone)]
pub struct Found {
    /// Its state.
    pub state: State,
    /// Its directory.
    pub directory: PathBuf,
    /// The file that the state is from, where one container was asked for: its keeper's last word comes there, whatever becomes of the directory.
    file: Option<Arc<File>>,
}

impl Found {
    /// What it is doing.
    pub fn now(&self) -> Now {
        match self.state.status {
            Status::Running if self.state.keeper_lives() => Now::Running,
            // The keeper may have written its last word between our two looks.
            Status::Running => match self.last().status {
                Status::Exited(status) => Now::Exited(status),
                Status::Checkpointed => Now::Checkpointed,
                Status::Running => Now::Lost,
            },
            Status::Exited(status) => Now::Exited(status),
            Status::Checkpointed => Now::Checkpointed,
        }
    }

    /// Its state as its keeper has left it; for one whose keeper has ended.
    pub fn last(&self) -> State {
        let heard = self.file.as_deref().and_then(|file| state::again(file).ok());
        heard
            .filter(|state| state.status != Status::Running)
            .or_else(|| state::read(&self.directory).ok().filter(|s| self.is_same(s)))
            .unwrap_or_else(|| self.state.clone())
    }

    /// Whether a state is of this container, not of another that has got its name since.
    pub fn is_same(&self, other: &State) -> bool {
        (other.keeper, other.keeper_start) == (self.state.keeper, self.state.keeper_start)
    }

    /// A descriptor of its keeper, `None` when that is gone.
    pub fn keeper(&self) -> Result<Option<OwnedFd>, Failure> {
        let fd = open_process(self.state.keeper)?;
        Ok(fd.filter(|_| self.state.keeper_lives()))
    }

    /// A descriptor of its pid 1, `None` when that is gone.
    pub fn init(&self) -> Result<Option<OwnedFd>, Failure> {
        let fd = open_process(self.state.init)?;
        let stat = Stat::of(self.state.init);
        // A number can be given to a stranger: ours is the keeper's child, or was, and hardly younger than it.
        let ours = stat.is_some_and(|stat| {
            let orphan = !self.state.keeper_lives() && is_first_of_namespace(self.state.init);
            let start = || state::start_of(self.state.init).unwrap_or_default();
            stat.parent == self.state.keeper || orphan && is_about(start(), self.state.keeper_start)
        });
        Ok(fd.filter(|_| ours))
    }

    /// A descriptor of its root task, `None` when that is gone.
    pub fn main(&self) -> Result<Option<OwnedFd>, Failure> {
        if self.state.main == self.state.init {
            return self.init();
        }
        let fd = open_process(self.state.main)?;
        let ours = Stat::of(self.state.main).is_some_and(|stat| stat.parent == self.state.init);
        Ok(fd.filter(|_| ours))
    }
}

/// Within a minute, in clock ticks.
fn is_about(start: u64, keeper: u64) -> bool {
    const MINUTE: u64 = 6000;
    (keeper..keeper.saturating_add(MINUTE)).contains(&start)
}

fn is_first_of_namespace(pid: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("NSpid:")).unwrap_or_default();
    let ids: Vec<&str> = line.split_whitespace().collect();
    ids.len() > 1 && ids.last() == Some(&"1")
}

/// Some fields of /proc/PID/stat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// Whether a signal has stopped it.
    pub stopped: bool,
    /// Its parent.
    pub parent: i32,
    /// Its threads.
    pub threads: u64,
    /// Pages in memory.
    pub resident: u64,
}

impl Stat {
    /// Of a process that is there.
    pub fn of(pid: i32) -> Option<Stat> {
        Stat::parse(&std::fs::read(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(text: &[u8]) -> Option<Stat> {
        let after_name = text.iter().rposition(|b| *b == b')')?;
        let rest = std::str::from_utf8(text.get(after_name + 1..)?).ok()?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        // The first is field 3 of proc_pid_stat(5).
        let field = |number: usize| fields.get(number - 3).copied();
        let state = field(3)?;
        if matches!(state, "Z" | "X") {
            return None;
        }
        Some(Stat {
            stopped: state == "T",
            parent: field(4)?.parse().ok()?,
            threads: field(20)?.parse().ok()?,
            resident: field(24)?.parse().ok()?,
        })
    }
}

/// A process and all below it, `root` first.
pub fn descendants(root: i32) -> Vec<i32> {
    let mut all = vec![root];
    let mut next = 0;
    while let Some(pid) = all.get(next).copied() {
        next += 1;
        let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { continue };
        for task in tasks.flatten() {
            let text = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            let children: Vec<i32> = text.split_whitespace().filter_map(|p| p.parse().ok()).collect();
            all.extend(children);
        }
    }
    all
}

/// A process that is there, held by its pidfd.
pub fn open_process(pid: i32) -> Result<Option<OwnedFd>, Failure> {
    let Some(pid) = Pid::from_raw(pid) else { return Ok(None) };
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(fd) => Ok(Some(fd)),
        Err(rustix::io::Errno::SRCH) => Ok(None),
        Err(e) => Err(Failure::Failed(format!("pidfd_open({pid}): {e}"))),
    }
}

/// Waits until the process of a pidfd has ended; false when `limit` is over.
pub fn ended(pidfd: &impl AsFd, limit: Option<Duration>) -> Result<bool, Failure> {
    let begin = Instant::now();
    loop {
        let left = limit.map(|limit| limit.saturating_sub(begin.elapsed()));
        let timeout = left.map(|left| Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        });
        let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
        match poll(&mut fds, timeout.as_ref()) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(Failure::Failed(format!("poll: {e}"))),
        }
    }
}

/// Sends a signal to the process of a pidfd; one that is gone is no error, and said.
pub fn send(pidfd: &OwnedFd, number: i32) -> Result<bool, Failure> {
    match yendor_engine::process::send_signal(pidfd, number) {
        Ok(()) => Ok(true),
        Err(e) if e.is_gone() => Ok(false),
        Err(e) if e.is_denied() => {
            let what = format!("{}: {e}", signal::name(number));
            Err(Denied::by_kernel(what, e.call, e.args, e.errno.raw_os_error()))
        }
        Err(e) => Err(Failure::Failed(format!("{}: {e}", signal::name(number)))),
    }
}

/// A container by name.
pub fn find(places: &Places, container: &str) -> Result<Found, Failure> {
    look(places, container)?.ok_or_else(|| Failure::Failed(format!("there is no container {container:?}")))
}

/// The same; `None` where there is none of that name.
pub fn look(places: &Places, container: &str) -> Result<Option<Found>, Failure> {
    if !name::is_valid(container) {
        return Ok(None);
    }
    let directory = places.container(container);
    match state::open(&directory) {
        Ok((state, file)) => Ok(Some(Found { state, directory, file: Some(Arc::new(file)) })),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Failure::io("read", &directory.join("state.json"), &e)),
    }
}

/// A container that runs.
pub fn find_running(places: &Places, container: &str) -> Result<Found, Failure> {
    let found = find(places, container)?;
    match found.now() {
        Now::Running => Ok(found),
        Now::Exited(_) => Err(Failure::Failed(format!("container {container} has ended"))),
        Now::Checkpointed => Err(Failure::Failed(format!("container {container} was checkpointed and does not run"))),
        Now::Lost => Err(Failure::Failed(format!("container {container} has lost its keeper and does not run"))),
    }
}

/// All containers of which there is a state, by name. What killed commands have left is cleared up on the way.
pub fn all(places: &Places) -> Result<Vec<Found>, Failure> {
    claim::sweep(&places.run);
    let mut found = known(places)?;
    found.sort_by(|a, b| a.state.name.cmp(&b.state.name));
    Ok(found)
}

fn known(places: &Places) -> Result<Vec<Found>, Failure> {
    let entries = match std::fs::read_dir(&places.run) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Failure::io("open", &places.run, &e)),
    };
    let found =
        entries.flatten().filter(|entry| entry.file_name().to_str().is_some_and(name::is_valid)).filter_map(|entry| {
            Some(Found { state: state::read(&entry.path()).ok()?, directory: entry.path(), file: None })
        });
    Ok(found.collect())
}

/// The highest number of an image of this name that a container is from, or has become, whether or not the image is there still.
pub fn highest_image(places: &Places, name: &str) -> Option<u32> {
    let number = |image: String| image.strip_prefix(name)?.strip_prefix('@')?.parse().ok();
    let all = known(places).unwrap_or_default().into_iter();
    all.flat_map(|found| [found.state.image, found.state.taken]).flatten().filter_map(number).max()
}

/// Removes a container's directory with everything below.
pub fn remove(directory: &Path) -> Result<(), Failure> {
    match state::remove(directory) {
        Err(e) if e.kind() == ErrorKind::PermissionDenied => {
            let path = directory.display();
            Err(Failure::io("remove", directory, &e).hint(format!("as root, rm -rf {path}")))
        }
        other => other.map_err(|e| Failure::io("remove", directory, &e)),
    }
}

/// What those who wait for a container say when a checkpoint has ended it: it has no status.
pub fn checkpointed(last: &State) -> Failure {
    let name = &last.name;
    let back = last.taken.as_ref().map(|image| format!("\n  hint: `yendor restore {image}` brings it back"));
    Failure::Failed(format!("container {name} was checkpointed: it has no status{}", back.unwrap_or_default()))
}

/// The exit code that stands for a wait status (wait(2)): 128 and the number for a signal.
pub fn exit_code(status: i32) -> u8 {
    let signal = status & 0x7f;
    let code = if signal == 0 { status >> 8 & 0xff } else { 128 + signal };
    u8::try_from(code).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_statuses_become_exit_codes() {
        assert_eq!([0, 0x0300, 9, 0x8b].map(exit_code), [0, 3, 137, 139]);
    }

    #[test]
    fn stat_is_read_behind_the_name() {
        let text = b"7 (a) b 1 2) S 5 7 7 0 -1 0 0 0 0 0 0 0 0 0 20 0 3 0 99 4096 12 0\n";
        assert_eq!(Stat::parse(text), Some(Stat { stopped: false, parent: 5, threads: 3, resident: 12 }));
        assert_eq!(Stat::parse(b"7 (a) Z 5 7"), None);
        assert_eq!(Stat::parse(b""), None);
        assert!(Stat::of(i32::try_from(std::process::id()).unwrap()).is_some_and(|s| s.threads >= 1));
    }

    #[test]
    fn names_that_are_paths_find_nothing() {
        let places = Places { run: "/proc".into(), images: "/proc".into(), trees: "/proc".into() };
        for bad in ["../etc", "", "a/b", "self"] {
            assert_eq!(find(&places, bad).unwrap_err().exit_code(), 1, "{bad}");
        }
    }
}
