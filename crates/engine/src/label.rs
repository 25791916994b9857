//! Which security labels the tasks of a container get: by default none but the caller's own, which they inherit.
//!
//! With `--lsm-profile` every task gets that label, whatever the image says; with `--keep-lsm` the recorded ones, if the
//! same modules are active, their policy is the same, the host's policy permits it, and the kernel permits each to the
//! task that is to have it. Nothing of this can fail half: what one task is denied ends the restore.
//!
//! When a task is labelled depends on the module. Generally after its user and capabilities, since a profile may forbid the
//! calls that set them, and before `no_new_privs`, under which AppArmor refuses. Smack wants a capability for it, so there
//! it comes before. SELinux refuses it to a process with threads, so there the leader is labelled before it has any.

pub(crate) mod entry;
mod socket;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use yendor_image::Bytes;
use yendor_kinds::process::label::{self, Label, Way};
use yendor_kinds::process::{Record, State, Thread};
use yendor_kinds::snapshot::Snapshot;
use yendor_kinds::{Cause, Named};
use yendor_policy::host::Granted;
use yendor_policy::lsm::{self, Attribute, Here, Identity, Module, Profile};
use yendor_sys::SysError;
use yendor_task::Script;

use crate::collect::labels_of;
use crate::error::{At, Error, Result, Step, With};
use crate::request::Request;

/// What else there is.
const WITHOUT: &str = "restore without --keep-lsm: the tasks then get your own label, or that of --lsm-profile";

/// One label for one task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    module: Module,
    attribute: Attribute,
    label: Vec<u8>,
}

/// What is decided about labels, and what a task needs to set them.
#[derive(Debug, Default)]
pub struct Labels {
    profiles: Vec<(Module, Vec<u8>)>,
    keep: bool,
    modules: Vec<Module>,
    /// What a stub has already.
    now: Vec<Set>,
    calls: bool,
    here: Option<Here>,
    /// The files of the image, under SELinux, with their labels; none: some cannot be read.
    image: Option<BTreeSet<entry::File>>,
    door: Option<OwnedFd>,
    /// The same, above all numbers of the image: also in every stub.
    number: Option<i32>,
}

impl Labels {
    /// Looks at what the request needs; to be called while securityfs and /proc are the caller's.
    ///
    /// # Errors
    /// A module that is not active here: what it was asked to confine would run unconfined.
    pub fn look(request: &Request, image: Option<&OwnedFd>) -> Result<Labels> {
        let policy = &request.policy;
        if policy.profiles.is_empty() && !policy.keep_lsm {
            return Ok(Labels::default());
        }
        let here = Here::look();
        let modules = here.modules();
        let profiles = policy.profiles.iter().map(|p| active(p, &modules));
        let profiles: Vec<_> = profiles.collect::<std::result::Result<_, Cause>>().at(Step::Confine)?;
        let tomoyo = modules.contains(&Module::Tomoyo)
            && (policy.keep_lsm || profiles.iter().any(|(module, _)| *module == Module::Tomoyo));
        let door = tomoyo.then(|| here.tomoyo_door()).transpose().at(Step::Confine)?;
        let now = now(&here, &modules).at(Step::Confine)?;
        let image = if modules.contains(&Module::SELinux) { image.and_then(entry::files) } else { None };
        let (keep, calls) = (policy.keep_lsm, yendor_sys::lsm::has_calls());
        Ok(Labels { profiles, keep, modules, now, calls, here: Some(here), image, door, number: None })
    }

    /// Whether the image's labels may be kept.
    ///
    /// # Errors
    /// A permission error: other modules, another policy, a label that the host's policy does not let be kept or that the
    /// image file is no entry point of.
    pub fn admit(&self, snapshot: &Snapshot, granted: &Granted) -> Result<()> {
        let (true, Some(here)) = (self.keep, &self.here) else { return Ok(()) };
        self.same_policy(here, snapshot).at(Step::Confine)?;
        self.complete(snapshot)?;
        for module in self.modules.iter().filter(|m| !self.has_profile(**m)) {
            for text in labels_of(&snapshot.processes, module.name(), None) {
                may_keep(*module, text, granted)?;
            }
            for text in labels_of(&snapshot.processes, module.name(), Some(Attribute::Current.name())) {
                self.may_enter(*module, text, here).at(Step::Confine).kind("label", shown(*module, text))?;
            }
        }
        self.admit_sockets(&snapshot.files, granted)
    }

