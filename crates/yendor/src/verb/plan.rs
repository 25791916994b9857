//! `yendor plan`: what a restore would do, in order, with reasons; nothing is run.

use std::os::fd::AsFd;
use std::path::Path;

use clap::Args;
use serde_json::{Value, json};
use yendor_engine::error::{Error, Step};
use yendor_engine::load::{self, Front, Glance, Loader, Look, Opened};
use yendor_engine::processor;
use yendor_engine::rebuild::plan::{Birth, Plan as Births, plan};
use yendor_engine::rebuild::vdso::Vdso;
use yendor_engine::request::{Net, Request, Root, Userns};
use yendor_engine::sign::Trust;
use yendor_engine::state::Places;
use yendor_engine::{admit, front};
use yendor_image::Reader;
use yendor_kinds::Cause;
use yendor_kinds::process::State;
use yendor_kinds::snapshot::{self, Snapshot};
use yendor_policy::host::Verb;

use crate::failure::{Failure, Outcome};
use crate::reference::{self, Image};
use crate::verb::restore::{self, Asked};
use crate::verb::{clone, start};
use crate::{caller, print};

/// Say what a restore would do, in order; run nothing
///
/// It takes the options of `restore`, and exits as that would where it had to stop for what is known before: the caller's rights and options, the
/// host's policy, the image's records, names in use, another kernel. What shows only when it is made again is not foreseen: a file that has changed,
/// an address in use, a lack of memory; nor damage of the image's pages.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  yendor plan web@1 --net host")]
pub struct Plan {
    #[command(flatten)]
    asked: Asked,
    /// Print as JSON
    #[arg(long)]
    pub json: bool,
}

struct Line {
    step: &'static str,
    what: String,
    why: &'static str,
    /// Whether the restore would get beyond it.
    ok: bool,
}

const STOPS: &str = "the restore would stop here";

impl Plan {
    /// Runs it.
    pub fn run(self) -> Outcome {
        let Asked { options, .. } = &self.asked;
        let places = Places::from_environment()?;
        let image = reference::find(&places, &self.asked.image)?;
        let keys = self.asked.keys()?;
        // The bundle is the caller's own; the image may be anybody's.
        let bundle = options.container.bundle()?;
        let identities = self.asked.identities.open()?;
        let mut trust = Trust { caller: keys, ..Trust::default() };
        let mut stops = Stops::default();
        match self.asked.ask(bundle.as_ref()) {
            Ok(granted) => (trust.host, trust.place) = (granted.signed_by, granted.places.signed_by),
            Err(failure) => stops.add("admit", failure),
        }
        check_signature(&image.path, &trust)?;
        let names = self.names(&places, &image);
        let vdso = Vdso::look();
        // With the caller's own rights, whatever the image will turn out to be.
        let name = options.container.name.clone().unwrap_or_else(|| "NAME".into());
        let mut might_be = Vec::new();
        for (root, net) in [(Root::Layered, Net::Private), (Root::Caller, Net::Host), (Root::Caller, Net::Private)] {
            let request = options.request(name.clone(), bundle.as_ref(), root.clone(), net)?;
            let granted = admit::ask(&request, Verb::Restore, true);
            // Where the caller has set no limit, the host's holds.
            let limited = granted.as_ref().ok().map(|granted| (granted.memory, granted.pids));
            let refused = granted.and_then(|_| front::has_labels(&request)).err();
            might_be.push(((root, net), request, limited, refused));
        }
        let look = Look::begin(&image.path)?;
        caller::give_up_rights(&image.path)?;
        let Opened { reader, snapshot, .. } = look.end(&identities, false)?.opened()?;
        let births =
            plan(&snapshot.processes, &snapshot.namespaces).map_err(|e| Failure::from(Error::new(Step::Rebuild, e)))?;
        let glance = Glance::at(reader.manifest().kind, &snapshot);
        let it_is = restore::surroundings(&places, glance, reader.seal()?, &options.container)?;
        let Some((_, request, limited, refused)) = might_be.into_iter().find(|(might, ..)| *might == it_is) else {
            return Err(Failure::NotYet(format!("a plan for {it_is:?}")));
        };
        // In this order the restore looks.
        if self.asked.clones.count.is_some() && reader.manifest().encryption.is_some() {
            stops.add("load", Failure::Usage(restore::ENCRYPTED_COUNT.into()));
        }
        if let Err(failure) = names {
            stops.add("admit", failure);
        }
        if let (None, Some(e)) = (&stops.first, refused) {
            stops.add(e.place.step.name(), e.into());
        }
        let (other_cpu, weaker_cpu) = match processor::check(&snapshot.machine, request.any_cpu) {
            Ok(note) => (None, note),
            Err(e) => (Some((line("load", e.cause.to_string(), STOPS), e)), None),
        };
        let other_cpu = stops.fill(other_cpu.into_iter().collect());
        let holes = stops.fill(holes(&request, &snapshot));
        let other = vdso.and_then(|vdso| vdso.check(&snapshot.machine)).err();
        let other = other.map(|e| (line("rebuild", e.cause.to_string(), STOPS), e));
        let other = stops.fill(other.into_iter().collect());
        let mut lines = std::mem::take(&mut stops.lines);
        lines.extend(before(&request, &reader, &snapshot, holes));
        lines.extend(other_cpu);
        lines.extend(weaker_cpu.map(|what| line("load", what, "asked for")));
        lines.extend(other);
        lines.extend(files(&snapshot));
        lines.extend(processes(&snapshot, &births));
        let (memory, pids) = limited.unwrap_or((request.memory, request.pids));
        let weaker = Request { memory, pids, ..request }.weaker_than(&snapshot.container.bounds);
        lines.extend(weaker.map(|what| line("confine", what, "from the caller and host, never from the image")));
        lines.extend(after(&snapshot));
        lines.extend(self.asked_for());
        self.print(&lines);
        match stops.first {
            // As the restore would.
            Some(failure) => Err(failure),
            None => Ok(0),
        }
    }

