//! The look at everything while the tree stands still.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use yendor_image::{Parent, Writer};
use yendor_kinds::Named;
use yendor_kinds::file::Gather;
use yendor_kinds::file::unix::{self, Aside};
use yendor_kinds::namespace::mount::own;
use yendor_kinds::namespace::network::Network;
use yendor_kinds::snapshot::Snapshot;
use yendor_policy::lsm::Here;
use yendor_sys::SysError;
use yendor_sys::undo::Watch;
use yendor_task::stop::Stopped;
use yendor_task::tree::FrozenTree;

use super::whole::{self, clocks_ahead, container, layers};
use super::{Options, Target, groups, own_network};
use crate::collect::rounds::Rounds;
use crate::collect::{Rest, Twins, collect, ipc, namespace};
use crate::error::{At, Result, Step, With};
use crate::setting::{self, Looking, Usual};

/// What is looked at when the tree has ended, and who holds its files.
pub(super) type Later<'w> = Option<(Aside, Gather<'w>)>;

/// Everything that can be known before the tree ends, what cannot, and who holds its files.
pub(super) fn gather<'w>(
    target: &Target,
    tree: &FrozenTree,
    proc: &OwnedFd,
    (writer, parent): (&'w Writer, Option<&'w Parent>),
    options: &Options,
    (twins, rounds, usual): (Option<&mut Twins>, Rounds<'w>, Option<Usual>),
) -> Result<(Snapshot, Rest<'w>, Later<'w>)> {
    let root = tree.root;
    let home = if let Target::Container(state, _) = target { state.init } else { root };
    let groups = groups::Looking::begin(proc, home, tree).at(Step::Collect)?;
    let stopped_before = |threads: &[Stopped]| threads.first().is_none_or(|first| first.group_stop().is_some());
    let still = tree.processes.iter().filter(|(_, threads)| !stopped_before(threads)).map(|(pid, _)| *pid);
    let _watch = Watch::over(still.collect());
    // That of pid 1: the root task may have gone elsewhere.
    let path = format!("{home}/root");
    let top =
        rustix::fs::openat(proc, path.as_str(), OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .named("openat", || format!("/proc/{path}"))
            .at(Step::Collect)?;
    let own = proc.try_clone().map_err(|e| SysError::io("dup", "/proc", &e)).at(Step::Collect)?;
    let mut gather = Gather::new(writer, own, top);
    gather.allow_lost = options.allow_lost.iter().cloned().collect::<BTreeSet<_>>();
    let here = Here::look();
    gather.modules = here.modules();
    gather.is_foreign = matches!(target, Target::Tree(_));
    gather.ends_tree = !options.leave_running && !options.leave_stopped;
    if let Target::Container(state, _) = target {
        // Where the keeper holds the caller's descriptors: see keeper::start.
        for (number, record) in &state.standard {
            gather.externals.push((state.keeper, *number, *record));
        }
        let path = format!("{}/ns/pid", state.init);
        let theirs = rustix::fs::openat(proc, path.as_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        gather.pid_namespace = Some(theirs.named("openat", || format!("/proc/{path}")).at(Step::Collect)?);
    }
    let mut mounts = own::Record::default();
    if let Target::Container(state, _) = target {
        gather.network = Some(own_network().at(Step::Collect)?);
        mounts = whole::mounts(state, proc, &mut gather).at(Step::Collect).kind("namespace", "mnt")?;
        namespace::queues(&mut gather).at(Step::Collect).kind("mqueue", "queues")?;
    }
    let settings = match target {
        Target::Container(state, _) => Some(Looking::begin(proc, setting::own(&state.request)).at(Step::Collect)?),
        Target::Tree(_) => None,
    };
    let container = container(target, proc, root)?;
    gather.clocks = clocks_ahead(&container);
    let of = if let Target::Container(state, directory) = target { Some((state, directory.as_path())) } else { None };
    let (mut snapshot, rest) =
        collect(tree, &mut gather, (writer, parent), container, of, (twins, rounds, options.verify_delta))?;
    if let Target::Container(state, _) = target {
        snapshot.container.layers =
            layers(state, (proc, &mounts), writer).at(Step::Collect).kind("file system", "layer")?;
        snapshot.container.mounts = mounts;
    }
    let pids: Vec<i32> = tree.processes.keys().copied().collect();
    let ipc = match target {
        Target::Container(..) => ipc::container(proc, &snapshot, writer).map(Some),
        Target::Tree(_) => ipc::tree(proc, &pids, &snapshot.processes, writer),
    };
    snapshot.container.ipc = ipc.at(Step::Collect).kind("namespace", "ipc")?;
    let settings = settings.zip(usual.as_ref()).map(|(now, usual)| now.end(usual, proc));
    let settings = settings.transpose().at(Step::Collect).kind("namespace", "settings")?;
    if let Some((settings, links, loopback)) = settings {
        let container = &mut snapshot.container;
        (container.settings, container.links, container.loopback) = (settings, links, loopback);
    }
    if let Target::Container(state, _) = target
        && let Some(then) = state.network.as_ref().filter(|_| snapshot.container.links.is_empty())
    {
        let now = Network::of(proc.as_fd(), state.init).at(Step::Collect)?;
        let is_new = usual.as_ref().and_then(|new| new.network(snapshot.container.loopback));
        let is_new = is_new.is_some_and(|new| new.unchanged(&now).is_ok());
        if !is_new {
            then.unchanged(&now).at(Step::Collect)?;
        }
    }
    let untold = crate::collect::untold_labels(&here, proc, &snapshot, &gather).at(Step::Collect)?;
    snapshot.lost.extend(untold);
    snapshot.lost.extend(groups.end(&gather.pids).at(Step::Collect).kind("process", "control groups")?);
    let aside = unix::set_aside(&mut gather, &mut snapshot.files, &mut snapshot.lost).at(Step::Collect)?;
    Ok((snapshot, rest, aside.map(|aside| (aside, gather))))
}