    /// Whether the image says of every task which label it had, and of nobody one that could not be given again: what it leaves
    /// out would be the caller's label.
    fn complete(&self, snapshot: &Snapshot) -> Result<()> {
        for process in &snapshot.processes {
            let State::Alive(alive) = &process.state else { continue };
            for thread in &alive.threads {
                self.known(&thread.labels, false).at(Step::Confine).task(thread.tid.0)?;
                self.told(&thread.labels).at(Step::Confine).task(thread.tid.0)?;
            }
        }
        for entry in &snapshot.files {
            self.known(&entry.labels, true).at(Step::Confine).kind("file", entry.id.to_string())?;
        }
        Ok(())
    }

    /// Whether all of these are labels of modules that are active, of what such a module labels.
    fn known(&self, labels: &[Label], file: bool) -> std::result::Result<(), Cause> {
        let can = |label: &&Label| {
            let module = Module::named(&label.module).filter(|m| self.modules.contains(m));
            module.is_some_and(|m| match file {
                true => m == Module::SELinux && label.attribute == label::SOCKET,
                false => m.attributes().iter().any(|a| a.name() == label.attribute),
            })
        };
        match labels.iter().find(|l| !can(l)) {
            Some(Label { module, attribute, .. }) => Err(Cause::Denied {
                what: format!("labels cannot be kept: nothing here could have the label {attribute} of {module}"),
                hint: WITHOUT.into(),
            }),
            None => Ok(()),
        }
    }

    /// Whether a task's own label is among these, of every module.
    fn told(&self, labels: &[Label]) -> std::result::Result<(), Cause> {
        let current =
            |m: &&Module| labels.iter().any(|l| l.module == m.name() && l.attribute == Attribute::Current.name());
        match self.modules.iter().find(|m| !self.has_profile(**m) && !current(m)) {
            Some(module) => Err(Cause::Denied {
                what: format!("labels cannot be kept: the image does not say which one of {} it had", module.name()),
                hint: WITHOUT.into(),
            }),
            None => Ok(()),
        }
    }

    /// Whether a domain may be entered from the image, which counts as its executable.
    fn may_enter(&self, module: Module, text: &[u8], here: &Here) -> std::result::Result<(), Cause> {
        let mine = self.now.iter().any(|s| s.module == module && s.attribute == Attribute::Current && s.label == text);
        if module != Module::SELinux || mine {
            return Ok(());
        }
        let unlabelled = || Cause::Denied {
            what: "the image's files have no label that could be read".into(),
            hint: "keep the image on a file system with labels, or leave out --keep-lsm".into(),
        };
        let files = self.image.as_ref().filter(|files| !files.is_empty()).ok_or_else(unlabelled)?;
        let labels: BTreeSet<&[u8]> = files.iter().map(entry::File::label).collect();
        for label in labels {
            if !here.is_entrypoint(label, text)? {
                let what = format!("the image's own label {} is no entry point of it", label.escape_ascii());
                let hint = "label the image's files as its policy wants them, or leave out --keep-lsm".into();
                return Err(Cause::Denied { what, hint });
            }
        }
        Ok(())
    }

    /// Whether the files that were looked at are those that were read: to be called when they have been.
    ///
    /// # Errors
    /// A permission error where somebody has changed them meanwhile.
    pub fn still(&self, image: &OwnedFd) -> Result<()> {
        if self.keep && self.image.is_some() && self.image != entry::files(image) {
            let what = "the files of the image, or their labels, changed while it was read".into();
            let cause = Cause::Denied { what, hint: "restore it where nobody else writes".into() };
            return Err(Error::new(Step::Confine, cause));
        }
        Ok(())
    }

