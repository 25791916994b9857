//! compose: a container that nobody ever checkpointed, as an image whose only process starts with execve.

use rustix::fs::{Access, AtFlags};
use yendor_image::{Bytes, FdNum, FileId, NsPid};
use yendor_kinds::file::Descriptor;
use yendor_kinds::process::{Exec, Record, State, Terminal, USUAL_SIGNAL, credential, directory, rlimit};
use yendor_kinds::snapshot::{Container, Machine, Root, Security, Snapshot};
use yendor_kinds::{Cause, Named};
use yendor_policy::capability;
use yendor_sys::{Errno, SysError};

use crate::contain::Contained;
use crate::error::{At, Error, Result, Step, With};
use crate::keeper::{standard_files, terminal_file};
use crate::request::{Request, Root as Wanted};
use crate::wire::Spec;

/// The first process of a new container: pid 1 is the container's own.
const FIRST: NsPid = NsPid(2);

/// Composes the image, inside the container: the program is looked for in its file system.
///
/// # Errors
/// `execve` `ENOENT` for a program that is not there, `EACCES` for one that cannot be executed.
pub fn compose(spec: &Spec, request: &Request, contained: &Contained, terminal: bool) -> Result<Snapshot> {
    let (uid, gid) = spec.user.unwrap_or((0, 0));
    let name = spec.command.first().map_or(&[][..], |c| &c.0);
    let path = find(name, &spec.env).at(Step::Thaw).task(FIRST.0).kind("program", name.escape_ascii().to_string())?;
    let own = rustix::process::getuid().as_raw();
    let uid = if spec.user.is_none() { own } else { uid };
    let gid = if spec.user.is_none() { rustix::process::getgid().as_raw() } else { gid };
    let privileged = uid == own;
    let held = if privileged { capability::ALL } else { 0 };
    let ceiling = now_bounding(contained);
    let capabilities = spec.capabilities.unwrap_or([0, held, held, capability::ALL, 0]).map(|set| set & ceiling);
    let limits = if spec.limits.is_empty() { None } else { Some(limits(spec, contained)?) };
    let exec = Exec {
        path,
        argv: spec.command.clone(),
        env: spec.env.clone(),
        descriptors: (0..3)
            .map(|n| Descriptor {
                number: FdNum(n),
                cloexec: false,
                // A terminal is one description, the standard files are three.
                file: FileId(if terminal { 0 } else { n.unsigned_abs() }),
            })
            .collect(),
        directory: directory::Record {
            cwd: spec.cwd.clone().unwrap_or_else(|| Bytes(b"/".to_vec())),
            cwd_deleted: false,
            root: None,
            umask: spec.umask.unwrap_or(0o022),
        },
        credentials: credential::Record {
            uids: [uid; 4],
            gids: [gid; 4],
            groups: groups(spec, contained),
            capabilities,
            securebits: 0,
            no_new_privs: spec.no_new_privs,
        },
        limits,
        oom_score_adj: spec.oom_score_adj,
        terminal: terminal.then_some(Terminal { file: FileId(0), foreground: None }),
    };
    let process = Record {
        pid: FIRST,
        parent: NsPid(1),
        parent_thread: None,
        group: FIRST,
        session: FIRST,
        namespace: None,
        levels: Vec::new(),
        exit_signal: USUAL_SIGNAL,
        state: State::Exec(Box::new(exec)),
    };
    Ok(Snapshot {
        machine: Machine {
            architecture: "x86_64".into(),
            kernel: String::new(),
            vdso: None,
            processor: Vec::new(),
            security: Security::default(),
        },
        container: Container {
            hostname: Bytes(request.hostname.clone().unwrap_or_else(|| request.name.clone()).into_bytes()),
            domainname: Bytes(rustix::system::uname().domainname().to_bytes().to_vec()),
            clocks: (0, 0),
            root: match request.root {
                Wanted::Layered => Root::Layered,
                Wanted::Dir(_) if request.layout.is_some() => Root::Bundle,
                Wanted::Dir(_) => Root::Dir,
                Wanted::Caller => Root::Caller,
            },
            links: yendor_kinds::namespace::links::Record::default(),
            own_network: request.net != crate::request::Net::Host,
            loopback: request.net == crate::request::Net::Private,
            layers: Vec::new(),
            mounts: yendor_kinds::namespace::mount::own::Record::default(),
            ipc: None,
            settings: Vec::new(),
            volumes: Vec::new(),
            bounds: Vec::new(),
        },
        processes: vec![process],
        files: if terminal { vec![terminal_file()] } else { standard_files() },
        objects: Vec::new(),
        namespaces: Vec::new(),
        restrictions: yendor_kinds::snapshot::Restrictions::default(),
        lost: Vec::new(),
    })
}

