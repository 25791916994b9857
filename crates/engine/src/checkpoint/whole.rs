//! What an image says of the container as a whole.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use yendor_image::{Bytes, Writer};
use yendor_kinds::file::Gather;
use yendor_kinds::file::timerfd::Clocks;
use yendor_kinds::namespace::clock;
use yendor_kinds::namespace::layer;
use yendor_kinds::namespace::mount::own;
use yendor_kinds::snapshot::{Container, Root, Volume};
use yendor_kinds::{Cause, Named};
use yendor_sys::SysError;
use yendor_task::tree;

use super::Target;
use crate::collect::namespace;
use crate::error::{At, Result, Step, With};
use crate::request;
use crate::state::State;

/// How far the tree's clocks are ahead of ours.
pub fn clocks_ahead(container: &Container) -> Clocks {
    let ahead = |theirs: u64, clock| {
        let own = rustix::time::clock_gettime(clock);
        let own = i128::from(own.tv_sec) * 1_000_000_000 + i128::from(own.tv_nsec);
        // Both were read within moments of each other: what is left of less than a second is the time between.
        let ns = i128::from(theirs) - own;
        if ns.abs() < 1_000_000 { 0 } else { i64::try_from(ns).unwrap_or(0) }
    };
    Clocks {
        monotonic: ahead(container.clocks.0, rustix::time::ClockId::Monotonic),
        boottime: ahead(container.clocks.1, rustix::time::ClockId::Boottime),
    }
}

/// The container, or what stands for one.
pub fn container(target: &Target, proc: &OwnedFd, root: i32) -> Result<Container> {
    let names = rustix::system::uname();
    // A container's first task may have gone elsewhere.
    let home = if let Target::Container(state, _) = target { state.init } else { root };
    let offsets = tree::read_proc(proc.as_fd(), &format!("{home}/timens_offsets")).at(Step::Collect)?;
    let offsets = yendor_proc::timens_offsets::parse(&offsets).at(Step::Collect).task(root)?;
    let (view, own_network, volumes, bounds) = match target {
        Target::Tree(_) => (Root::Caller, differs(root, "net"), Vec::new(), Vec::new()),
        Target::Container(state, _) => {
            let view = match state.request.root {
                request::Root::Layered => Root::Layered,
                request::Root::Dir(_) if state.request.layout.is_some() => Root::Bundle,
                request::Root::Dir(_) => Root::Dir,
                request::Root::Caller => Root::Caller,
            };
            let request = &state.request;
            (view, request.net != request::Net::Host, volumes(request), request.bounds())
        }
    };
    let own = clock::own(proc.as_fd()).at(Step::Collect).kind("namespace", "time")?;
    // Both are told from the machine's clocks, of which ours may be ahead, too.
    let now = |clock, offset: yendor_proc::timens_offsets::Offset, own: i64| {
        let t = rustix::time::clock_gettime(clock);
        let seconds = i128::from(t.tv_sec) + i128::from(offset.seconds);
        let ns = seconds * 1_000_000_000 + i128::from(t.tv_nsec) + i128::from(offset.nanoseconds) - i128::from(own);
        u64::try_from(ns).unwrap_or(0)
    };
    Ok(Container {
        hostname: Bytes(names.nodename().to_bytes().to_vec()),
        domainname: Bytes(names.domainname().to_bytes().to_vec()),
        clocks: (
            now(rustix::time::ClockId::Monotonic, offsets.monotonic, own.monotonic),
            now(rustix::time::ClockId::Boottime, offsets.boottime, own.boottime),
        ),
        root: view,
        links: yendor_kinds::namespace::links::Record::default(),
        own_network,
        loopback: true,
        layers: Vec::new(),
        mounts: own::Record::default(),
        ipc: None,
        settings: Vec::new(),
        volumes,
        bounds,
    })
}