    fn same_policy(&self, here: &Here, snapshot: &Snapshot) -> std::result::Result<(), Cause> {
        let recorded = &snapshot.machine.security.policies;
        let mut was = BTreeMap::new();
        for policy in recorded {
            let parts = policy.parts.as_ref().map(|parts| parts.iter().cloned().collect());
            was.insert(policy.module.clone(), Identity { parts, load: policy.load.clone() });
        }
        let now = self.modules.iter().map(|module| {
            let labels = labels_of(&snapshot.processes, module.name(), None);
            (module.name().to_owned(), here.identity(*module, &labels))
        });
        lsm::compare(&was, &now.collect()).map_err(|refusal| Cause::Denied {
            what: format!("labels cannot be kept: {refusal}"),
            hint: WITHOUT.into(),
        })
    }

    fn has_profile(&self, module: Module) -> bool {
        self.profiles.iter().any(|(with, _)| *with == module)
    }

    /// What a stub inherits to set a TOMOYO domain; `lift` gives it a number that no task uses.
    ///
    /// # Errors
    /// `lift`'s.
    pub fn lift<E>(
        &mut self,
        lift: impl FnOnce(&OwnedFd) -> std::result::Result<i32, E>,
    ) -> std::result::Result<(), E> {
        self.number = self.door.as_ref().map(lift).transpose()?;
        Ok(())
    }

    /// What every stub has.
    #[must_use]
    pub fn now(&self) -> Vec<Set> {
        self.now.clone()
    }

    /// What a thread is to be given that `has` these labels already.
    ///
    /// # Errors
    /// The image claims what cannot be, or does not say what could not be read.
    pub fn of_thread(&self, thread: &Thread, has: &[Set]) -> std::result::Result<Vec<Set>, Cause> {
        self.wanted(&thread.labels, has)
    }

    fn wanted(&self, labels: &[Label], has: &[Set]) -> std::result::Result<Vec<Set>, Cause> {
        let mut out = self.profile_sets();
        if self.keep {
            out.extend(self.kept(labels)?);
            // What is to come is empty unless the record says otherwise: threads inherit their leader's.
            let to_come = has.iter().filter(|h| h.attribute != Attribute::Current && !h.label.is_empty());
            let unsaid = to_come.filter(|h| !out.iter().any(|s| (s.module, s.attribute) == (h.module, h.attribute)));
            let cleared: Vec<Set> = unsaid.map(|h| Set { label: Vec::new(), ..h.clone() }).collect();
            out.extend(cleared);
        }
        out.retain(|set| !has.contains(set));
        Ok(out)
    }

    /// What every task is given but pid 1. That one keeps the caller's label: it executes nothing of anybody's, and a
    /// profile that allows no signals would make a container that nobody can end.
    #[must_use]
    fn of_everybody(&self) -> Vec<Set> {
        let mut out = self.profile_sets();
        out.retain(|set| !self.now.contains(set));
        out
    }

    /// What a task is given that starts a program: the label counts from there on where the module can do that.
    #[must_use]
    pub fn of_program(&self) -> Vec<Set> {
        let mut out = self.of_everybody();
        for set in &mut out {
            if matches!(set.module, Module::AppArmor | Module::SELinux) {
                set.attribute = Attribute::Exec;
            }
        }
        out
    }

    fn profile_sets(&self) -> Vec<Set> {
        let set = |(module, label): &(Module, Vec<u8>)| Set {
            module: *module,
            attribute: Attribute::Current,
            label: label.clone(),
        };
        self.profiles.iter().map(set).collect()
    }

    fn kept(&self, labels: &[Label]) -> std::result::Result<Vec<Set>, Cause> {
        let mut out = Vec::new();
        for module in self.modules.iter().filter(|m| !self.has_profile(**m)) {
            for attribute in module.attributes() {
                let mut found = labels.iter().filter(|l| l.module == module.name() && l.attribute == attribute.name());
                let Some(label) = found.next() else { continue };
                if found.next().is_some() {
                    return Err(Cause::corrupt(format!("two labels {} {}", module.name(), attribute.name())));
                }
                out.push(Set { module: *module, attribute: *attribute, label: legible(label)?.to_vec() });
            }
        }
        Ok(out)
    }

