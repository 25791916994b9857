//! The answers.

use std::path::{Path, PathBuf};

use toml::Spanned;

use super::read::position;
use super::{Denial, FILE, Limits, Line, Network, Person, Policy, Verb, Volumes, Who};

/// A host path that the caller hands in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPath {
    /// The volume's name.
    pub name: String,
    /// Where it really is: what the opened descriptor says, not what the caller wrote.
    pub path: PathBuf,
    /// Whether it may only be read inside.
    pub read_only: bool,
}

/// What a caller wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask<'a> {
    /// To do what.
    pub verb: Verb,
    /// `private`, `host` or `none`; none when it is not known yet, because only the image tells what it had.
    pub network: Option<&'a str>,
    /// Whether the container is to live in the caller's own user namespace.
    pub userns_host: bool,
    /// The volumes.
    pub volumes: &'a [HostPath],
    /// The directory that becomes the root file system, where it really is.
    pub rootfs: Option<&'a Path>,
    /// Whether the container sees, and writes, the caller's own files: all of them.
    pub own_view: bool,
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// Tasks.
    pub pids: Option<u64>,
}

/// What the container is given, and what is still to be asked when more is known.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Granted {
    /// Limits that hold: the caller's, or else the host's.
    pub memory: Option<u64>,
    /// The same for tasks.
    pub pids: Option<u64>,
    /// Public keys (minisign); the image must have a signature by one of them. Empty: no signature is asked for.
    pub signed_by: Vec<String>,
    /// Labels that may be kept, `LSM:LABEL`, where `*` at the end stands for anything; none: all that the kernel permits.
    pub keep_labels: Option<Vec<String>>,
    /// Where in the file those two are, for denials.
    pub places: Places,
}

/// File, line and column of rules that are asked about later; empty for one that is not there.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Places {
    /// Of `signed-by`.
    pub signed_by: String,
    /// Of `keep-labels`.
    pub keep_labels: String,
}

impl Granted {
    /// Whether the host lets this label be taken from an image.
    #[must_use]
    pub fn may_keep(&self, lsm: &str, label: &str) -> bool {
        let full = format!("{lsm}:{label}");
        let matches = |rule: &String| match rule.strip_suffix('*') {
            Some(start) => full.starts_with(start),
            None => *rule == full,
        };
        self.keep_labels.as_ref().is_none_or(|rules| rules.iter().any(matches))
    }
}

impl Policy {
    /// Whether there is a file.
    #[must_use]
    pub fn is_present(&self) -> bool {
        self.present
    }

    /// Whether this person may do this at all.
    ///
    /// # Errors
    /// The line that forbids it.
    pub fn admits(&self, person: &Person, verb: Verb) -> Result<(), Denial> {
        match self.who(verb) {
            Some(who) if !person.known => Err(self.denied(
                who,
                verb.name(),
                &format!("only {}, and who you are outside of your user namespace cannot be told", who.get_ref()),
                "call from outside of it: in there everybody can have the ids of anybody",
            )),
            Some(who) if !person.is_meant(who.get_ref()) => Err(self.denied(
                who,
                verb.name(),
                &format!("{} is not among {}", person.name(), who.get_ref()),
                "ask root for a line that names you",
            )),
            _ => Ok(()),
        }
    }

    /// Whether a network, as `--net` takes it, is among those that are allowed.
    #[must_use]
    pub fn has_network(&self, name: &str) -> bool {
        self.rules.networks.as_ref().is_none_or(|rule| rule.get_ref().iter().any(|n| n.name() == name))
    }

