//! `yendor plan`: what a restore would do, in order, with reasons; nothing is run.

use clap::Args;
use serde_json::{Value, json};
use yendor_engine::load::{Glance, Look, Opened};
use yendor_engine::rebuild::plan::{Birth, Plan as Births, plan};
use yendor_engine::request::{Net, Request, Root, Userns};
use yendor_engine::state::Places;
use yendor_image::Reader;
use yendor_kinds::process::State;
use yendor_kinds::snapshot::{self, Snapshot};

use crate::failure::{Failure, Outcome};
use crate::options::{Identities, RestoreOptions};
use crate::reference::{self, Reference};
use crate::verb::restore;
use crate::{caller, print};

/// Say what a restore would do, in order; run nothing
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  yendor plan web@1 --net host")]
pub struct Plan {
    /// A path with a '/', or NAME or NAME@N of the store
    image: Reference,
    #[command(flatten)]
    options: RestoreOptions,
    #[command(flatten)]
    identities: Identities,
    /// Print as JSON
    #[arg(long)]
    pub json: bool,
}

struct Line {
    step: &'static str,
    what: String,
    why: &'static str,
}

impl Plan {
    /// Runs it.
    pub fn run(self) -> Outcome {
        let places = Places::from_environment()?;
        let image = reference::find(&places, &self.image)?;
        // The bundle is the caller's own; the image may be anybody's.
        let bundle = self.options.container.bundle()?;
        let identities = self.identities.open()?;
        let look = Look::begin(&image.path)?;
        caller::give_up_rights(&image.path)?;
        let Opened { reader, snapshot, .. } = look.end(&identities, false)?.opened()?;
        let births = plan(&snapshot.processes, &snapshot.namespaces)
            .map_err(|e| Failure::from(yendor_engine::Error::new(yendor_engine::error::Step::Rebuild, e)))?;
        let glance = Glance::at(reader.manifest().kind, &snapshot);
        let (root, net) = restore::surroundings(&places, glance, reader.seal()?, &self.options.container)?;
        let name = self.options.container.name.clone().unwrap_or_else(|| "NAME".into());
        let request = self.options.request(name, bundle.as_ref(), root, net)?;
        let mut lines = before(&request, &reader, &snapshot);
        lines.extend(files(&snapshot));
        lines.extend(processes(&snapshot, &births));
        lines.extend(after(&snapshot));
        if self.json {
            let all: Vec<Value> =
                lines.iter().map(|l| json!({ "step": l.step, "what": l.what, "why": l.why })).collect();
            print::out(&json!(all).to_string());
            return Ok(0);
        }
        let head = ["STEP", "WHAT", "WHY"].map(str::to_owned).to_vec();
        let row = |l: &Line| vec![l.step.to_owned(), print::safe(&l.what), l.why.to_owned()];
        let rows: Vec<Vec<String>> = std::iter::once(head).chain(lines.iter().map(row)).collect();
        print::out(&print::table(&rows));
        Ok(0)
    }
}

fn line(step: &'static str, what: impl Into<String>, why: &'static str) -> Line {
    Line { step, what: what.into(), why }
}

fn before(request: &Request, reader: &Reader, snapshot: &Snapshot) -> Vec<Line> {
    let user = match request.userns {
        Userns::Auto => line("admit", "a new user namespace", "the one question: may the caller have a container"),
        Userns::Host => line("admit", "the caller's user namespace", "asked for; only real root may"),
    };
    let root = match &request.root {
        Root::Layered => "root: the host's, read-only, below a private layer".to_owned(),
        Root::Dir(dir) => format!("root: {}", dir.display()),
        Root::Caller => "root: the caller's own view".to_owned(),
    };
    let net = match request.net {
        Net::Private => line("contain", "network: a new one, loopback up", "never from the image"),
        Net::Host => line("contain", "network: the caller's", "the image's tree lived in it, or asked for"),
        Net::None => line("contain", "network: a new one, nothing up", "asked for"),
    };
    let mut lines = vec![
        user,
        line(
            "contain",
            "pid, mount, ipc, uts, cgroup and time namespaces",
            "from the caller and host, never from the image",
        ),
        line("contain", root, "from the caller"),
        net,
    ];
    for volume in &request.volumes {
        lines.push(line(
            "contain",
            format!("volume {} = {}", volume.name, volume.host.display()),
            "given by the caller",
        ));
    }
    lines.extend(holes(request, snapshot));
    for (what, limit) in [("memory", request.memory), ("pids", request.pids)] {
        lines.extend(limit.map(|n| line("contain", format!("limit of {what}: {n}"), "asked for")));
    }
    for profile in &request.policy.profiles {
        lines.push(line(
            "confine",
            format!("label of every task: {profile}"),
            "given by the caller, whatever the image had",
        ));
    }
    let labels = if request.policy.keep_lsm { "those of the image" } else { "the caller's own" };
    let why = if request.policy.keep_lsm {
        "asked for; if modules and policy are the same, and host and kernel permit each"
    } else {
        "a task gets what the caller's tasks get"
    };
    lines.push(line("confine", format!("other labels: {labels}"), why));
    let (files, bytes) = (reader.manifest().files.len(), print::bytes(reader.manifest().bytes()));
    lines.push(line(
        "load",
        format!("{files} files of the image, {bytes}"),
        "inside: only with the container's rights",
    ));
    let (monotonic, boottime) = snapshot.container.clocks;
    let clocks = format!("clocks at {} and {}", print::micros(monotonic / 1000), print::micros(boottime / 1000));
    lines.push(line("rebuild", clocks, "CLOCK_MONOTONIC and BOOTTIME go on from there"));
    for layer in &snapshot.container.layers {
        let what = format!("file system {}: {} entries", layer.mount, layer.entries.len());
        lines.push(line("rebuild", what, "the container's private changes travel with it"));
    }
    lines
}

