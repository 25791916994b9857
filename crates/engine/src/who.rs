//! Who denied a call, where that can be known: looked for among those who have power over this process and over this sort of
//! call. Where several have it all are named, and nobody where nothing speaks for anybody.

use rustix::fs::{Access, AtFlags, CWD, accessat};
use yendor_kinds::Cause;
use yendor_kinds::process::label;
use yendor_policy::capability;
use yendor_policy::lsm::{Here, Module};
use yendor_sys::wait::Event;
use yendor_sys::{Errno, SysError};
use yendor_task::RunError;

use crate::admit;
use crate::error::{Error, Step};

/// Who has power over a process, and over what it starts.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// A seccomp filter is in force.
    filter: bool,
    /// Security modules that confine it, with its label there.
    modules: Vec<(Module, String)>,
    /// Modules that deny, too, and label nobody: whether one of them has denied something, nobody can ask.
    others: Vec<Other>,
    /// Yama lets only ancestors trace.
    yama: bool,
    /// The kernel has Landlock: whether this process is in a domain it does not tell.
    landlock: bool,
    /// Parts of /proc are covered.
    covered: bool,
    /// Its capabilities.
    held: u64,
    /// Of these, if its caller is root, those that a module keeps from it: what capget(2) tells goes through modules, what /proc tells does not.
    hidden: u64,
}

/// A module that tells nobody what it denies to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Other {
    /// Programs that somebody with the host's capabilities has loaded, at any hook and with any answer.
    Bpf,
    /// Files of the kernel's, for everybody.
    Lockdown,
    /// What is executed, and mapped so.
    Ipe,
    /// Who becomes whom.
    SafeSetId,
}

impl Other {
    fn named(name: &str) -> Option<Other> {
        match name {
            "bpf" => Some(Other::Bpf),
            // Where it locks nothing, as usually, it only stands in the list.
            "lockdown" => std::fs::read_to_string("/sys/kernel/security/lockdown")
                .is_ok_and(|mode| !mode.contains("[none]"))
                .then_some(Other::Lockdown),
            "ipe" => Some(Other::Ipe),
            "safesetid" => Some(Other::SafeSetId),
            _ => None,
        }
    }

    /// How it is called where it has power over such a call and answers so.
    fn title(self, sort: Sort, error: &SysError) -> Option<&'static str> {
        let maps = matches!(error.call, "mmap" | "mprotect" | "pkey_mprotect");
        match self {
            Other::Bpf => Some("a BPF LSM program"),
            Other::Lockdown => {
                (sort == Sort::File && error.errno == Errno::PERM).then_some("lockdown (/sys/kernel/security/lockdown)")
            }
            Other::Ipe => ((sort == Sort::Program || maps) && error.errno == Errno::ACCESS).then_some("IPE"),
            Other::SafeSetId => matches!(sort, Sort::Capability("SETUID" | "SETGID")).then_some("SafeSetID"),
        }
    }
}

/// Sorts of calls: others have power over each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sort {
    Namespace,
    Mount,
    File,
    Socket,
    Trace,
    Program,
    /// Needs this capability, and nothing else.
    Capability(&'static str),
    Other,
}

fn sort(call: &str) -> Sort {
    match call {
        "unshare" | "clone3" | "clone" | "setns" => Sort::Namespace,
        "mount" | "umount2" | "move_mount" | "open_tree" | "fsopen" | "fsconfig" | "fsmount" | "pivot_root"
        | "mount_setattr" => Sort::Mount,
        "open" | "openat" | "openat2" | "stat" | "readlink" | "readlinkat" | "mkdir" | "mkdirat" | "rename"
        | "renameat" | "unlinkat" | "symlinkat" | "linkat" | "truncate" | "chdir" | "statx" | "statfs" => Sort::File,
        "socket" | "bind" | "connect" | "listen" | "accept4" | "sendmsg" | "setsockopt" => Sort::Socket,
        "ptrace" | "pidfd_getfd" | "process_vm_readv" | "process_vm_writev" | "kcmp" => Sort::Trace,
        "execve" | "execveat" => Sort::Program,
        "setresuid" | "setfsuid" => Sort::Capability("SETUID"),
        "setresgid" | "setfsgid" | "setgroups" => Sort::Capability("SETGID"),
        "capset" => Sort::Capability("SETPCAP"),
        "chown" | "fchown" | "fchownat" | "lchown" => Sort::Capability("CHOWN"),
        "mknod" | "mknodat" => Sort::Capability("MKNOD"),
        "setpriority" | "sched_setattr" | "ioprio_set" => Sort::Capability("SYS_NICE"),
        "setrlimit" | "prlimit64" => Sort::Capability("SYS_RESOURCE"),
        _ => Sort::Other,
    }
}