/// The groups that are asked for; without any, where setgroups(2) is given up, those that the caller cannot get rid of.
fn groups(spec: &Spec, contained: &Contained) -> Vec<u32> {
    use std::os::fd::AsFd as _;
    let proc = contained.host_proc.as_fd();
    let denied = || yendor_task::tree::read_proc(proc, "self/setgroups").is_ok_and(|text| text.starts_with(b"deny"));
    match &spec.groups {
        Some(groups) if !groups.is_empty() || !denied() => sorted(groups.clone()),
        _ => {
            let now = rustix::process::getgroups().unwrap_or_default();
            sorted(now.iter().map(|g| g.as_raw()).collect())
        }
    }
}

/// As the kernel keeps them.
fn sorted(mut groups: Vec<u32>) -> Vec<u32> {
    groups.sort_unstable();
    groups.dedup();
    groups
}

/// The caller's limits with those that the program is to have.
fn limits(spec: &Spec, contained: &Contained) -> Result<rlimit::Record> {
    use std::os::fd::AsFd as _;
    let text = yendor_task::tree::read_proc(contained.host_proc.as_fd(), "self/limits").at(Step::Contain)?;
    let mut record = rlimit::collect(&yendor_proc::limits::parse(&text).at(Step::Contain)?);
    for &(resource, soft, hard) in &spec.limits {
        let slot = record.limits.get_mut(resource);
        let now = slot.ok_or(Errno::INVAL).named("prlimit64", || format!("{resource}")).at(Step::Admit)?;
        if hard > now.1 || soft > hard {
            let what = format!("resource limit {resource} of {soft} and {hard}: the caller's hard limit is {}", now.1);
            let hint = "limits can only be lowered: ask for less, or raise the caller's (ulimit -H)".into();
            return Err(Error::new(Step::Admit, Cause::Denied { what, hint }));
        }
        *now = (soft, hard);
    }
    Ok(record)
}

fn now_bounding(contained: &Contained) -> u64 {
    use std::os::fd::AsFd as _;
    let text = yendor_task::tree::read_proc(contained.host_proc.as_fd(), "self/status").ok();
    let status = text.and_then(|t| yendor_proc::status::parse(&t).ok());
    status.map_or(capability::ALL, |s| s.cap_bnd)
}

/// A program by its name: as it is with a slash, else in the directories of `PATH`.
fn find(name: &[u8], env: &[Bytes]) -> std::result::Result<Bytes, SysError> {
    let fail = |errno| SysError::new("execve", format!("\"{}\"", name.escape_ascii()), errno);
    if name.is_empty() {
        return Err(fail(Errno::NOENT));
    }
    let candidates: Vec<Vec<u8>> = if name.contains(&b'/') {
        vec![name.to_vec()]
    } else {
        let path = env.iter().find_map(|e| e.0.strip_prefix(b"PATH=")).unwrap_or(b"/usr/local/bin:/usr/bin:/bin");
        path.split(|b| *b == b':').map(|dir| [if dir.is_empty() { b"." } else { dir }, b"/", name].concat()).collect()
    };
    let mut seen = None;
    for path in candidates {
        match rustix::fs::accessat(rustix::fs::CWD, path.as_slice(), Access::EXEC_OK, AtFlags::EACCESS) {
            Ok(()) if is_file(&path) => return Ok(Bytes(path)),
            Ok(()) | Err(Errno::ACCESS) => seen = Some(Errno::ACCESS),
            Err(_) => {}
        }
    }
    Err(fail(seen.unwrap_or(Errno::NOENT)))
}

fn is_file(path: &[u8]) -> bool {
    use rustix::fs::{FileType, stat};
    stat(path).is_ok_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::RegularFile)
}