    /// For `--enforce early`: the labels under which files are made for these tasks, that of the container for all of them, or a kept one
    /// that all their threads have: who had opened a file which several have no image tells.
    ///
    /// # Errors
    /// Kept labels of which there are several, and what a module cannot do to one thread of several, by name.
    pub fn of_files(&self, processes: &[Record]) -> Result<Vec<Set>> {
        let alive = processes.iter().filter_map(|process| match &process.state {
            State::Alive(alive) => Some(&alive.threads),
            State::Exec(_) | State::Zombie(_) => None,
        });
        self.common(alive.flatten().map(|thread| (thread.tid.0, thread.labels.as_slice())))
    }

    fn common<'t>(&self, threads: impl Iterator<Item = (i32, &'t [Label])>) -> Result<Vec<Set>> {
        let mut sets = self.profile_sets();
        let mut all: BTreeSet<(Module, Vec<u8>)> = BTreeSet::new();
        for (tid, labels) in threads.filter(|_| self.keep) {
            let kept = self.kept(labels).at(Step::Confine).task(tid)?.into_iter();
            all.extend(kept.filter(|s| s.attribute == Attribute::Current).map(|s| (s.module, s.label)));
        }
        if let Some(((module, _), _)) = all.iter().zip(all.iter().skip(1)).find(|(one, next)| one.0 == next.0) {
            let title = module.title();
            let what = format!(
                "--enforce early with --keep-lsm: tasks of the image have several labels of {title}, and no image says under which of them a file was opened"
            );
            return Err(Error::new(Step::Confine, Cause::unsupported(what)));
        }
        sets.extend(all.into_iter().map(|(module, label)| Set { module, attribute: Attribute::Current, label }));
        sets.retain(|set| !self.now.contains(set));
        match sets.iter().find(|set| set.wants_one_thread()) {
            Some(set) => {
                let (option, title) = (self.option(set.module), set.module.title());
                let what = format!(
                    "--enforce early with {option} under {title}: a process with threads cannot take a label for one of them"
                );
                Err(Error::new(Step::Confine, Cause::unsupported(what)))
            }
            None => Ok(sets),
        }
    }

    fn option(&self, module: Module) -> &'static str {
        if self.has_profile(module) { "--lsm-profile" } else { "--keep-lsm" }
    }

    /// The calling thread, which makes files for the tasks, gets these labels.
    ///
    /// # Errors
    /// The module's.
    pub fn enter(&self, sets: &[Set]) -> Result<()> {
        for set in sets {
            let text = lsm::spelt(set.module, set.attribute, &set.label);
            let entered = match &self.door {
                Some(door) if set.wants_door() => {
                    rustix::io::write(door, &text).named("write", || "self_domain".into()).map(drop)
                }
                _ => yendor_sys::lsm::set_self(set.module, set.attribute, &text),
            };
            entered.map_err(|e| set.failed(e.into()))?;
        }
        Ok(())
    }

    /// Who speaks for a label that files were made under, and who wanted it.
    #[must_use]
    pub fn speaker(&self, set: &Set) -> String {
        let (title, label) = (set.module.title(), Bytes(set.label.clone()));
        match self.has_profile(set.module) {
            true => format!("{title}: the container's --lsm-profile {label}"),
            false => format!("{title}: the image's label {label} (--keep-lsm)"),
        }
    }

    /// The calls for one label; `free` is the lowest descriptor number that the task does not use.
    #[must_use]
    pub fn script(&self, set: &Set, free: i32) -> Script {
        let way = if self.calls { Way::Call } else { Way::Proc(free) };
        let text = if set.label.is_empty() { Vec::new() } else { lsm::spelt(set.module, set.attribute, &set.label) };
        let mut script = Script::new();
        label::set(set.module, set.attribute, &text, way, self.number, &mut script);
        script
    }
}

impl Set {
    /// Whether the kernel refuses it to a process with more than one thread.
    #[must_use]
    pub fn wants_one_thread(&self) -> bool {
        self.module == Module::SELinux && self.attribute == Attribute::Current
    }

    /// Whether it takes a capability that a task may not have any more later.
    #[must_use]
    pub fn wants_capabilities(&self) -> bool {
        self.module == Module::Smack
    }

    /// Whether it goes through a descriptor that only stubs have.
    #[must_use]
    pub fn wants_door(&self) -> bool {
        self.module == Module::Tomoyo
    }