    fn print(&self, lines: &[Line]) {
        if self.json {
            let one = |l: &Line| json!({ "step": l.step, "what": l.what, "why": l.why, "ok": l.ok });
            print::out(&Value::from_iter(lines.iter().map(one)).to_string());
            return;
        }
        let head = ["STEP", "WHAT", "WHY"].map(str::to_owned).to_vec();
        let row = |l: &Line| vec![l.step.to_owned(), print::safe(&l.what), l.why.to_owned()];
        let rows: Vec<Vec<String>> = std::iter::once(head).chain(lines.iter().map(row)).collect();
        print::out(&print::table(&rows));
    }

    /// Whether the names of the containers are free.
    fn names(&self, places: &Places, image: &Image) -> Outcome {
        let name = restore::choose(places, self.asked.options.container.name.as_deref(), image)?;
        match self.asked.clones.count {
            Some(count) => clone::names(&name, count).iter().try_for_each(|name| start::check_free(places, name))?,
            None if restore::may_replace(places, &name) => {}
            None => start::check_free(places, &name)?,
        }
        Ok(0)
    }

    /// What is asked for beside the container itself.
    fn asked_for(&self) -> Vec<Line> {
        let Asked { detach, pidfile, lazy, clones, verify, guard, .. } = &self.asked;
        let mut lines = Vec::new();
        let mut add = |asked: bool, step, what: String| lines.extend(asked.then(|| line(step, what, "asked for")));
        add(!verify.is_empty(), "load", "the image is signed by one of the keys".into());
        add(*lazy, "load", "memory comes when it is touched, and all of it soon".into());
        let path = pidfile.as_ref().map(|path| path.display().to_string());
        add(pidfile.is_some(), "thaw", format!("the root task's pid is written into {}", path.unwrap_or_default()));
        add(guard.is_asked_for(), "thaw", "checkpoints are taken again and again from then on".into());
        add(clones.count.is_some(), "thaw", print::count(clones.count.unwrap_or(0) as usize, "container"));
        add(*detach, "thaw", "the command returns".into());
        lines
    }
}

/// Where the restore would stop.
#[derive(Default)]
struct Stops {
    lines: Vec<Line>,
    /// What it would say.
    first: Option<Failure>,
}

