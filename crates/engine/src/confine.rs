//! confine: the container's own policy, from the caller alone, put in force before any task runs.
//!
//! Steps, in this order. What a step forbids, the steps before it have not needed any more:
//! 1. [`Confine::everybody`], in pid 1 before anybody else is born, so that all tasks are in one domain and may still
//!    reach each other: Landlock.
//! 2. [`Confine::credentials`], for each thread: ids, capabilities, `no_new_privs`.
//! 3. [`Confine::filter`], for each process, the last of all its calls: seccomp (`rebuild::filter`).
//!
//! What tasks had forbidden themselves comes on top of it, never instead of it.

mod calls;

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use yendor_image::Bytes;
use yendor_kinds::file::Entry;
use yendor_kinds::process::credential;
use yendor_kinds::process::landlock::{Layer, Rule};
use yendor_kinds::process::{Record, State};
use yendor_kinds::{Cause, Named};
use yendor_policy::capability;
use yendor_policy::landlock::{self as policy, Domain};
use yendor_sys::{Errno, SysError, landlock, seccomp};
use yendor_task::Script;

use crate::error::{At, Error, Result, Step, With};
use crate::request::{Enforce, Request, Seccomp};

/// The policy, ready to be applied.
pub struct Confine<'a> {
    /// The container's Landlock domain.
    domain: Option<Ready>,
    /// Capabilities that nobody keeps.
    dropped: u64,
    /// The container's seccomp filter.
    seccomp: Option<&'a Seccomp>,
    /// Domains that the image's tasks had entered themselves.
    own: Vec<Ready>,
    /// Tells our calls from the tasks' (see [`crate::recorder`]).
    pub cookie: u64,
}

/// A domain and its ruleset.
struct Ready {
    layer: Layer,
    ruleset: OwnedFd,
    /// The same, above all numbers of the image: also in every stub.
    number: i32,
}

