//! Records as text for people. Everything that an image spells goes through an escape.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use serde_json::Value;
use yendor_image::{Encryption, FileId, Manifest, Method, PageRun};
use yendor_kinds::file::{Entry, Record};
use yendor_kinds::memory::vma::{self, Backing};
use yendor_kinds::process::{self, State};
use yendor_kinds::snapshot::{Root, Snapshot};

use crate::print::{self, safe, table};
use crate::verb::images;

fn row(cells: &[&dyn std::fmt::Display]) -> Vec<String> {
    cells.iter().map(ToString::to_string).collect()
}

fn head(cells: &[&str]) -> Vec<String> {
    cells.iter().map(ToString::to_string).collect()
}

/// What it is, where it comes from, how much there is of what.
pub fn summary(manifest: &Manifest, signed_by: Option<&str>, snapshot: &Snapshot, name: &str) -> String {
    let Snapshot { machine, container, processes, files, objects, restrictions, namespaces, lost } = snapshot;
    let threads: usize = alive(snapshot).map(|(_, a)| a.threads.len()).sum();
    let zombies = processes.iter().filter(|p| matches!(p.state, State::Zombie(_))).count();
    let pages: u64 = alive(snapshot).flat_map(|(_, a)| &a.memory.pages).filter_map(PageRun::bytes).sum();
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    for file in files {
        *kinds.entry(file.record.kind()).or_default() += 1;
    }
    let kinds: Vec<String> = kinds.iter().map(|(kind, n)| format!("{n} {kind}")).collect();
    let root = match container.root {
        Root::Layered => "the host's below a private layer",
        Root::Dir => "a directory of the caller's (restore needs --rootfs)",
        Root::Bundle => "an OCI bundle (restore needs --bundle)",
        Root::Caller => "the caller's own view",
    };
    let root_task = snapshot.root().map(comm).unwrap_or_default();
    let rows = [
        ("machine", format!("{}, Linux {}", safe(&machine.architecture), safe(&machine.kernel))),
        ("processor", processor(&machine.processor)),
        ("host name", container.hostname.to_string()),
        ("root", root.to_owned()),
        ("network", if container.own_network { "its own" } else { "the caller's" }.to_owned()),
        ("processes", format!("{} ({zombies} zombies), {threads} threads; first: {root_task}", processes.len())),
        ("memory", format!("{} of pages, {} shared objects", print::bytes(pages), objects.len())),
        ("open files", format!("{}: {}", files.len(), kinds.join(", "))),
        (
            "file systems",
            container
                .layers
                .iter()
                .map(|l| format!("{} ({} entries)", l.mount, l.entries.len()))
                .collect::<Vec<_>>()
                .join(", "),
        ),
        (
            "volumes",
            container
                .volumes
                .iter()
                .map(|v| format!("{} at {}{}", safe(&v.name), v.inside, if v.read_only { ", read-only" } else { "" }))
                .collect::<Vec<_>>()
                .join("; "),
        ),
        (
            "confined with",
            container
                .bounds
                .iter()
                .map(|bound| bound.option())
                .collect::<BTreeSet<_>>()
                .into_iter()
                .collect::<Vec<_>>()
                .join(", "),
        ),
        (
            "restrictions",
            format!("{} seccomp filters, {} Landlock domains", restrictions.filters.len(), restrictions.domains.len()),
        ),
        (
            "namespaces inside",
            namespaces.iter().map(|namespace| namespace.kind().name()).collect::<Vec<_>>().join(", "),
        ),
        ("lost", if lost.is_empty() { "nothing".to_owned() } else { format!("{} objects: see --lost", lost.len()) }),
    ];
    let rows = outside(manifest, signed_by, name).into_iter().chain(rows);
    table(&rows.map(|(name, value)| row(&[&name, &value])).collect::<Vec<_>>())
}

/// The level of x86-64 (the psABI's) that a processor's features make, and how many of them there are.
fn processor(features: &[String]) -> String {
    const LEVELS: [&str; 3] = [
        "cx16 lahf_lm pni popcnt sse4_1 sse4_2 ssse3",
        "abm avx avx2 bmi1 bmi2 f16c fma movbe osxsave",
        "avx512bw avx512cd avx512dq avx512f avx512vl",
    ];
    if features.is_empty() {
        return "not recorded".to_owned();
    }
    let has = |level: &&&str| level.split(' ').all(|name| features.iter().any(|feature| feature == name));
    let level = LEVELS.iter().take_while(has).count() + 1;
    format!("x86-64-v{level}, {}", print::count(features.len(), "feature"))
}