const DAC: &str = "permissions of the file (DAC)";

/// Who it was, where a filter of seccomp(2) was in force before anything of ours began.
pub const CALLERS_FILTER: &str = "seccomp: a filter of the caller";

/// Whether one is in force. The kernel is asked without /proc.
#[must_use]
pub fn is_filtered() -> bool {
    use rustix::thread::{SecureComputingMode, secure_computing_mode};
    secure_computing_mode().is_ok_and(|mode| mode == SecureComputingMode::Filter)
}

impl Surroundings {
    /// Those of this process. To be looked at while /proc, and the file systems of security modules, are in sight.
    #[must_use]
    pub fn look() -> Surroundings {
        let status = std::fs::read("/proc/self/status").ok().and_then(|text| yendor_proc::status::parse(&text).ok());
        let number = |path: &str| std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u32>().ok());
        let held = status.as_ref().map_or(0, |s| s.cap_eff);
        let told = rustix::thread::capabilities(None).map_or(u64::MAX, |sets| sets.effective.bits());
        let here = Here::look();
        Surroundings {
            filter: status.as_ref().is_some_and(|s| s.seccomp == Some(2)),
            modules: confining(&here).unwrap_or_default(),
            others: here.active.iter().filter_map(|name| Other::named(name)).collect(),
            yama: number("/proc/sys/kernel/yama/ptrace_scope").is_some_and(|scope| scope > 0),
            landlock: yendor_sys::landlock::abi() > 0,
            covered: std::fs::read("/proc/self/mountinfo").is_ok_and(|text| is_covered(&text)),
            held,
            hidden: if is_roots() { held & !told } else { 0 },
        }
    }

    /// Adds to a denial by whom it was, if that is not said yet. `pids`: the container's own limit of tasks.
    #[must_use]
    pub fn name(&self, mut error: Error, pids: Option<u64>) -> Error {
        let Some(sys) = error.cause.call().filter(|_| error.by.is_none()) else { return error };
        if sys.errno == Errno::AGAIN
            && sort(sys.call) == Sort::Namespace
            && let Some(most) = pids
        {
            error.by = Some(format!("cgroup: the container's limit of {most} tasks (--pids)"));
            let hint = "the image has more tasks: raise --pids, or limits of the host's policy".into();
            error.cause = Box::new(Cause::Refused { error: sys, hint });
        } else if error.cause.is_denied() {
            error.by = self.who(error.place.step, &sys);
        } else if sys.errno == Errno::INVAL && matches!(sort(sys.call), Sort::Capability("SETUID" | "SETGID")) {
            // Who may not set both has a map of a single id.
            error.by = self.hides(&["SETUID", "SETGID"]);
        }
        error
    }

    /// Whose filter ends who makes a call: this process's own caller's, or the one that he wants for a container.
    pub fn filter(&self, of_container: bool) -> Option<String> {
        let caller = self.filter.then_some(CALLERS_FILTER);
        let all: Vec<_> =
            caller.into_iter().chain(of_container.then_some("seccomp: the container's (--seccomp)")).collect();
        Some(all.join(", or ")).filter(|all| !all.is_empty())
    }

    /// Who keeps capabilities from root, so that it can give a container no more than its own id, or not even that.
    pub fn hides(&self, names: &[&str]) -> Option<String> {
        let hidden = names.iter().any(|name| capability::one(name).is_ok_and(|mask| self.hidden & mask != 0));
        let modules = || self.modules.iter().map(|(module, label)| format!("{} ({label})", module.title()));
        hidden.then(|| modules().collect::<Vec<_>>().join(", or ")).filter(|all| !all.is_empty())
    }

    fn who(&self, step: Step, error: &SysError) -> Option<String> {
        let sort = sort(error.call);
        // Who joins namespaces makes none.
        if sort == Sort::Namespace
            && error.call != "setns"
            && let Some(switch) = switch(error.errno)
        {
            return Some(switch);
        }
        if self.covered && error.call == "mount" && error.args.starts_with("\"proc\"") {
            // Whoever could mount another would see what is covered (`mount_too_revealing` in fs/namespace.c).
            return Some("the kernel: parts of /proc are covered here, as in containers of root, and nobody inside can mount another".into());
        }
        let mut all = Vec::new();
        if let Some(lacks) = self.lacks(sort, error) {
            all.push(lacks);
        }
        if self.filter {
            all.push(CALLERS_FILTER.to_owned());
        }
        // TOMOYO alone never answers EACCES.
        let answers = |module: Module| module != Module::Tomoyo || error.errno == Errno::PERM;
        let modules = self.modules.iter().filter(|(module, _)| answers(*module));
        all.extend(modules.map(|(module, label)| format!("{} ({label})", module.title())));
        if self.yama && sort == Sort::Trace {
            all.push("Yama (/proc/sys/kernel/yama/ptrace_scope)".to_owned());
        }
        let mut sure = false;
        match sort {
            // A domain with rules for files may not mount at all; nothing else hinders a namespace's root here.
            Sort::Mount if all.is_empty() && self.landlock && step == Step::Contain => {
                all.push("Landlock: a domain of the caller, or a mount that is locked".to_owned());
            }
            Sort::File | Sort::Program if error.errno == Errno::ACCESS => match path(&error.args).and_then(may_read) {
                Some(true) if all.is_empty() && self.landlock => {
                    all.push("Landlock: a domain of the caller".to_owned());
                }
                Some(true) => {}
                Some(false) => {
                    all.insert(0, DAC.to_owned());
                    // Asked without a word about opening it: these alone are enough.
                    sure = true;
                }
                None if all.is_empty() => all.push(DAC.to_owned()),
                None => {}
            },
            Sort::Capability(name) if all.is_empty() => {
                all.push(format!("capabilities: CAP_{name} of the host"));
            }
            _ => {}
        }
        // That it is active speaks for nobody, but nobody else can be sure either.
        if !all.is_empty() && !sure {
            all.extend(self.others.iter().filter_map(|other| other.title(sort, error)).map(str::to_owned));
        }
        (!all.is_empty()).then(|| all.join(", or "))
    }

    /// The capability that a call of this sort takes, and this process does not have.
    fn lacks(&self, sort: Sort, error: &SysError) -> Option<String> {
        let name = match sort {
            Sort::Mount => "SYS_ADMIN",
            // Without it one may trace one's own.
            Sort::Trace => "SYS_PTRACE",
            Sort::Socket if error.call == "bind" && error.errno == Errno::ACCESS => "NET_BIND_SERVICE",
            Sort::Socket if error.call == "socket" && error.errno == Errno::PERM => "NET_RAW",
            Sort::Capability(name) => name,
            _ => return None,
        };
        let mask = capability::one(name).ok()?;
        (self.held & mask == 0).then(|| format!("capabilities: CAP_{name} is not there"))
    }
}