impl<'a> Confine<'a> {
    /// Prepares what the request asks for; `lift` gives a descriptor a number that no task uses.
    ///
    /// # Errors
    /// Unknown capabilities; Landlock rules that this kernel cannot enforce, by name.
    pub fn prepare(
        request: &'a Request,
        domains: &[Layer],
        mut lift: impl FnMut(&OwnedFd) -> std::result::Result<i32, SysError>,
    ) -> Result<Confine<'a>> {
        let dropped = capability::mask(&request.cap_drop).map_err(|e| {
            let what = e.to_string();
            Error::new(Step::Admit, Cause::Reported { message: what, code: 2 })
        })?;
        let domain = Domain::of(&request.policy.landlock);
        let domain = domain.map(|d| Ready::of_rules(&d, &mut lift)).transpose().at(Step::Confine)?;
        let own = domains.iter().map(|layer| Ready::new(layer.clone(), &mut lift));
        let own = own.collect::<std::result::Result<_, _>>().at(Step::Confine)?;
        Ok(Confine {
            domain,
            dropped,
            seccomp: request.policy.seccomp.as_ref(),
            own,
            cookie: cookie().at(Step::Confine)?,
        })
    }

    /// Fills in the rules, once all mounts of the container are there.
    ///
    /// # Errors
    /// A path that is not there: a `Hole` where the image has it.
    pub fn allow(&self) -> Result<()> {
        let of_caller = self.domain.iter().map(|ready| (ready, false));
        let of_image = self.own.iter().map(|ready| (ready, true));
        for (Ready { layer, ruleset, .. }, is_images) in of_caller.chain(of_image) {
            for rule in &layer.rules {
                let one = Layer { rules: vec![rule.clone()], ..Layer::default() };
                let name = match rule {
                    Rule::Beneath { path, .. } => path.to_string(),
                    Rule::Port { port, .. } => port.to_string(),
                };
                let filled = one.fill(ruleset, open_in_container).map_err(|e| match e.sys().map(|sys| sys.errno) {
                    Some(Errno::NOENT | Errno::NOTDIR) if is_images => {
                        let what = format!("{name}, for which a Landlock domain has a rule");
                        Cause::Hole { what, option: "--volume or --rootfs".into() }
                    }
                    _ => e,
                });
                filled.at(Step::Confine).kind("landlock", name)?;
            }
        }
        Ok(())
    }

    /// The task enters a domain of the image's.
    ///
    /// # Errors
    /// `Corrupt` when there is none of that number.
    pub fn enter(&self, domain: u32, script: &mut Script) -> std::result::Result<(), Cause> {
        let known = usize::try_from(domain).ok().and_then(|i| self.own.get(i));
        let Ready { layer, number, .. } =
            known.ok_or_else(|| Cause::corrupt(format!("no Landlock domain {domain}")))?;
        layer.enter(*number, self.cookie, script);
        Ok(())
    }

    /// Makes the image's files, with `--enforce early` under the policy: each call that opens, binds or connects is judged
    /// as the container's own would be. Seccomp is asked before, about the program's calls, not ours ([`calls`], docs/adr/0021).
    /// `places` are outside the container, where the keeper reads from.
    ///
    /// # Errors
    /// `make`'s; what hindered the policy from being put in force.
    pub fn early<T: Send>(
        &self,
        request: &Request,
        files: &[Entry],
        places: &[OwnedFd],
        make: impl FnOnce() -> Result<T> + Send,
    ) -> Result<T> {
        if request.policy.enforce == Enforce::Late {
            return make();
        }
        self.seccomp.map_or(Ok(()), |filter| calls::judge(filter, files))?;
        let ruleset = self.domain.as_ref().map(|d| d.with_places(places)).transpose().at(Step::Confine)?;
        landlock::confined(ruleset.as_ref(), self.dropped, make).at(Step::Confine)?
    }

    /// Says that it was the policy, if what was denied under it is possible without it; `labels` speak for those that were entered.
    #[must_use]
    pub fn blame(&self, mut error: Error, labels: Vec<String>, possible: impl FnOnce() -> bool) -> Error {
        let landlock = self.domain.as_ref().map(|_| "Landlock: the container's --landlock rules".to_owned());
        let dropped = (self.dropped != 0).then(|| "capabilities: the container's --cap-drop".to_owned());
        let policy: Vec<String> = landlock.into_iter().chain(dropped).chain(labels).collect();
        if error.cause.is_denied() && error.by.is_none() && !policy.is_empty() && possible() {
            error.by = Some(format!("{}, in force from the start (--enforce early)", policy.join(", or ")));
        }
        error
    }

    /// What holds for everybody, in pid 1.
    ///
    /// # Errors
    /// `run`'s.
    pub fn everybody(&self, run: impl FnOnce(&Script) -> std::result::Result<(), Cause>) -> Result<()> {
        let Some(Ready { layer, number, .. }) = &self.domain else { return Ok(()) };
        let mut script = Script::new();
        layer.enter(*number, self.cookie, &mut script);
        run(&script).at(Step::Confine).task(1)
    }

    /// All of it for the calling process, whose children inherit it.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn this_process(&self) -> std::result::Result<(), Cause> {
        if let Some(Ready { layer, ruleset, .. }) = &self.domain {
            landlock::restrict_self_with(ruleset, layer.flags, self.cookie)?;
        }
        for number in (0..64).filter(|n| self.dropped & (1 << n) != 0) {
            let one = rustix::thread::CapabilitySet::from_bits_retain(1 << number);
            rustix::thread::remove_capability_from_bounding_set(one)
                .named("prctl", || format!("PR_CAPBSET_DROP, {number}"))?;
        }
        if let Some(filter) = self.seccomp {
            seccomp::install(filter.flags, &filter.program.0, self.cookie)?;
        }
        Ok(())
    }

    /// The credentials of a thread without what the caller dropped. Whoever makes a user namespace has all capabilities in it again, and a
    /// container's policy forbids that or not: what is `nested` in one is refused, not given less than it had.
    ///
    /// # Errors
    /// `Denied` for a capability in a nested user namespace that the caller dropped.
    pub fn credentials(&self, record: &credential::Record, nested: bool) -> Result<credential::Record> {
        let [inheritable, permitted, effective, _, ambient] = record.capabilities;
        if nested && (inheritable | permitted | effective | ambient) & self.dropped != 0 {
            let what = "a task has capabilities in a user namespace of its own that --cap-drop takes away".into();
            let hint = "without --cap-drop it can be restored".into();
            return Err(Error::new(Step::Confine, Cause::Denied { what, hint }));
        }
        Ok(self.clamped(record))
    }

    /// Says which capabilities tasks had that the caller takes away: dropped, not refused, since that is what was asked for.
    #[must_use]
    pub fn lowered(&self, processes: &[Record]) -> Option<String> {
        let threads = processes.iter().filter_map(|process| match &process.state {
            State::Alive(alive) => Some(&alive.threads),
            State::Exec(_) | State::Zombie(_) => None,
        });
        let had = threads.flatten().map(|thread| {
            let [inheritable, permitted, effective, _, ambient] = thread.credentials.capabilities;
            inheritable | permitted | effective | ambient
        });
        let lowered = had.fold(0, |all, one| all | one) & self.dropped;
        let names: Vec<String> = capability::names(lowered).collect();
        (lowered != 0)
            .then(|| format!("tasks had capabilities that --cap-drop or the bundle takes away: {}", names.join(", ")))
    }

    /// Without what the caller dropped.
    #[must_use]
    pub fn clamped(&self, record: &credential::Record) -> credential::Record {
        let mut record = record.clone();
        for set in &mut record.capabilities {
            *set &= !self.dropped;
        }
        record
    }

    /// The filter for every process.
    #[must_use]
    pub fn filter(&self) -> Option<&'a Seccomp> {
        self.seccomp
    }
}