/// What an encrypted image says to everybody.
pub fn closed(manifest: &Manifest, signed_by: Option<&str>, name: &str) -> String {
    table(&outside(manifest, signed_by, name).iter().map(|(name, value)| row(&[name, value])).collect::<Vec<_>>())
}

/// What the manifest and its signature say.
fn outside(manifest: &Manifest, signed_by: Option<&str>, name: &str) -> Vec<(&'static str, String)> {
    let encryption = match &manifest.encryption {
        None => "none: whoever has the image can read it".to_owned(),
        Some(Encryption { method: Method::AgeX25519, recipients }) => {
            format!("age; by its writer's word it opens for {}", safe(&recipients.join(", ")))
        }
    };
    let signature = match signed_by {
        None => "none".to_owned(),
        Some(key) => format!("claims to be by the key {}; restore --verify compares", safe(key)),
    };
    vec![
        ("image", safe(name)),
        ("kind", format!("{}, generation {}", images::kind(manifest.kind), manifest.generation)),
        ("created", print::date(manifest.created)),
        ("size", format!("{} in {} files", print::bytes(manifest.bytes()), manifest.files.len())),
        ("compression", compression(manifest)),
        ("encryption", encryption),
        ("signature", signature),
    ]
}

/// How much of what is how small.
fn compression(manifest: &Manifest) -> String {
    let mut all: BTreeMap<&str, (usize, u64, u64)> = BTreeMap::new();
    for entry in &manifest.files {
        let Some(compressed) = entry.compressed else { continue };
        let (files, bytes, content) = all.entry(compressed.codec.name()).or_default();
        *files += 1;
        *bytes = bytes.saturating_add(entry.bytes);
        *content = content.saturating_add(compressed.content);
    }
    if all.is_empty() {
        return "none".to_owned();
    }
    let one = |(codec, (files, bytes, content)): (&&str, &(usize, u64, u64))| {
        let percent = u128::from(*bytes) * 100 / u128::from(*content).max(1);
        let (bytes, content) = (print::bytes(*bytes), print::bytes(*content));
        format!("{codec}: {bytes} for {content} ({percent} %), {}", print::count(*files, "file"))
    };
    all.iter().map(one).collect::<Vec<_>>().join("; ")
}

fn alive(snapshot: &Snapshot) -> impl Iterator<Item = (&process::Record, &process::Alive)> {
    snapshot.processes.iter().filter_map(|p| match &p.state {
        State::Alive(alive) => Some((p, &**alive)),
        _ => None,
    })
}

fn comm(process: &process::Record) -> String {
    match &process.state {
        State::Alive(alive) => alive.threads.first().map(|t| t.attributes.name.to_string()).unwrap_or_default(),
        State::Zombie(_) => "<zombie>".to_owned(),
        State::Exec(exec) => exec.path.to_string(),
    }
}

/// Processes as a tree, threads beside them.
pub fn tree(snapshot: &Snapshot) -> String {
    let mut children: BTreeMap<i32, Vec<&process::Record>> = BTreeMap::new();
    let pids: BTreeSet<i32> = snapshot.processes.iter().map(|p| p.pid.0).collect();
    for p in &snapshot.processes {
        // One whose parent is no process of the image stands at the left.
        let parent = if pids.contains(&p.parent.0) && p.parent != p.pid { p.parent.0 } else { 0 };
        children.entry(parent).or_default().push(p);
    }
    let mut out = String::new();
    // Taken out as they are printed: a cycle in a hostile image is printed once, and ends.
    let mut waiting: Vec<(usize, &process::Record)> = Vec::new();
    let first = children.remove(&0).unwrap_or_default();
    for p in first.into_iter().rev() {
        waiting.push((0, p));
    }
    while let Some((depth, p)) = waiting.pop() {
        let (pad, name) = ("  ".repeat(depth.min(64)), comm(p));
        let _ = write!(out, "{pad}{} {name}  group {} session {}", p.pid, p.group, p.session);
        if let State::Alive(alive) = &p.state {
            let others: Vec<String> = alive.threads.iter().skip(1).map(|t| t.tid.to_string()).collect();
            if !others.is_empty() {
                let _ = write!(out, "  threads {}", others.join(" "));
            }
            if let Some(stop) = alive.stopped {
                let _ = write!(out, "  stopped by {}", crate::signal::name(stop.signal));
            }
        }
        out.push('\n');
        for child in children.remove(&p.pid.0).unwrap_or_default().into_iter().rev() {
            waiting.push((depth + 1, child));
        }
    }
    out.trim_end().to_owned()
}