    /// Decides.
    ///
    /// # Errors
    /// The first line that forbids it.
    pub fn decide(&self, person: &Person, ask: &Ask<'_>) -> Result<Granted, Denial> {
        self.admits(person, ask.verb)?;
        if let (Some(rule), true) = (&self.rules.userns_host, ask.userns_host)
            && !rule.get_ref()
        {
            return Err(self.denied(rule, "userns-host", "--userns host is not allowed", "leave it out"));
        }
        if let (Some(rule), Some(wanted)) = (&self.rules.networks, ask.network)
            && !rule.get_ref().iter().any(|n| n.name() == wanted)
        {
            let allowed: Vec<&str> = rule.get_ref().iter().map(|n| n.name()).collect();
            let hint = match allowed.first() {
                Some(first) => format!("choose another: --net {first}"),
                None => "no network is allowed, so no container is".into(),
            };
            let what = format!("--net {wanted} is not among: {}", allowed.join(", "));
            return Err(self.denied(rule, "networks", &what, &hint));
        }
        if let Some(rule) = &self.rules.volumes {
            for volume in ask.volumes {
                self.volume(rule, volume)?;
            }
        }
        if let (Some(rule), Some(root)) = (&self.rules.rootfs, ask.rootfs)
            && !beneath(root, rule.get_ref())
        {
            let what = format!("--rootfs {} is not beneath an allowed directory", root.display());
            return Err(self.denied(rule, "rootfs", &what, &shown(rule.get_ref())));
        }
        if ask.own_view {
            self.own_view()?;
        }
        let (memory, pids) = match &self.rules.limits {
            None => (ask.memory, ask.pids),
            Some(rule) => {
                let Limits { memory, pids } = rule.get_ref();
                (self.limit(rule, "memory", ask.memory, *memory)?, self.limit(rule, "pids", ask.pids, *pids)?)
            }
        };
        let signed_by = match (&self.rules.signed_by, ask.verb) {
            (Some(keys), Verb::Restore) => keys.get_ref().clone(),
            _ => Vec::new(),
        };
        let keep_labels = self.rules.keep_labels.as_ref().map(|l| l.get_ref().clone());
        let place =
            |rule: &Option<Spanned<Vec<String>>>| rule.as_ref().map(|r| self.place_in_file(r)).unwrap_or_default();
        let places = Places { signed_by: place(&self.rules.signed_by), keep_labels: place(&self.rules.keep_labels) };
        Ok(Granted { memory, pids, signed_by, keep_labels, places })
    }

    /// What every rule means for a person, allowed or not.
    #[must_use]
    pub fn explain(&self, person: &Person) -> Vec<Line> {
        let rules = &self.rules;
        let mut lines = Vec::new();
        let mut say = |rule, meaning: String, forbids| lines.push(Line { rule, meaning, forbids });
        for verb in Verb::ALL {
            if let Some(who) = self.who(verb) {
                let may = person.is_meant(who.get_ref());
                let word = if may { "may" } else { "may not" };
                say(verb.name(), format!("only {}; you {word} ({})", who.get_ref(), self.place(who)), !may);
            }
        }
        if let Some(rule) = &rules.networks {
            let names: Vec<&str> = rule.get_ref().iter().map(|n| n.name()).collect();
            say("networks", format!("only {} ({})", names.join(", "), self.place(rule)), names.is_empty());
        }
        if let Some(rule) = &rules.userns_host {
            let word = if *rule.get_ref() { "allowed to root" } else { "not allowed" };
            say("userns-host", format!("--userns host is {word} ({})", self.place(rule)), false);
        }
        if let Some(rule) = &rules.volumes {
            let Volumes { read_only, read_write } = rule.get_ref();
            let text = format!("read-only {}; read-write {}", shown(read_only), shown(read_write));
            say("volumes", format!("{text} ({})", self.place(rule)), false);
        }
        if let Some(rule) = &rules.rootfs {
            say("rootfs", format!("{} ({})", shown(rule.get_ref()), self.place(rule)), false);
        }
        if let Some(rule) = &rules.keep_labels {
            say("keep-labels", format!("only {} ({})", rule.get_ref().join(", "), self.place(rule)), false);
        }
        if let Some(rule) = &rules.signed_by {
            let keys = rule.get_ref().join(", ");
            say("signed-by", format!("images need a signature by {keys} ({})", self.place(rule)), false);
        }
        if let Some(rule) = &rules.limits {
            let show = |n: Option<u64>| n.map_or("as asked".to_owned(), |n| format!("at most {n}"));
            let Limits { memory, pids } = rule.get_ref();
            say("limits", format!("memory {}, pids {} ({})", show(*memory), show(*pids), self.place(rule)), false);
        }
        lines
    }