/// What failed since the kernel has killed a task for its memory, in cgroups with this limit.
pub fn wants_memory(error: Error, limit: Option<u64>) -> Error {
    const KILLED: i32 = 9;
    let Some(limit) = limit else { return error };
    let gone = error.cause.call().is_some_and(|sys| matches!(sys.errno, Errno::SRCH | Errno::NOMEM));
    match &*error.cause {
        Cause::Run(RunError::Died { event: Event::Killed(KILLED), .. }) => {}
        Cause::Dead(dead) if dead.event == Event::Killed(KILLED) => {}
        _ if gone => {}
        _ => return error,
    }
    let what = format!("a task was killed for its memory: {}", error.cause);
    let hint = "it takes more: raise --memory, or limits of the host's policy".into();
    let by = Some(format!("cgroup: the container's limit of {limit} bytes of memory (--memory)"));
    Error { cause: Box::new(Cause::Denied { what, hint }), by, ..error }
}

/// An image without the signature that somebody wants: the host, or the caller, who knows it.
pub fn wants_signature(error: Error, place: &str) -> Error {
    let host = matches!(&*error.cause, Cause::Denied { what, .. } if what.starts_with("host policy"));
    Error { by: host.then(|| format!("the host's policy, {place} (signed-by)")), ..error }
}