/// One line on a file: its kind and what it says of itself.
pub fn describe(record: &Record) -> String {
    let value = serde_json::to_value(record).unwrap_or_default();
    // {"kind": {fields}}
    if matches!(record, Record::Console(_)) {
        return "console the container's terminal".to_owned();
    }
    let inner = value.as_object().and_then(|o| o.values().next()).cloned().unwrap_or(value);
    format!("{} {}", record.kind(), shortened(&inner)).trim_end().to_owned()
}

fn shortened(value: &Value) -> String {
    const LONGEST: usize = 160;
    let text = match value {
        Value::Object(fields) => match fields.get("path") {
            Some(Value::String(path)) => path.clone(),
            _ => fields.iter().map(|(k, v)| format!("{k}={}", plain(v))).collect::<Vec<_>>().join(" "),
        },
        other => plain(other),
    };
    let text = safe(&text);
    match text.char_indices().nth(LONGEST) {
        Some((at, _)) => format!("{} ...", text.get(..at).unwrap_or_default()),
        None => text,
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn by_id(snapshot: &Snapshot) -> BTreeMap<FileId, &Entry> {
    snapshot.files.iter().map(|f| (f.id, f)).collect()
}

/// Descriptors of each process.
pub fn files(snapshot: &Snapshot) -> String {
    let known = by_id(snapshot);
    let mut rows = vec![head(&["PID", "FD", "FILE", "FLAGS", "WHAT"])];
    for p in &snapshot.processes {
        let descriptors = match &p.state {
            State::Alive(alive) => &alive.descriptors,
            State::Exec(exec) => &exec.descriptors,
            State::Zombie(_) => continue,
        };
        for d in descriptors {
            let entry = known.get(&d.file);
            let what = entry.map_or_else(|| "(missing)".to_owned(), |e| describe(&e.record));
            let flags =
                entry.map_or_else(String::new, |e| format!("{:o}{}", e.flags, if d.cloexec { " cloexec" } else { "" }));
            rows.push(row(&[&p.pid, &d.number, &d.file, &flags, &what]));
        }
    }
    table(&rows)
}

/// Sockets, with who holds them.
pub fn sockets(snapshot: &Snapshot) -> String {
    const KINDS: [&str; 6] = ["unix", "inet", "tcp", "udp", "netlink", "packet"];
    let mut rows = vec![head(&["FILE", "HELD BY", "WHAT"])];
    for entry in &snapshot.files {
        let kind = entry.record.kind();
        if !KINDS.iter().any(|k| kind.contains(k)) && !kind.contains("socket") {
            continue;
        }
        let holders: Vec<String> = alive(snapshot)
            .flat_map(|(p, a)| {
                a.descriptors.iter().filter(|d| d.file == entry.id).map(move |d| format!("{}:{}", p.pid, d.number))
            })
            .collect();
        rows.push(row(&[&entry.id, &holders.join(" "), &describe(&entry.record)]));
    }
    table(&rows)
}

/// Areas of each address space.
pub fn memory(snapshot: &Snapshot) -> String {
    let known = by_id(snapshot);
    let mut rows = vec![head(&["PID", "START", "END", "PROT", "STORED", "WHAT"])];
    for (p, a) in alive(snapshot) {
        for area in &a.memory.areas {
            let stored: u64 = a.memory.pages.iter().map(|run| overlap(run, area)).sum();
            let policy = area.policy.as_ref().map(|p| format!(", memory policy {:#x}", p.mode)).unwrap_or_default();
            let what = backing(area, &known) + &policy;
            rows.push(row(&[&p.pid, &area.start, &area.end, &protection(area), &print::bytes(stored), &what]));
        }
    }
    table(&rows)
}

fn overlap(run: &PageRun, area: &vma::Record) -> u64 {
    let end = run.end().map_or(0, |end| end.0).min(area.end.0);
    end.saturating_sub(run.addr.0.max(area.start.0))
}

fn protection(area: &vma::Record) -> String {
    let bit = |bit: u32, letter: char| if area.protection & bit != 0 { letter } else { '-' };
    [bit(1, 'r'), bit(2, 'w'), bit(4, 'x'), if area.shared { 's' } else { 'p' }].iter().collect()
}

fn backing(area: &vma::Record, known: &BTreeMap<FileId, &Entry>) -> String {
    let name = area.name.as_ref().map(|n| format!(" [{n}]")).unwrap_or_default();
    match &area.backing {
        Backing::Anonymous => format!("anonymous{name}"),
        Backing::File(id, offset) => {
            let what = known.get(id).map_or_else(|| "(missing)".to_owned(), |e| describe(&e.record));
            format!("{what} +{offset:#x}")
        }
        Backing::Object(id, offset) => format!("shared object {id} +{offset:#x}"),
        Backing::Sysv { id, offset, read_only: _ } => format!("System V segment {id} +{offset:#x}"),
        Backing::Vdso => "vdso".to_owned(),
        Backing::Vvar | Backing::VvarClock => "vvar".to_owned(),
    }
}

/// Who each thread is, and how many seccomp filters and Landlock domains it has put on itself.
pub fn security(snapshot: &Snapshot) -> String {
    let mut rows = vec![head(&[
        "TID",
        "UIDS",
        "GIDS",
        "GROUPS",
        "EFFECTIVE",
        "PERMITTED",
        "BOUNDING",
        "NO_NEW_PRIVS",
        "SECUREBITS",
        "FILTERS",
        "DOMAINS",
    ])];
    let list = |ids: &[u32]| ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let mut add = |id: &dyn std::fmt::Display, c: &process::credential::Record, restricted: [usize; 2]| {
        let [_, permitted, effective, bounding, _] = c.capabilities.map(|set| format!("{set:x}"));
        rows.push(row(&[
            id,
            &list(&c.uids),
            &list(&c.gids),
            &list(&c.groups),
            &effective,
            &permitted,
            &bounding,
            &c.no_new_privs,
            &format!("{:#x}", c.securebits),
            &restricted[0],
            &restricted[1],
        ]));
    };
    for p in &snapshot.processes {
        match &p.state {
            State::Alive(alive) => alive.threads.iter().for_each(|t| {
                add(&t.tid, &t.credentials, [t.restricted.filters.len(), t.restricted.domains.len()]);
            }),
            State::Exec(exec) => add(&p.pid, &exec.credentials, [0, 0]),
            State::Zombie(_) => {}
        }
    }
    let labels = labels(snapshot);
    [table(&rows), labels].join("\n\n")
}

/// The security modules of the checkpoint's machine, and the labels that its threads and sockets had.
fn labels(snapshot: &Snapshot) -> String {
    let security = &snapshot.machine.security;
    if security.active.is_empty() {
        return "security modules: not known".to_owned();
    }
    let mut out = format!("security modules: {}", safe(&security.active.join(", ")));
    for policy in &security.policies {
        let parts = match &policy.parts {
            None => "could not be read".to_owned(),
            Some(parts) if parts.is_empty() => "no label needs any of it".to_owned(),
            Some(parts) => {
                parts.iter().map(|(what, digest)| format!("{what} ({digest})")).collect::<Vec<_>>().join(", ")
            }
        };
        let load = policy.load.as_ref().map(|load| format!("; load {load}")).unwrap_or_default();
        let _ = write!(out, "\npolicy of {}: {}", safe(&policy.module), safe(&(parts + &load)));
    }
    let mut rows = vec![head(&["TID", "MODULE", "OF", "LABEL"])];
    for (_, a) in alive(snapshot) {
        for (thread, label) in a.threads.iter().flat_map(|t| t.labels.iter().map(move |l| (t, l))) {
            let text = label.label.as_ref().map_or_else(|| "(could not be read)".to_owned(), ToString::to_string);
            rows.push(row(&[&thread.tid, &safe(&label.module), &safe(&label.attribute), &text]));
        }
    }
    for (entry, label) in snapshot.files.iter().flat_map(|e| e.labels.iter().map(move |l| (e, l))) {
        let text = label.label.as_ref().map_or_else(|| "(could not be read)".to_owned(), ToString::to_string);
        rows.push(row(&[&format!("file {}", entry.id), &safe(&label.module), &safe(&label.attribute), &text]));
    }
    if rows.len() > 1 {
        let _ = write!(out, "\n{}", table(&rows));
    }
    out
}

/// What was lost with the checkpoint's caller's leave, and labels that no kernel tells.
pub fn lost(snapshot: &Snapshot) -> String {
    if snapshot.lost.is_empty() {
        return "nothing was lost".to_owned();
    }
    let rows = snapshot.lost.iter().map(|(kind, object)| vec![safe(kind), safe(object)]);
    table(&std::iter::once(head(&["KIND", "OBJECT"])).chain(rows).collect::<Vec<_>>())
}