    fn who(&self, verb: Verb) -> Option<&Spanned<Who>> {
        match verb {
            Verb::Run => self.rules.run.as_ref(),
            Verb::Restore => self.rules.restore.as_ref(),
            Verb::Checkpoint => self.rules.checkpoint.as_ref(),
        }
    }

    /// All of the host's files, to be written: where volumes or roots are narrowed, that must be said.
    fn own_view(&self) -> Result<(), Denial> {
        const WHAT: &str = "an image of a tree that saw its caller's files (checkpoint --pid) gets yours, from /";
        const HINT: &str = "restore it with --rootfs DIR";
        let all = Path::new("/");
        match (&self.rules.rootfs, &self.rules.volumes) {
            (Some(rule), _) if !beneath(all, rule.get_ref()) => Err(self.denied(rule, "rootfs", WHAT, HINT)),
            (None, Some(rule)) if !beneath(all, &rule.get_ref().read_write) => {
                Err(self.denied(rule, "volumes", WHAT, HINT))
            }
            _ => Ok(()),
        }
    }

    fn volume(&self, rule: &Spanned<Volumes>, volume: &HostPath) -> Result<(), Denial> {
        let Volumes { read_only, read_write } = rule.get_ref();
        if beneath(&volume.path, read_write) || (volume.read_only && beneath(&volume.path, read_only)) {
            return Ok(());
        }
        let what = format!("volume {}: {} may not be handed in", volume.name, volume.path.display());
        let hint = if beneath(&volume.path, read_only) {
            "it may be read-only: add :ro".to_owned()
        } else {
            format!("read-only: {}; read-write: {}", shown(read_only), shown(read_write))
        };
        Err(self.denied(rule, "volumes", &what, &hint))
    }

    /// The smaller of both; to ask for more is refused, not clamped.
    fn limit(
        &self,
        rule: &Spanned<Limits>,
        what: &str,
        asked: Option<u64>,
        most: Option<u64>,
    ) -> Result<Option<u64>, Denial> {
        match (asked, most) {
            (Some(asked), Some(most)) if asked > most => Err(self.denied(
                rule,
                "limits",
                &format!("{what} {asked} is more than {most}"),
                &format!("ask for less, or leave out --{what}: then {most} holds"),
            )),
            (asked, most) => Ok(asked.or(most)),
        }
    }

    fn denied<T>(&self, rule: &Spanned<T>, name: &str, what: &str, hint: &str) -> Denial {
        let place = self.place_in_file(rule);
        Denial { what: format!("host policy {place}: {name}: {what}"), place, hint: hint.to_owned() }
    }

    fn place<T>(&self, rule: &Spanned<T>) -> String {
        format!("line {}", position(&self.text, rule.span().start).0)
    }

    fn place_in_file<T>(&self, rule: &Spanned<T>) -> String {
        let (line, column) = position(&self.text, rule.span().start);
        format!("{FILE}:{line}:{column}")
    }
}

impl Network {
    fn name(self) -> &'static str {
        match self {
            Network::Private => "private",
            Network::Host => "host",
            Network::None => "none",
        }
    }
}

/// Whether a path, as it really is, is one of the directories or beneath it. These count as they are written: where a link among them leads
/// may be the choice of whom they restrict.
fn beneath(path: &Path, directories: &[PathBuf]) -> bool {
    directories.iter().any(|d| path.starts_with(d))
}

fn shown(paths: &[PathBuf]) -> String {
    if paths.is_empty() {
        return "nothing".into();
    }
    let one = |p: &PathBuf| match std::fs::canonicalize(p) {
        Ok(real) if real != *p => {
            format!("{} (leads to {}, and allows nothing: name that)", p.display(), real.display())
        }
        _ => p.display().to_string(),
    };
    paths.iter().map(one).collect::<Vec<_>>().join(", ")
}