impl Stops {
    fn add(&mut self, step: &'static str, failure: Failure) {
        let what = failure.to_string().lines().next().unwrap_or_default().to_owned();
        self.lines.push(Line { ok: false, ..line(step, what, STOPS) });
        self.first.get_or_insert(failure);
    }

    /// Those with lines of their own.
    fn fill(&mut self, stops: Vec<(Line, Error)>) -> Vec<Line> {
        let one = |(line, error): (Line, Error)| {
            self.first.get_or_insert_with(|| error.into());
            Line { ok: false, ..line }
        };
        stops.into_iter().map(one).collect()
    }
}

/// Whether an image is signed as somebody wants it. The process that reads it says so; this one still has all of the caller's rights.
/// Whatever else is wrong, or encrypted, is found by the one after it.
fn check_signature(image: &Path, trust: &Trust) -> Result<(), Failure> {
    if trust.caller.is_empty() && trust.host.is_empty() {
        return Ok(());
    }
    let directory = load::open_directory(image)?;
    match Loader::start(directory.as_fd(), None, trust).and_then(|loader| loader.load(Front::OWN)) {
        Err(e) if e.exit_code() == 5 => Err(e.into()),
        _ => Ok(()),
    }
}

fn line(step: &'static str, what: impl Into<String>, why: &'static str) -> Line {
    Line { step, what: what.into(), why, ok: true }
}

fn before(request: &Request, reader: &Reader, snapshot: &Snapshot, holes: Vec<Line>) -> Vec<Line> {
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
        Net::Private if !snapshot.container.loopback => {
            line("contain", "network: a new one, nothing up", "its loopback was down")
        }
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
    lines.extend(holes);
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

/// What the image wants and the options do not give, or give and it has not: the restore would stop there.
fn holes(request: &Request, snapshot: &Snapshot) -> Vec<(Line, Error)> {
    const MISSING: &str = "MISSING: the restore would stop here";
    let mut stops = Vec::new();
    let at_load = |cause: Cause| Error::new(Step::Load, cause);
    let hole = |what: &str, option: &str| at_load(Cause::Hole { what: what.to_owned(), option: option.to_owned() });
    let given = matches!(request.root, Root::Dir(_));
    match snapshot.container.root {
        snapshot::Root::Dir if !given => {
            let line = line("load", "the image's root was a directory: give it with --rootfs DIR", MISSING);
            stops.push((line, hole("the directory that was its root file system", "--rootfs DIR")));
        }
        snapshot::Root::Bundle if request.layout.is_none() => {
            let line = line("load", "the image's root was a bundle: give it with --bundle DIR", MISSING);
            stops.push((line, hole("the bundle that it was started from", "--bundle DIR")));
        }
        _ => {}
    }
    let known = &snapshot.container.volumes;
    for hole in known.iter().filter(|hole| !request.volumes.iter().any(|v| v.name == hole.name)) {
        let name = print::safe(&hole.name);
        let what = format!("volume {name} at {}: give it with --volume {name}=HOSTPATH", hole.inside);
        let cause = Cause::Hole {
            what: format!("a host path for the volume that the image has at {}", hole.inside),
            option: format!("--volume {name}=HOSTPATH"),
        };
        stops.push((line("load", what, MISSING), at_load(cause).kind("volume", name)));
    }
    let names: Vec<&str> = known.iter().map(|hole| hole.name.as_str()).collect();
    let has =
        if names.is_empty() { "it has none".into() } else { format!("it has {}", print::safe(&names.join(", "))) };
    for left in request.volumes.iter().filter(|v| v.inside.is_none() && !names.contains(&v.name.as_str())) {
        let (name, host) = (&left.name, left.host.display());
        let message =
            format!("the image has no volume {name}: {has}; say where it belongs: --volume {name}={host}:PATH");
        stops.push((line("load", message.clone(), STOPS), at_load(Cause::Reported { message, code: 1 })));
    }
    stops
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
    if birth.leaves.is_some() {
        "a stand-in that leaves an orphan to who has adopted it; gone before the tasks run"
    } else if birth.record.is_none() {
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