/// What a later restore has to be given again.
fn volumes(request: &request::Request) -> Vec<Volume> {
    use std::os::unix::ffi::OsStrExt as _;
    let one = |v: &request::Volume| {
        let inside = Bytes(v.inside.as_ref()?.as_os_str().as_bytes().to_vec());
        Some(Volume { name: v.name.clone(), inside, read_only: v.read_only })
    };
    request.volumes.iter().filter_map(one).collect()
}

/// What the container's root has made of its mounts.
pub fn mounts(state: &State, proc: &OwnedFd, gather: &mut Gather<'_>) -> std::result::Result<own::Record, Cause> {
    let (mut now, lines) = namespace::mounts(proc.as_fd(), state.init)?;
    namespace::look(&mut now, (proc.as_fd(), state.init), |mount| mount.is_renamed(&state.mounts))?;
    let difference = namespace::difference(&state.mounts, &now)?;
    gather.lines = lines;
    if difference.is_none(&gather.lines) {
        return Ok(own::Record::default());
    }
    // Nobody could restore it with the same policy.
    state.request.may_mount()?;
    let pids = namespace_of(proc, state, "pid")?;
    let pids = rustix::fs::fstat(&pids).named("fstat", || "the pid namespace".into())?.st_ino;
    let home = (&gather.root, &namespace_of(proc, state, "mnt")?, pids);
    let record = own::collect(&gather.lines, difference, home, gather.writer)?;
    gather.remounted = Some(own::late_points(&record));
    Ok(record)
}

fn namespace_of(proc: &OwnedFd, state: &State, name: &str) -> std::result::Result<OwnedFd, SysError> {
    let path = format!("{}/ns/{name}", state.init);
    rustix::fs::openat(proc, path.as_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .named("openat", || format!("/proc/{path}"))
}

/// The container's own file systems, through the keeper's descriptors of them; without what its root has mounted there.
pub fn layers(
    state: &State,
    (proc, mounts): (&OwnedFd, &own::Record),
    writer: &Writer,
) -> std::result::Result<Vec<layer::Record>, Cause> {
    use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
    let gone = || SysError::new("pidfd_open", format!("{}", state.keeper), rustix::io::Errno::SRCH);
    let keeper = Pid::from_raw(state.keeper).ok_or_else(gone)?;
    let pidfd = pidfd_open(keeper, PidfdFlags::empty()).named("pidfd_open", || format!("{}", state.keeper))?;
    let mut tops = Vec::new();
    for (mount, number) in &state.layers {
        let fd = pidfd_getfd(&pidfd, *number, PidfdGetfdFlags::empty())
            .named("pidfd_getfd", || format!("{}, {number}", state.keeper))?;
        tops.push((mount, fd));
    }
    let collect = |visible: &dyn Fn(&Bytes, &OwnedFd) -> Option<OwnedFd>| -> yendor_kinds::Result<Vec<_>> {
        let one = |(index, (mount, fd)): (usize, &(&Bytes, OwnedFd))| {
            let top = visible(mount, fd);
            layer::collect(top.as_ref().unwrap_or(fd), (*mount).clone(), &format!("layer-{index}"), writer)
        };
        tops.iter().enumerate().map(one).collect()
    };
    let layers: Vec<layer::Record> = if mounts.mounts.is_empty() {
        collect(&|_, _| None)?
    } else {
        own::beneath(&namespace_of(proc, state, "mnt")?, mounts, || {
            collect(&|mount, fd| {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let top = rustix::fs::open(mount.0.as_slice(), flags, Mode::empty()).ok()?;
                let inode = |fd| rustix::fs::fstat(fd).ok().map(|stat| (stat.st_dev, stat.st_ino));
                // The layer's upper directory is mounted nowhere.
                (inode(&top).is_some() && inode(&top) == inode(fd)).then_some(top)
            })
        })?
    };
    mounts.permits(&layers)?;
    Ok(layers)
}

fn differs(pid: i32, namespace: &str) -> bool {
    let inode = |p: String| rustix::fs::stat(p.as_str()).map(|s| s.st_ino);
    inode(format!("/proc/{pid}/ns/{namespace}")) != inode(format!("/proc/self/ns/{namespace}"))
}