    /// Places a failure. That a label cannot be had is a denial, whatever the module calls it: a profile that is not
    /// loaded confines nobody.
    #[must_use]
    pub fn failed(&self, cause: Cause) -> Error {
        let what = format!("{} ({})", shown(self.module, &self.label), self.attribute.name());
        let text = lsm::spelt(self.module, self.attribute, &self.label);
        let text = format!("{}, \"{}\"", self.attribute.name(), text.escape_ascii());
        // The bytes of the call say nothing to a reader.
        let cause = match cause.sys().map(|e| SysError::new(e.call, text, e.errno)) {
            None => cause,
            Some(error) if error.is_denied() && self.module == Module::Smack => {
                let hint =
                    "a container's tasks take labels that are on their caller's list: /sys/fs/smackfs/relabel-self";
                Cause::Refused { error, hint: hint.into() }
            }
            Some(e) if e.is_denied() => e.into(),
            Some(e) => Cause::Denied { what: e.to_string(), hint: self.hint().into() },
        };
        let mut error = Error::new(Step::Confine, cause).kind("label", what);
        error.by = Some(self.module.title().to_owned());
        error
    }

    fn hint(&self) -> &'static str {
        match self.module {
            Module::AppArmor => "ENOENT: no such profile is loaded (aa-status shows those that are)",
            Module::SELinux => "EINVAL: the loaded policy knows no such context",
            Module::Smack => "EINVAL: that is no label of Smack's",
            Module::Tomoyo => "the domain needs a rule task manual_domain_transition",
        }
    }
}

/// The lowest descriptor number that a process does not use.
#[must_use]
pub fn free_number(numbers: impl IntoIterator<Item = i32>) -> i32 {
    let mut free = 0;
    for number in numbers {
        if number > free {
            break;
        }
        free = number + 1;
    }
    free
}

/// Notes what a task has been given.
pub fn remember(has: &mut Vec<Set>, given: Vec<Set>) {
    for set in given {
        has.retain(|h| (h.module, h.attribute) != (set.module, set.attribute));
        has.push(set);
    }
}

/// The text of a recorded label.
fn legible(label: &Label) -> std::result::Result<&[u8], Cause> {
    let text = label.label.as_ref().ok_or_else(|| Cause::Denied {
        what: format!("the {} label of {} could not be read at checkpoint", label.attribute, label.module),
        hint: "take the image as root, or leave out --keep-lsm".into(),
    })?;
    if text.0.len() > lsm::LONGEST || text.0.iter().any(u8::is_ascii_control) {
        return Err(Cause::corrupt(format!("a label of {} bytes", text.0.len())));
    }
    Ok(&text.0)
}

/// Every label of the image is asked about, also one that the tasks would have anyway.
fn may_keep(module: Module, text: &[u8], granted: &Granted) -> Result<()> {
    if granted.may_keep(module.name(), &String::from_utf8_lossy(text)) {
        return Ok(());
    }
    let what = "the host's policy does not let it be kept (keep-labels)".to_owned();
    let cause = Cause::Denied { what, hint: "restore without --keep-lsm".into() };
    let by = Some(format!("the host's policy, {} (keep-labels)", granted.places.keep_labels));
    Err(Error { by, ..Error::new(Step::Confine, cause).kind("label", shown(module, text)) })
}

fn active(profile: &Profile, modules: &[Module]) -> std::result::Result<(Module, Vec<u8>), Cause> {
    let module = Module::named(&profile.module).filter(|m| modules.contains(m));
    let module = module.ok_or_else(|| Cause::Denied {
        what: format!("--lsm-profile {profile}: {} is not active here", profile.module),
        hint: "the tasks would run without the confinement that was asked for: yendor doctor names the active modules"
            .into(),
    })?;
    Ok((module, profile.label.clone().into_bytes()))
}