/// Whether the root of the user namespace above, or of the initial one, has an id here.
fn is_roots() -> bool {
    let ranges = std::fs::read("/proc/self/uid_map").ok().and_then(|map| yendor_proc::id_map::parse(&map).ok());
    ranges.is_some_and(|ranges| ranges.iter().any(|range| range.outside == 0))
}

/// Whether something is mounted in /proc; the kernel does not mind what lies on directories that are always empty.
fn is_covered(mountinfo: &[u8]) -> bool {
    const EMPTY: [&[u8]; 3] = [b"/proc/sys/fs/binfmt_misc", b"/proc/fs/nfsd", b"/proc/openprom"];
    yendor_proc::mountinfo::parse(mountinfo).is_ok_and(|mounts| {
        mounts.iter().any(|m| m.mount_point.starts_with(b"/proc/") && !EMPTY.contains(&m.mount_point.as_slice()))
    })
}

/// A setting of the kernel's that forbids namespaces.
fn switch(errno: Errno) -> Option<String> {
    match errno {
        Errno::NOSPC => Some("sysctl: a limit in /proc/sys/user".to_owned()),
        Errno::PERM | Errno::ACCESS => admit::switched_off().map(|switch| format!("sysctl: {switch}")),
        _ => None,
    }
}

/// Modules under which this process is not free, with its label.
fn confining(here: &Here) -> std::result::Result<Vec<(Module, String)>, Cause> {
    let modules = here.modules();
    if modules.is_empty() {
        return Ok(Vec::new());
    }
    let me = rustix::process::getpid().as_raw_nonzero().get();
    let proc = std::fs::File::open("/proc").map_err(|e| SysError::io("open", "/proc", &e))?;
    let labels = label::collect(&proc, (me, me), &modules, |_| here.tomoyo_own())?;
    let enforced = || std::fs::read("/sys/fs/selinux/enforce").is_ok_and(|text| text.trim_ascii() == b"1");
    let confines = |module: Module, label: &str| match module {
        Module::AppArmor => label != "unconfined",
        Module::SELinux => enforced(),
        Module::Smack | Module::Tomoyo => true,
    };
    let current = labels.into_iter().filter(|l| l.attribute == "current").filter_map(|l| {
        let label = l.label?.0.escape_ascii().to_string();
        Some((Module::named(&l.module)?, label))
    });
    Ok(current.filter(|(module, label)| confines(*module, label)).collect())
}

/// The absolute path that a call's arguments begin with.
fn path(args: &str) -> Option<&str> {
    let plain = args.strip_prefix('"').map_or_else(|| args.split(',').next(), |rest| rest.split('"').next());
    plain.filter(|path| path.starts_with('/') && !path.contains('\\'))
}