/// What the image wants and the options do not give: the restore would stop there.
fn holes(request: &Request, snapshot: &Snapshot) -> Vec<Line> {
    const MISSING: &str = "MISSING: the restore would stop here";
    let mut lines = Vec::new();
    let given = matches!(request.root, Root::Dir(_));
    match snapshot.container.root {
        snapshot::Root::Dir if !given => {
            lines.push(line("load", "the image's root was a directory: give it with --rootfs DIR", MISSING));
        }
        snapshot::Root::Bundle if request.layout.is_none() => {
            lines.push(line("load", "the image's root was a bundle: give it with --bundle DIR", MISSING));
        }
        _ => {}
    }
    for hole in &snapshot.container.volumes {
        if !request.volumes.iter().any(|v| v.name == hole.name) {
            let name = print::safe(&hole.name);
            lines.push(line(
                "load",
                format!("volume {name} at {}: give it with --volume {name}=HOSTPATH", hole.inside),
                MISSING,
            ));
        }
    }
    lines
}

fn files(snapshot: &Snapshot) -> Vec<Line> {
    let file = |entry: &yendor_kinds::file::Entry| {
        let what = format!("file {}: {}", entry.id, super::inspect::describe(&entry.record));
        line("rebuild", what, "made once, in the keeper; tasks inherit it")
    };
    let object = |object: &yendor_kinds::memory::shared::Record| {
        line("rebuild", format!("shared memory {}: {}", object.id, print::bytes(object.size)), "mapped by its tasks")
    };
    snapshot.files.iter().map(file).chain(snapshot.objects.iter().map(object)).collect()
}

fn processes(snapshot: &Snapshot, births: &Births) -> Vec<Line> {
    let mut lines = vec![line("rebuild", "pid 1, a small init", "reaps; its end is the container's end")];
    for birth in &births.births {
        lines.push(line("rebuild", born(birth), reason(birth)));
    }
    for process in &snapshot.processes {
        let pid = process.pid;
        match &process.state {
            State::Zombie(status) => {
                lines.push(line(
                    "rebuild",
                    format!("process {pid} exits with status {status:#x}"),
                    "its parent has not waited for it",
                ));
            }
            State::Alive(alive) => {
                let pages: u64 =
                    alive.memory.pages.iter().filter_map(yendor_image::PageRun::bytes).fold(0, u64::saturating_add);
                let (areas, threads) = (alive.memory.areas.len(), alive.threads.len());
                let (pages, files) = (print::bytes(pages), alive.descriptors.len());
                let what =
                    format!("process {pid}: {areas} areas, {pages} of pages, {files} descriptors, {threads} threads");
                lines.push(line("rebuild", what, "by scripts of system calls in the new task"));
            }
            State::Exec(exec) => {
                lines.push(line("rebuild", format!("process {pid}: execve {}", exec.path), "a new program"))
            }
        }
    }
    lines
}

fn born(birth: &Birth) -> String {
    let leads = if birth.leads_session { ", leads a session" } else { "" };
    format!("process {} by {}, group {}{leads}", birth.pid, birth.creator, birth.group)
}

fn reason(birth: &Birth) -> &'static str {
    if birth.record.is_none() {
        "a stand-in for a dead leader; gone before the tasks run"
    } else if birth.sibling {
        "an orphan: born by its session's leader with CLONE_PARENT"
    } else if birth.before_setsid {
        "in its parent's former session: born before the parent leaves it"
    } else {
        "born by its parent"
    }
}

fn after(snapshot: &Snapshot) -> Vec<Line> {
    let mut lines = Vec::new();
    for (kind, object) in &snapshot.lost {
        lines.push(line(
            "rebuild",
            format!("lost: {}: {}", print::safe(kind), print::safe(object)),
            if kind == "label" { "no kernel tells it" } else { "allowed at the checkpoint" },
        ));
    }
    lines.push(line(
        "confine",
        "ids, capabilities, no_new_privs of each task",
        "last: permissions may have changed since",
    ));
    lines.push(line("thaw", "all tasks run", "at once or not at all"));
    lines
}