/// The labels of this process, which every stub inherits.
fn now(here: &Here, modules: &[Module]) -> std::result::Result<Vec<Set>, Cause> {
    let me = rustix::process::getpid().as_raw_nonzero().get();
    let proc = rustix::fs::open("/proc", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .named("open", || "/proc".into())?;
    let labels = label::collect(proc.as_fd(), (me, me), modules, |_| here.tomoyo_own())?;
    let known = labels.into_iter().filter_map(|l| {
        let attribute = Module::named(&l.module)?.attributes().iter().find(|a| a.name() == l.attribute)?;
        Some(Set { module: Module::named(&l.module)?, attribute: *attribute, label: l.label?.0 })
    });
    Ok(known.collect())
}

fn shown(module: Module, label: &[u8]) -> String {
    format!("{}:{}", module.name(), Bytes(label.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(module: Module, attribute: Attribute, label: &str) -> Set {
        Set { module, attribute, label: label.into() }
    }

    fn label(attribute: &str, text: Option<&str>) -> Label {
        Label { module: "selinux".into(), attribute: attribute.into(), label: text.map(|t| Bytes(t.into())) }
    }

    fn keeping() -> Labels {
        let now = vec![set(Module::SELinux, Attribute::Current, "u:r:caller")];
        Labels { keep: true, modules: vec![Module::SELinux], now, ..Labels::default() }
    }

    #[test]
    fn without_a_request_nothing_is_set() {
        let labels = Labels { modules: vec![Module::SELinux], ..Labels::default() };
        assert!(labels.of_everybody().is_empty() && labels.of_program().is_empty());
        assert!(labels.kept(&[]).unwrap().is_empty());
    }

    #[test]
    fn a_profile_counts_for_all_and_wins() {
        let profiles = vec![(Module::AppArmor, b"p".to_vec())];
        let labels = Labels { profiles, keep: true, modules: vec![Module::AppArmor], ..Labels::default() };
        assert_eq!(labels.of_everybody(), [set(Module::AppArmor, Attribute::Current, "p")]);
        assert_eq!(labels.of_program(), [set(Module::AppArmor, Attribute::Exec, "p")]);
        let image = Label { module: "apparmor".into(), attribute: "current".into(), label: Some(Bytes(b"q".to_vec())) };
        assert!(labels.kept(&[image]).unwrap().is_empty());
        let mine = Labels { now: vec![set(Module::AppArmor, Attribute::Current, "p")], ..labels };
        assert!(mine.of_everybody().is_empty() && mine.of_program().is_empty());
    }

    #[test]
    fn recorded_labels_are_checked() {
        let labels = keeping();
        let kept = labels.kept(&[label("fscreate", Some("u:r:f")), label("current", Some("u:r:t"))]).unwrap();
        let wanted =
            [set(Module::SELinux, Attribute::Current, "u:r:t"), set(Module::SELinux, Attribute::FsCreate, "u:r:f")];
        assert_eq!(kept, wanted);
        assert!(matches!(labels.kept(&[label("current", None)]), Err(Cause::Denied { .. })));
        let twice = [label("current", Some("a")), label("current", Some("b"))];
        assert!(matches!(labels.kept(&twice), Err(Cause::Corrupt { .. })));
        assert!(matches!(labels.kept(&[label("current", Some("a\nb"))]), Err(Cause::Corrupt { .. })));
        assert!(matches!(labels.kept(&[label("current", Some(&"x".repeat(5000)))]), Err(Cause::Corrupt { .. })));
    }

    #[test]
    fn what_an_image_leaves_out_or_adds_is_refused() {
        let labels = Labels { modules: vec![Module::AppArmor, Module::SELinux], ..keeping() };
        let of = |module: &str, attribute: &str| Label { module: module.into(), ..label(attribute, Some("u:r:t")) };
        let own = [of("selinux", "current"), of("apparmor", "current")];
        assert!(labels.told(&own).is_ok() && labels.known(&own, false).is_ok());
        for (some, module) in [(&own[..1], "apparmor"), (&own[1..], "selinux"), (&[of("selinux", "exec")], "apparmor")]
        {
            let refused = labels.told(some).unwrap_err();
            assert!(refused.is_denied() && refused.to_string().contains(module), "{refused}");
        }
        let profiled = Labels { profiles: vec![(Module::AppArmor, b"p".to_vec())], ..labels };
        assert!(profiled.told(&own[..1]).is_ok());
        for (module, attribute, file) in [
            ("smack", "current", false),
            ("nothing", "current", false),
            ("apparmor", "fscreate", false),
            ("selinux", "socket", false),
            ("selinux", "current", true),
            ("apparmor", "socket", true),
        ] {
            let refused =
                profiled.known(&[of("selinux", if file { "socket" } else { "exec" }), of(module, attribute)], file);
            let refused = refused.unwrap_err();
            assert!(refused.is_denied() && refused.to_string().contains(module), "{refused}");
        }
    }

    #[test]
    fn threads_are_given_what_they_do_not_inherit() {
        let labels = keeping();
        let mut has = labels.now();
        let leader = [label("current", Some("u:r:t")), label("exec", Some("u:r:e"))];
        let sets = labels.wanted(&leader, &has).unwrap();
        assert_eq!(sets.len(), 2);
        remember(&mut has, sets);
        assert!(labels.wanted(&leader, &has).unwrap().is_empty());
        let other = labels.wanted(&[label("current", Some("u:r:t"))], &has).unwrap();
        assert_eq!(other, [set(Module::SELinux, Attribute::Exec, "")]);
    }

    #[test]
    fn files_are_made_early_under_the_label_that_all_tasks_have() {
        let of = |module: &str, attribute: &str, text: Option<&str>| Label {
            module: module.into(),
            ..label(attribute, text)
        };
        let thread = |text: &str| vec![of("apparmor", "current", Some(text)), of("apparmor", "exec", Some("plan"))];
        let files = |labels: &Labels, threads: &[Vec<Label>]| labels.common(threads.iter().map(|t| (7, t.as_slice())));
        let now = vec![set(Module::AppArmor, Attribute::Current, "mine")];
        let keep = Labels { keep: true, modules: vec![Module::AppArmor, Module::Tomoyo], now, ..Labels::default() };
        let q = set(Module::AppArmor, Attribute::Current, "q");
        assert_eq!(files(&keep, &[thread("q"), thread("q")]).unwrap(), std::slice::from_ref(&q));
        assert_eq!(keep.speaker(&q), "AppArmor: the image's label q (--keep-lsm)");
        // Who has it already need not take it.
        assert!(files(&keep, &[thread("mine"), thread("mine")]).unwrap().is_empty());
        // Nobody knows which of several it was; that of the caller is one of them.
        for other in ["p", "mine"] {
            let refused = files(&keep, &[thread("q"), thread(other)]).unwrap_err();
            let said = refused.to_string();
            assert_eq!(refused.exit_code(), 3, "{said}");
            assert!(["--enforce early", "--keep-lsm", "AppArmor"].iter().all(|word| said.contains(word)), "{said}");
        }
        // One of each module.
        let both = [of("apparmor", "current", Some("q")), of("tomoyo", "current", Some("<kernel> /d"))].to_vec();
        assert_eq!(
            files(&keep, std::slice::from_ref(&both)).unwrap(),
            [q, set(Module::Tomoyo, Attribute::Current, "<kernel> /d")]
        );
        assert_eq!(files(&keep, &[vec![of("tomoyo", "current", None)]]).unwrap_err().exit_code(), 5);
        // What the caller has chosen counts for all, and what nobody wants to keep for nothing.
        let chosen = Labels { profiles: vec![(Module::AppArmor, b"p".to_vec())], ..keep };
        let p = set(Module::AppArmor, Attribute::Current, "p");
        assert_eq!(files(&chosen, &[thread("q"), thread("r")]).unwrap(), std::slice::from_ref(&p));
        assert_eq!(chosen.speaker(&p), "AppArmor: the container's --lsm-profile p");
        assert!(files(&Labels { profiles: Vec::new(), keep: false, ..chosen }, &[thread("q")]).unwrap().is_empty());
        let selinux = keeping();
        let refused = files(&selinux, &[vec![label("current", Some("u:r:t"))]]).unwrap_err();
        assert_eq!(refused.exit_code(), 3);
        assert!(refused.to_string().contains("--keep-lsm under SELinux"), "{refused}");
        assert!(files(&selinux, &[vec![label("current", Some("u:r:caller"))]]).unwrap().is_empty());
    }

    #[test]
    fn the_lowest_free_number_is_found() {
        assert_eq!(free_number([]), 0);
        assert_eq!(free_number([0, 1, 2, 5]), 3);
        assert_eq!(free_number([1, 2]), 0);
    }
}