/// Whether the permissions of a file let it be read, if it is there. Landlock and AppArmor have no say in this question.
fn may_read(path: &str) -> Option<bool> {
    match accessat(CWD, path, Access::READ_OK, AtFlags::EACCESS) {
        Ok(()) => Some(true),
        Err(Errno::ACCESS) => Some(false),
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u64 = u64::MAX;

    fn free() -> Surroundings {
        Surroundings { held: ALL, landlock: true, ..Surroundings::default() }
    }

    fn by(around: &Surroundings, step: Step, call: &'static str, args: &str, errno: Errno) -> Option<String> {
        around.name(Error::new(step, SysError::new(call, args, errno)), None).by
    }

    /// One call of each sort, as a restore or a checkpoint makes it.
    const CALLS: [(Step, &str, Errno); 9] = [
        (Step::Admit, "unshare", Errno::PERM),
        (Step::Contain, "mount", Errno::PERM),
        (Step::Rebuild, "openat2", Errno::ACCESS),
        (Step::Rebuild, "socket", Errno::ACCESS),
        (Step::Rebuild, "connect", Errno::ACCESS),
        (Step::Rebuild, "ptrace", Errno::PERM),
        (Step::Freeze, "ptrace", Errno::PERM),
        (Step::Confine, "setresuid", Errno::PERM),
        (Step::Thaw, "execve", Errno::ACCESS),
    ];

    #[test]
    fn what_is_mounted_in_proc_hinders_another() {
        let line = |at: &str| format!("21 20 0:5 / {at} rw - tmpfs tmpfs rw\n").into_bytes();
        let covered = |at: &[&str]| is_covered(&at.iter().flat_map(|at| line(at)).collect::<Vec<u8>>());
        assert!(covered(&["/proc", "/proc/sys"]) && covered(&["/proc/kcore"]));
        assert!(!covered(&["/proc", "/", "/process", "/proc/sys/fs/binfmt_misc"]));
        let around = Surroundings { covered: true, filter: true, ..free() };
        let mount = |what: &str| by(&around, Step::Contain, "mount", what, Errno::PERM).unwrap_or_default();
        assert!(mount("\"proc\", \"/proc\", \"proc\"").starts_with("the kernel: "));
        assert!(mount("\"tmpfs\", \"/tmp\", \"tmpfs\"").starts_with("seccomp"));
    }

    #[test]
    fn filters_and_modules_have_power_over_every_sort() {
        let filter = Surroundings { filter: true, ..free() };
        let module = |module, label: &str| Surroundings { modules: vec![(module, label.into())], ..free() };
        for (step, call, errno) in CALLS {
            let switched_off = call == "unshare" && admit::switched_off().is_some();
            if switched_off {
                continue;
            }
            let by = |around: &Surroundings| by(around, step, call, "", errno);
            assert_eq!(by(&filter).as_deref(), Some("seccomp: a filter of the caller"), "{call}");
            assert_eq!(by(&module(Module::AppArmor, "p")).as_deref(), Some("AppArmor (p)"), "{call}");
            assert_eq!(by(&module(Module::SELinux, "u:r:t")).as_deref(), Some("SELinux (u:r:t)"), "{call}");
            assert_eq!(by(&module(Module::Smack, "l")).as_deref(), Some("Smack (l)"), "{call}");
            let tomoyo = by(&module(Module::Tomoyo, "<kernel>"));
            assert_eq!(tomoyo.as_deref() == Some("TOMOYO (<kernel>)"), errno == Errno::PERM, "{call}: {tomoyo:?}");
            let both = by(&Surroundings { filter: true, ..module(Module::AppArmor, "p") });
            assert_eq!(both.as_deref(), Some("seccomp: a filter of the caller, or AppArmor (p)"), "{call}");
        }
    }

    #[test]
    fn whom_nothing_speaks_for_is_not_named() {
        for (step, call, errno) in [
            (Step::Rebuild, "ptrace", Errno::PERM),
            (Step::Rebuild, "connect", Errno::ACCESS),
            (Step::Rebuild, "mount", Errno::PERM),
            (Step::Rebuild, "mmap", Errno::PERM),
        ] {
            assert_eq!(by(&free(), step, call, "", errno), None, "{call}");
        }
        // What failed for another reason was not denied.
        let filter = Surroundings { filter: true, ..free() };
        for errno in [Errno::NOENT, Errno::INVAL, Errno::NOMEM, Errno::AGAIN] {
            assert_eq!(by(&filter, Step::Rebuild, "openat2", "", errno), None);
        }
    }

    #[test]
    fn capabilities() {
        let none = Surroundings { held: 0, ..free() };
        for (call, errno, name) in [
            ("mount", Errno::PERM, "CAP_SYS_ADMIN"),
            ("ptrace", Errno::PERM, "CAP_SYS_PTRACE"),
            ("bind", Errno::ACCESS, "CAP_NET_BIND_SERVICE"),
            ("socket", Errno::PERM, "CAP_NET_RAW"),
            ("setresuid", Errno::PERM, "CAP_SETUID"),
            ("setgroups", Errno::PERM, "CAP_SETGID"),
            ("capset", Errno::PERM, "CAP_SETPCAP"),
            ("fchown", Errno::PERM, "CAP_CHOWN"),
            ("mknodat", Errno::PERM, "CAP_MKNOD"),
        ] {
            let said = by(&none, Step::Rebuild, call, "", errno);
            assert_eq!(said, Some(format!("capabilities: {name} is not there")), "{call}");
        }
        // The kernel asks for it outside of the container.
        let said = by(&free(), Step::Confine, "sched_setattr", "", Errno::PERM);
        assert_eq!(said.as_deref(), Some("capabilities: CAP_SYS_NICE of the host"));
    }

    #[test]
    fn settings_and_yama() {
        let said = by(&free(), Step::Contain, "unshare", "", Errno::NOSPC);
        // Out of room is a denial where whoever asked for the namespace says so.
        assert_eq!(said, None);
        let refused = Cause::Refused { error: SysError::new("unshare", "", Errno::NOSPC), hint: String::new() };
        let said = free().name(Error::new(Step::Contain, refused), None).by;
        assert_eq!(said.as_deref(), Some("sysctl: a limit in /proc/sys/user"));
        let yama = Surroundings { yama: true, ..free() };
        let said = by(&yama, Step::Freeze, "ptrace", "PTRACE_SEIZE", Errno::PERM);
        assert_eq!(said.as_deref(), Some("Yama (/proc/sys/kernel/yama/ptrace_scope)"));
    }

    #[test]
    fn files() {
        let dac = Some("permissions of the file (DAC)");
        assert_eq!(by(&free(), Step::Rebuild, "openat2", "a/b", Errno::ACCESS).as_deref(), dac);
        assert_eq!(by(&free(), Step::Admit, "open", "/no/such/file", Errno::ACCESS).as_deref(), dac);
        // Whoever may read it, and yet may not, is in a domain.
        let landlock = Some("Landlock: a domain of the caller");
        assert_eq!(by(&free(), Step::Admit, "open", "\"/proc/self/stat\", x", Errno::ACCESS).as_deref(), landlock);
        // What is not there any more, or is called otherwise, says nothing of its permissions.
        let module = Surroundings { modules: vec![(Module::AppArmor, "p".into())], ..free() };
        let said = by(&module, Step::Rebuild, "openat", "/no/such/file", Errno::ACCESS);
        assert_eq!(said.as_deref(), Some("AppArmor (p)"));
        let older = Surroundings { landlock: false, ..free() };
        assert_eq!(by(&older, Step::Admit, "open", "/proc/self/stat", Errno::ACCESS), None);
        let mount = by(&free(), Step::Contain, "mount", "", Errno::PERM);
        assert_eq!(mount.as_deref(), Some("Landlock: a domain of the caller, or a mount that is locked"));
    }

    #[test]
    fn where_a_module_is_active_that_nobody_can_ask_nobody_else_is_sure() {
        let others = |others: &[Other]| Surroundings { others: others.to_vec(), ..free() };
        let bpf = others(&[Other::Bpf]);
        let said = by(&bpf, Step::Admit, "open", "/proc/self/stat", Errno::ACCESS);
        assert_eq!(said.as_deref(), Some("Landlock: a domain of the caller, or a BPF LSM program"));
        let said = by(&bpf, Step::Confine, "sched_setattr", "", Errno::PERM);
        assert_eq!(said.as_deref(), Some("capabilities: CAP_SYS_NICE of the host, or a BPF LSM program"));
        let confined = Surroundings { modules: vec![(Module::AppArmor, "p".into())], ..bpf.clone() };
        let said = by(&confined, Step::Rebuild, "ptrace", "", Errno::PERM);
        assert_eq!(said.as_deref(), Some("AppArmor (p), or a BPF LSM program"));
        // It stands in the list of every Debian: alone it is no reason.
        assert_eq!(by(&bpf, Step::Rebuild, "ptrace", "", Errno::PERM), None);
        // The others have power over some calls, and answers of their own.
        let all = others(&[Other::Lockdown, Other::Ipe, Other::SafeSetId]);
        let ends = |call, errno, end: &str| {
            let said = by(&Surroundings { filter: true, ..all.clone() }, Step::Rebuild, call, "", errno);
            assert_eq!(said, Some(format!("seccomp: a filter of the caller{end}")), "{call}");
        };
        ends("execve", Errno::ACCESS, ", or IPE");
        ends("mmap", Errno::ACCESS, ", or IPE");
        ends("mmap", Errno::PERM, "");
        ends("setresgid", Errno::PERM, ", or SafeSetID");
        ends("openat2", Errno::PERM, ", or lockdown (/sys/kernel/security/lockdown)");
        ends("connect", Errno::ACCESS, "");
        assert_eq!(Other::named("bpf"), Some(Other::Bpf));
        assert_eq!((Other::named("yama"), Other::named("landlock"), Other::named("capability")), (None, None, None));
    }

    #[test]
    fn a_limit_of_tasks() {
        let error = || Error::new(Step::Rebuild, SysError::new("clone3", "", Errno::AGAIN));
        let said = free().name(error(), Some(3));
        assert_eq!(said.by.as_deref(), Some("cgroup: the container's limit of 3 tasks (--pids)"));
        assert_eq!(said.exit_code(), 5);
        let said = free().name(error(), None);
        assert_eq!((said.by.as_deref(), said.exit_code()), (None, 1));
    }

    #[test]
    fn a_limit_of_memory() {
        let died = |event| Error::new(Step::Rebuild, Cause::Run(RunError::Died { tid: 7, event }));
        let said = wants_memory(died(Event::Killed(9)), Some(4096));
        assert_eq!(said.by.as_deref(), Some("cgroup: the container's limit of 4096 bytes of memory (--memory)"));
        assert_eq!(said.exit_code(), 5);
        let gone = Error::new(Step::Rebuild, SysError::new("process_vm_writev", "", Errno::SRCH));
        assert_eq!(wants_memory(gone, Some(4096)).exit_code(), 5);
        // What fails for another reason is not denied.
        for other in [died(Event::Killed(11)), Error::new(Step::Rebuild, SysError::new("read", "", Errno::IO))] {
            assert_eq!((other.exit_code(), wants_memory(other, Some(4096)).exit_code()), (1, 1));
        }
    }

    #[test]
    fn a_module_that_keeps_a_capability_from_root_is_why_there_is_one_id() {
        let modules = vec![(Module::AppArmor, "no_setuid".to_owned())];
        let kept = |hidden| Surroundings { modules: modules.clone(), hidden, ..free() };
        let setuid = capability::one("SETUID").expect("it is known");
        let named = |around: &Surroundings, call| by(around, Step::Confine, call, "1000", Errno::INVAL);
        assert_eq!(named(&kept(setuid), "setresgid").as_deref(), Some("AppArmor (no_setuid)"));
        assert_eq!(named(&kept(setuid), "mmap"), None);
        assert_eq!(named(&kept(0), "setresuid"), None);
        assert_eq!(named(&Surroundings { hidden: setuid, ..free() }, "setresuid"), None);
    }

    #[test]
    fn what_was_said_before_stays() {
        let mut error = Error::new(Step::Rebuild, SysError::new("ptrace", "", Errno::PERM));
        error.by = Some("AppArmor".into());
        let filter = Surroundings { filter: true, ..free() };
        assert_eq!(filter.name(error, None).by.as_deref(), Some("AppArmor"));
    }
}
