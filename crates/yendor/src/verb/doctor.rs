//! `yendor doctor`: what this kernel, user and host policy allow, and what each "no" means.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use clap::Args;
use rustix::fs::{Access, access};
use serde_json::json;
use yendor_engine::admit;
use yendor_engine::contain::cgroup;
use yendor_engine::contain::userns::Caller;
use yendor_engine::request::{Net, Request, Root, Userns};
use yendor_policy::host::{self, Person, Policy, Verb};
use yendor_policy::lsm::{Here, Module};

use crate::failure::Outcome;
use crate::{caller, print};

/// Say what this kernel, user and host policy allow, and what each "no" means
///
/// Exits with 0 when containers can be started or restored, 5 when not.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  yendor doctor\n  yendor doctor --json")]
pub struct Doctor {
    /// Print as JSON
    #[arg(long)]
    pub json: bool,
}

struct Finding {
    what: &'static str,
    /// `None`: neither good nor bad.
    good: Option<bool>,
    value: String,
    meaning: String,
}

fn yes(what: &'static str, value: impl Into<String>) -> Finding {
    Finding { what, good: Some(true), value: value.into(), meaning: String::new() }
}

fn no(what: &'static str, value: impl Into<String>, meaning: impl Into<String>) -> Finding {
    Finding { what, good: Some(false), value: value.into(), meaning: meaning.into() }
}

fn fact(what: &'static str, value: impl Into<String>, meaning: impl Into<String>) -> Finding {
    Finding { what, good: None, value: value.into(), meaning: meaning.into() }
}

impl Doctor {
    /// Runs it.
    pub fn run(self) -> Outcome {
        let (network, name) = network();
        let container = container(name);
        let namespaces = user_namespace(network);
        let works = container.good == Some(true) || container.good.is_none() && namespaces.good != Some(false);
        let mut findings = vec![kernel(), architecture(), namespaces, ids()];
        findings.extend([
            overlay(),
            ptrace(),
            pagemap(),
            children(),
            cgroup(),
            policy(),
            lsm(),
            landlock(),
            seccomp(),
            lazy(),
            hard_limits(),
            container,
        ]);
        if self.json {
            let all: Vec<_> = findings
                .iter()
                .map(|f| json!({ "check": f.what, "ok": f.good, "value": f.value, "meaning": f.meaning }))
                .collect();
            print::out(&json!(all).to_string());
        } else {
            for f in &findings {
                let mark = match f.good {
                    Some(true) => "yes",
                    Some(false) => "NO ",
                    None => "   ",
                };
                print::out(&format!("{mark}  {:18} {}", f.what, f.value));
                for line in f.meaning.lines() {
                    print::out(&format!("     {:18} {line}", ""));
                }
            }
        }
        Ok(if works { 0 } else { 5 })
    }
}

fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn kernel() -> Finding {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map(|n| n.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= (6, 18) {
        return yes("kernel", release);
    }
    if version >= (6, 7) {
        let meaning = "developed and tested on 6.18; older ones lack PR_TIMER_CREATE_RESTORE_IDS (6.15) among others:\n\
                       what needs that is refused by name";
        return fact("kernel", release, meaning);
    }
    no("kernel", release, "checkpoints need PAGEMAP_SCAN, which came with Linux 6.7")
}

fn architecture() -> Finding {
    let machine = rustix::system::uname().machine().to_string_lossy().into_owned();
    match machine.as_str() {
        "x86_64" => yes("architecture", machine),
        _ => no("architecture", machine, "only x86_64 can be checkpointed and restored yet"),
    }
}

/// The first network that the host's policy allows.
fn network() -> (Net, &'static str) {
    let all = [(Net::Private, "private"), (Net::None, "none"), (Net::Host, "host")];
    let policy = Policy::load().ok();
    let allowed = |name: &str| policy.as_ref().is_some_and(|policy| policy.has_network(name));
    all.into_iter().find(|(_, name)| allowed(name)).unwrap_or(all[0])
}

fn user_namespace(network: Net) -> Finding {
    const WHAT: &str = "user namespaces";
    let request = Request {
        name: "doctor".into(),
        root: Root::Layered,
        volumes: Vec::new(),
        net: network,
        userns: Userns::Auto,
        hostname: None,
        memory: None,
        pids: None,
        cap_drop: Vec::new(),
        policy: yendor_engine::request::Policy::default(),
        layout: None,
        any_cpu: false,
    };
    // The very questions that `run` and `restore` ask; who got the answer goes when its connection does.
    let ask = |verb| admit::ask(&request, verb, true).and_then(|_| admit::admit(&request, verb)).map(drop);
    match (ask(Verb::Run), ask(Verb::Restore)) {
        (Ok(()), Ok(())) => yes(WHAT, "this user may have containers"),
        (Ok(()), Err(e)) => fact(WHAT, "this user may start containers, and not restore any", e.to_string()),
        (Err(e), Ok(())) => fact(WHAT, "this user may restore containers, and not start any", e.to_string()),
        (Err(e), Err(_)) => no(WHAT, "refused", format!("no container can be started or restored\n{e}")),
    }
}

fn ids() -> Finding {
    const WHAT: &str = "subordinate ids";
    let caller = match Caller::look() {
        Ok(caller) => caller,
        Err(e) => return no(WHAT, "unknown", e.to_string()),
    };
    if caller.privileged {
        return yes(WHAT, "not needed: real root maps its own ids");
    }
    let count = |ranges: &[(u32, u32)]| ranges.iter().map(|(_, n)| u64::from(*n)).sum::<u64>();
    let (uids, gids) = (count(&caller.subordinate.0), count(&caller.subordinate.1));
    if uids > 0 && gids > 0 {
        return yes(WHAT, format!("{uids} user ids, {gids} group ids"));
    }
    let helpers = ["newuidmap", "newgidmap"].iter().all(|h| found_in_path(h));
    let missing = if helpers { "no ranges in /etc/subuid and /etc/subgid" } else { "no newuidmap and newgidmap" };
    let uid = rustix::process::geteuid().as_raw();
    no(
        WHAT,
        missing,
        format!(
            "containers have a single user and group id: programs that change to another fail, and images that hold\n\
             other ids are refused. For more: install newuidmap (package uidmap), and as root:\n\
             usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $(id -nu {uid})"
        ),
    )
}

fn found_in_path(program: &str) -> bool {
    ["/usr/bin", "/bin", "/usr/local/bin"].iter().any(|dir| Path::new(dir).join(program).exists())
}

fn overlay() -> Finding {
    let known = read("/proc/filesystems").unwrap_or_default();
    let there = known.lines().any(|line| line.split_whitespace().last() == Some("overlay"));
    if there || Path::new("/sys/module/overlay").exists() {
        return yes("overlay", "known to the kernel");
    }
    let meaning = "containers without --rootfs need it. As root: modprobe overlay";
    no("overlay", "not loaded", meaning)
}

fn ptrace() -> Finding {
    const WHAT: &str = "ptrace";
    match read("/proc/sys/kernel/yama/ptrace_scope").as_deref() {
        None => yes(WHAT, "not restricted by Yama"),
        Some("0") => yes(WHAT, "Yama scope 0: processes of the same user"),
        Some("1") => fact(
            WHAT,
            "Yama scope 1: only descendants",
            "containers are not concerned: they are traced from their own user namespace.\n\
             checkpoint --pid of other trees needs root, or kernel.yama.ptrace_scope=0",
        ),
        Some("2") if caller::is_root() => yes(WHAT, "Yama scope 2: root only"),
        Some("2") => {
            fact(WHAT, "Yama scope 2: root only", "checkpoint --pid needs root, or kernel.yama.ptrace_scope=0")
        }
        Some(scope) => no(WHAT, format!("Yama scope {scope}"), "nothing can be checkpointed until the next boot"),
    }
}

fn pagemap() -> Finding {
    use yendor_image::Addr;
    use yendor_kinds::memory::{source, vma};
    const WHAT: &str = "PAGEMAP_SCAN";
    let open = || std::fs::File::open("/proc");
    let proc = match open() {
        Ok(proc) => proc,
        Err(e) => return no(WHAT, "unknown", format!("/proc: {e}")),
    };
    // Any page will do: that of a local variable.
    let here = 0_u8;
    let address = u64::try_from((&raw const here).addr()).unwrap_or(0) & !4095;
    let area = vma::Record {
        start: Addr(address),
        end: Addr(address + 4096),
        protection: 3,
        backing: vma::Backing::Anonymous,
        shared: false,
        flags: Vec::new(),
        name: None,
        policy: None,
        guards: Vec::new(),
    };
    let pid = i32::try_from(std::process::id()).unwrap_or(0);
    let scan = source::Source::open(std::os::fd::AsFd::as_fd(&proc), pid)
        .and_then(|mut s| source::ranges(&mut s, &area, area.end.0));
    match scan {
        Ok(found) if !found.is_empty() => yes(WHAT, "finds the pages that hold something"),
        Ok(_) => no(WHAT, "finds nothing", "checkpoints would miss memory: they are not possible here"),
        Err(e) => no(WHAT, "refused", format!("checkpoints are not possible: {e}")),
    }
}

fn children() -> Finding {
    const WHAT: &str = "/proc children";
    let pid = std::process::id();
    if Path::new(&format!("/proc/{pid}/task/{pid}/children")).exists() {
        return yes(WHAT, "lists the children of a task");
    }
    no(WHAT, "missing", "the kernel lacks CONFIG_PROC_CHILDREN: trees cannot be found, so not be checkpointed")
}

fn cgroup() -> Finding {
    const WHAT: &str = "cgroups";
    let meaning = "--memory and --pids are refused where it says no; everything else works.\n\
                   With systemd: systemd-run --user --scope -p Delegate=yes yendor ...";
    let of = |(controller, option): (&str, &str)| {
        let path = cgroup::place(controller).ok().flatten();
        let writable = |p: &PathBuf| {
            access(p, Access::WRITE_OK).is_ok() && access(p.join("cgroup.procs"), Access::WRITE_OK).is_ok()
        };
        match &path {
            None => (false, format!("{option}: no, no hierarchy has the controller")),
            Some(path) if writable(path) => (true, format!("{option}: yes, {}", path.display())),
            Some(path) => (false, format!("{option}: no, {} is not delegated to this user", path.display())),
        }
    };
    let (good, lines): (Vec<bool>, Vec<String>) =
        [("memory", "--memory"), ("pids", "--pids")].map(of).into_iter().unzip();
    let value = lines.join("; ");
    if good.iter().all(|g| *g) { yes(WHAT, value) } else { fact(WHAT, value, meaning) }
}

fn policy() -> Finding {
    const WHAT: &str = "host policy";
    let policy = match Policy::load() {
        Ok(policy) if policy.is_present() => policy,
        Ok(_) => return yes(WHAT, format!("no {}: the kernel alone decides", host::FILE)),
        Err(denial) => return no(WHAT, "denies everything", format!("{denial}\n{}", denial.hint)),
    };
    let lines = policy.explain(&Person::caller());
    let text = |l: &host::Line| format!("{}{}: {}", if l.forbids { "NO  " } else { "" }, l.rule, l.meaning);
    let meaning = lines.iter().map(text).collect::<Vec<_>>().join("\n");
    if lines.iter().any(|l| l.forbids) {
        return no(WHAT, format!("{} narrows what you may do", host::FILE), meaning);
    }
    fact(WHAT, format!("{} can only narrow what the kernel allows", host::FILE), meaning)
}

fn lsm() -> Finding {
    let here = Here::look();
    if here.active.is_empty() {
        return fact("security modules", "unknown", "Linux before 6.8, and no securityfs here");
    }
    let say = |module: Module| {
        let compare = if here.can_compare(module) {
            "--keep-lsm compares its policy with the image's"
        } else {
            "you may not read its policy: --keep-lsm works only while it is the same load since the same boot"
        };
        format!("{} labels tasks (--lsm-profile {}:LABEL); {compare}", module.name(), module.name())
    };
    let meaning: Vec<String> = here.modules().into_iter().map(say).collect();
    fact("security modules", here.active.join(", "), meaning.join("\n"))
}

fn landlock() -> Finding {
    const WHAT: &str = "Landlock";
    let abi = admit::landlock();
    // The versions in which each came (landlock(7)).
    let rules = [(3, "ro: rw: exec:"), (4, "connect: bind:"), (6, "scope:")];
    let there: Vec<_> = rules.iter().filter(|(since, _)| *since <= abi).map(|(_, rule)| *rule).collect();
    let missing: Vec<_> = rules.iter().filter(|(since, _)| *since > abi).map(|(_, rule)| *rule).collect();
    if missing.is_empty() {
        return yes(WHAT, format!("version {abi}: --landlock {}", there.join(" ")));
    }
    let meaning =
        format!("--landlock {} is refused, and so are images whose programs have such rules", missing.join(" "));
    fact(
        WHAT,
        if abi == 0 { "not in this kernel, or not switched on".into() } else { format!("version {abi}") },
        meaning,
    )
}

fn seccomp() -> Finding {
    const WHAT: &str = "seccomp";
    if admit::is_filtered() {
        return fact(
            WHAT,
            "a filter is in force here already",
            "what it denies is denied to containers, too: a refusal names it where it may have been the one",
        );
    }
    yes(WHAT, "no filter is in force here")
}

fn lazy() -> Finding {
    const WHAT: &str = "restore --lazy";
    match yendor_engine::pager::device() {
        Ok(_) => yes(WHAT, "memory comes when it is touched"),
        Err(why) => fact(WHAT, "all memory is there before the program runs", why),
    }
}

fn hard_limits() -> Finding {
    use rustix::process::{Resource, getrlimit};
    let limit = getrlimit(Resource::Nofile);
    let show = |n: Option<u64>| n.map_or_else(|| "unlimited".to_owned(), |n| n.to_string());
    let hard = show(limit.maximum);
    match limit.maximum {
        Some(n) if n < 4096 => {
            no("open files", format!("hard limit {hard}"), "images with more open files cannot be restored")
        }
        _ => yes("open files", format!("hard limit {hard}")),
    }
}

/// The whole road once, where the host's policy lets this user start containers at all.
fn container(network: &str) -> Finding {
    const WHAT: &str = "a container";
    if Policy::load().is_ok_and(|policy| policy.admits(&Person::caller(), Verb::Run).is_err()) {
        return fact(WHAT, "not tried", "the host's policy lets you start none");
    }
    let place = std::env::temp_dir().join(format!("yendor-doctor-{}", std::process::id()));
    let begin = Instant::now();
    let mut command = Command::new("/proc/self/exe");
    command.args(["-q", "run", "--rm", "--net", network, "--", "true"]).env("YENDOR_ROOT", &place);
    let output = command.output();
    let took = print::micros(print::since(begin));
    let mut left = String::new();
    if let Err(e) = crate::container::remove(&place) {
        left = format!("{e}");
    }
    match output {
        Ok(output) if output.status.success() => {
            Finding { meaning: left, ..yes(WHAT, format!("ran and ended in {took}")) }
        }
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            no(WHAT, "does not start", format!("{said}\n{left}").trim().to_owned())
        }
        Err(e) => no(WHAT, "does not start", e.to_string()),
    }
}