/// A number that nobody else knows.
fn cookie() -> std::result::Result<u64, SysError> {
    let mut bytes = [0u8; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).named("getrandom", || "8".into())?;
    Ok(u64::from_ne_bytes(bytes))
}

type Lift<'l> = &'l mut dyn FnMut(&OwnedFd) -> std::result::Result<i32, SysError>;

impl Ready {
    fn of_rules(domain: &Domain, lift: Lift<'_>) -> std::result::Result<Ready, Cause> {
        let (needed, abi) = (domain.abi(), landlock::abi());
        if abi < needed {
            let what = format!("--landlock: these rules need Landlock ABI {needed}, this kernel has {abi}");
            return Err(Cause::unsupported(what));
        }
        Ready::new(layer(domain), lift)
    }

    fn new(layer: Layer, lift: Lift<'_>) -> std::result::Result<Ready, Cause> {
        let ruleset = layer.ruleset()?;
        let number = lift(&ruleset)?;
        Ok(Ready { layer, ruleset, number })
    }
}

impl Ready {
    /// A ruleset of its own that also allows to read at these places.
    fn with_places(&self, places: &[OwnedFd]) -> std::result::Result<OwnedFd, Cause> {
        let ruleset = self.layer.ruleset()?;
        self.layer.fill(&ruleset, open_in_container)?;
        let read = policy::fs::READ & self.layer.fs;
        if read != 0 {
            places.iter().try_for_each(|place| landlock::allow_beneath(&ruleset, read, place))?;
        }
        Ok(ruleset)
    }
}

fn layer(domain: &Domain) -> Layer {
    let Domain { fs, net, scoped, paths, ports } = domain;
    let beneath = |(access, path): &(u64, String)| Rule::Beneath { access: *access, path: Bytes::from(path.as_str()) };
    let port = |(access, port): &(u64, u16)| Rule::Port { access: *access, port: u64::from(*port) };
    let rules = paths.iter().map(beneath).chain(ports.iter().map(port)).collect();
    Layer { fs: *fs, net: *net, scoped: *scoped, flags: 0, rules }
}

/// A path as seen from the container's root, which is the keeper's.
fn open_in_container(path: &[u8]) -> std::result::Result<OwnedFd, Cause> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, "/", flags | OFlags::DIRECTORY, Mode::empty()).named("open", || "/".into())?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let opened = rustix::fs::openat2(root.as_fd(), path, flags, Mode::empty(), resolve);
    Ok(opened.named("openat2", || format!("\"{}\", O_PATH", path.escape_ascii()))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_asked_for_is_blamed_and_nobody_else() {
        let confine = |dropped| Confine { domain: None, dropped, seccomp: None, own: Vec::new(), cookie: 0 };
        let label = || vec!["AppArmor: the container's --lsm-profile p".to_owned()];
        let by = |confine: Confine<'_>, labels, possible, errno| {
            let error = Error::new(Step::Rebuild, SysError::new("openat2", "x", errno));
            confine.blame(error, labels, || possible).by
        };
        let early = "in force from the start (--enforce early)";
        let said = by(confine(0), label(), true, Errno::ACCESS);
        assert_eq!(said, Some(format!("AppArmor: the container's --lsm-profile p, {early}")));
        let said = by(confine(1), Vec::new(), true, Errno::ACCESS);
        assert_eq!(said, Some(format!("capabilities: the container's --cap-drop, {early}")));
        let said = by(confine(1), label(), true, Errno::PERM).unwrap();
        assert!(said.contains("--cap-drop, or AppArmor: ") && !said.contains("--landlock"), "{said}");
        // Nobody has asked for a policy; it is denied without one, too; it is no denial.
        assert_eq!(by(confine(0), Vec::new(), true, Errno::ACCESS), None);
        assert_eq!(by(confine(1), label(), false, Errno::ACCESS), None);
        assert_eq!(by(confine(1), label(), true, Errno::NOENT), None);
    }
}
