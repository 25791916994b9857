//! The id maps of a container's user namespace (user_namespaces(7), subuid(5), newuidmap(1)).

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustix::fs::{Mode, OFlags};
use rustix::thread::CapabilitySet;
use yendor_kinds::{Cause, Named};
use yendor_sys::{Errno, SysError};

use crate::request::{Request, Root};

/// A range of ids (`inside outside count`, as the kernel reads them).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// The first id inside.
    pub inside: u32,
    /// The first id in the caller's namespace.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

/// Both maps, and who the keeper is inside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Maps {
    /// User ids.
    pub uids: Vec<Range>,
    /// Group ids.
    pub gids: Vec<Range>,
    /// Whether the distribution's newuidmap and newgidmap have to write them.
    pub helper: bool,
    /// Whether the caller's rights do not reach beyond its own group, so that setgroups(2) is given up.
    pub deny_setgroups: bool,
    /// User and group id of the container's root inside.
    pub root: (u32, u32),
}

/// What decides about the maps.
#[derive(Debug, Clone, Default)]
pub struct Caller {
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
    /// Whether it may write any map (`CAP_SETUID`, `CAP_SETGID`).
    pub privileged: bool,
    /// Ids that exist for it: its own namespace's maps, `(uids, gids)`; only read when privileged.
    pub known: (Vec<Range>, Vec<Range>),
    /// Its subordinate ranges as `(first, count)`; empty without newuidmap, or where no program gains anything (no_new_privs).
    #[allow(clippy::type_complexity, reason = "users and groups, each a list of first id and count")]
    pub subordinate: (Vec<(u32, u32)>, Vec<(u32, u32)>),
}

/// How a user namespace shows an id that it does not know (`/proc/sys/kernel/overflowuid`, the value of all kernels).
pub(super) const UNKNOWN: u32 = 65534;

/// Real root keeps its ids; the range is the classic 16 bits, so that 65534 is somebody.
const IDENTITY: u32 = 65536;

impl Caller {
    /// Looks.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn look() -> Result<Caller, Cause> {
        let uid = rustix::process::geteuid().as_raw();
        let gid = rustix::process::getegid().as_raw();
        let caps = rustix::thread::capabilities(None).named("capget", String::new)?.effective;
        let privileged = uid == 0 && caps.contains(CapabilitySet::SETUID | CapabilitySet::SETGID);
        let mut caller = Caller { uid, gid, privileged, ..Caller::default() };
        if privileged {
            caller.known = (known("/proc/self/uid_map")?, known("/proc/self/gid_map")?);
        } else if helper("newuidmap").is_some()
            && helper("newgidmap").is_some()
            && !rustix::thread::no_new_privs().unwrap_or(false)
        {
            let name = name(uid);
            let of = |file| ranges(&std::fs::read(file).unwrap_or_default(), uid, &name);
            caller.subordinate = (of("/etc/subuid"), of("/etc/subgid"));
        }
        Ok(caller)
    }
}

/// Whether the host's root, or whoever is root where the caller is, has an id in the user namespace of this process.
///
/// # Errors
/// `/proc` cannot be read.
pub fn has_the_hosts_root() -> Result<bool, Cause> {
    let of_above =
        known("/proc/self/uid_map")?.iter().chain(&known("/proc/self/gid_map")?).any(|range| range.outside == 0);
    // The owner of this is the host's root, whatever it is called here.
    let settings = rustix::fs::stat("/proc/sys").named("stat", || "\"/proc/sys\"".into())?;
    Ok(of_above || settings.st_uid != UNKNOWN || settings.st_gid != UNKNOWN)
}

/// Decides.
#[must_use]
pub fn plan(request: &Request, caller: &Caller) -> Maps {
    plan_for(request.root == Root::Caller, caller)
}

/// The same; `own_view`: for the caller's own view of the file system.
#[must_use]
pub fn plan_for(own_view: bool, caller: &Caller) -> Maps {
    if caller.privileged {
        let clip = |known: &[Range]| known.iter().filter_map(identity).collect();
        return Maps {
            uids: clip(&caller.known.0),
            gids: clip(&caller.known.1),
            helper: false,
            deny_setgroups: false,
            root: (0, 0),
        };
    }
    // The caller's own view of the files makes sense only under the caller's own ids.
    let root = if own_view { (caller.uid, caller.gid) } else { (0, 0) };
    let (uids, gids) = &caller.subordinate;
    let helper = !uids.is_empty() && !gids.is_empty();
    let extend = |inside, outside, ranges: &[(u32, u32)]| {
        if helper { around(inside, outside, ranges) } else { vec![one(inside, outside)] }
    };
    Maps {
        uids: extend(root.0, caller.uid, uids),
        gids: extend(root.1, caller.gid, gids),
        helper,
        deny_setgroups: !helper,
        root,
    }
}

fn one(inside: u32, outside: u32) -> Range {
    Range { inside, outside, count: 1 }
}

/// The part of a known range that stays what it is.
fn identity(known: &Range) -> Option<Range> {
    let count = IDENTITY.checked_sub(known.inside)?.min(known.count);
    (count > 0).then_some(Range { inside: known.inside, outside: known.inside, count })
}

/// The caller's id at `inside`, the subordinate ids at all others from 0 on.
fn around(inside: u32, outside: u32, subordinate: &[(u32, u32)]) -> Vec<Range> {
    let mut out = vec![one(inside, outside)];
    let mut next = if inside == 0 { 1 } else { 0 };
    for &(first, count) in subordinate {
        let (mut first, mut count) = (first, count);
        if next < inside {
            let below = count.min(inside - next);
            out.push(Range { inside: next, outside: first, count: below });
            (next, first, count) = (next + below, first.saturating_add(below), count - below);
            next += u32::from(next == inside);
        }
        let count = count.min(u32::MAX - next);
        if count > 0 {
            out.push(Range { inside: next, outside: first, count });
            next += count;
        }
    }
    out
}

/// Writes the maps of a process in a new user namespace.
///
/// # Errors
/// `EPERM` from the kernel, or newuidmap's own words as a denial.
pub fn write(pid: i32, maps: &Maps) -> Result<(), Cause> {
    if maps.helper {
        return by_helper(pid, maps);
    }
    if maps.deny_setgroups {
        put(pid, "setgroups", "deny")?;
    }
    put(pid, "gid_map", &lines(&maps.gids))?;
    put(pid, "uid_map", &lines(&maps.uids))
}

fn lines(ranges: &[Range]) -> String {
    ranges.iter().fold(String::new(), |mut text, r| {
        let _ = writeln!(text, "{} {} {}", r.inside, r.outside, r.count);
        text
    })
}

fn put(pid: i32, file: &str, text: &str) -> Result<(), Cause> {
    let path = format!("/proc/{pid}/{file}");
    let fd = rustix::fs::open(path.as_str(), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
        .named("open", || path.clone())?;
    rustix::io::write(&fd, text.as_bytes()).named("write", || format!("{path}, {text:?}"))?;
    Ok(())
}

fn by_helper(pid: i32, maps: &Maps) -> Result<(), Cause> {
    // Both at once: each is a process of its own.
    let start = |name: &'static str, ranges: &[Range]| {
        let path = helper(name).ok_or_else(|| SysError::new("execve", name, Errno::NOENT))?;
        let numbers = ranges.iter().flat_map(|r| [r.inside, r.outside, r.count]).map(|n| n.to_string());
        Command::new(path)
            .arg(pid.to_string())
            .args(numbers)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| Cause::from(SysError::io("execve", name, &e)))
    };
    let uids = start("newuidmap", &maps.uids)?;
    let gids = start("newgidmap", &maps.gids);
    let uids = uids.wait_with_output();
    let gids = gids?.wait_with_output();
    for (name, file, output) in [("newuidmap", "/etc/subuid", uids), ("newgidmap", "/etc/subgid", gids)] {
        let output = output.map_err(|e| SysError::io("wait4", name, &e))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(Cause::Denied {
                what: format!("{name} refused the map of the container: {}", said.trim()),
                hint: format!(
                    "check the caller's ranges in {file} and that {name} is setuid root or has its capability"
                ),
            });
        }
    }
    Ok(())
}

fn helper(name: &str) -> Option<PathBuf> {
    ["/usr/bin", "/bin", "/usr/local/bin", "/run/wrappers/bin"]
        .iter()
        .map(|d| PathBuf::from(d).join(name))
        .find(|p| p.exists())
}

/// The ranges of a map in /proc.
pub(super) fn known(path: &str) -> Result<Vec<Range>, Cause> {
    let text = std::fs::read(path).map_err(|e| SysError::io("open", path, &e))?;
    let all = yendor_proc::id_map::parse(&text)?;
    Ok(all.into_iter().map(|r| Range { inside: r.inside, outside: r.outside, count: r.count }).collect())
}

/// The user's name in /etc/passwd; subuid(5) knows users by name or number.
fn name(uid: u32) -> Vec<u8> {
    let text = std::fs::read("/etc/passwd").unwrap_or_default();
    let number = uid.to_string();
    let of = |line: &[u8]| {
        let mut fields = line.split(|b| *b == b':');
        let name = fields.next()?;
        (fields.nth(1)? == number.as_bytes()).then(|| name.to_vec())
    };
    text.split(|b| *b == b'\n').find_map(of).unwrap_or_default()
}

/// The ranges of a user in the text of subuid(5); lines that are none are passed over as newuidmap does.
fn ranges(text: &[u8], uid: u32, name: &[u8]) -> Vec<(u32, u32)> {
    let number = uid.to_string();
    let of = |line: &[u8]| {
        let line = std::str::from_utf8(line).ok()?;
        let [who, first, count] = line.split(':').collect::<Vec<_>>().try_into().ok()?;
        let mine = who == number || (!name.is_empty() && who.as_bytes() == name);
        let range = (first.trim().parse().ok()?, count.trim().parse().ok()?);
        (mine && range.1 > 0).then_some(range)
    };
    text.split(|b| *b == b'\n').filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{Net, Userns};

    fn request(root: Root) -> Request {
        Request {
            name: "n".into(),
            root,
            volumes: Vec::new(),
            net: Net::Private,
            userns: Userns::Auto,
            hostname: None,
            memory: None,
            pids: None,
            cap_drop: Vec::new(),
            policy: crate::request::Policy::default(),
            layout: None,
            any_cpu: false,
        }
    }

    fn triples(ranges: &[Range]) -> Vec<(u32, u32, u32)> {
        ranges.iter().map(|r| (r.inside, r.outside, r.count)).collect()
    }

    fn caller(subordinate: &[(u32, u32)]) -> Caller {
        let subordinate = (subordinate.to_vec(), subordinate.to_vec());
        Caller { uid: 1000, gid: 100, subordinate, ..Caller::default() }
    }

    #[test]
    fn without_ranges_there_is_one_id() {
        let maps = plan(&request(Root::Layered), &caller(&[]));
        assert_eq!((triples(&maps.uids), triples(&maps.gids)), (vec![(0, 1000, 1)], vec![(0, 100, 1)]));
        assert!(maps.deny_setgroups && !maps.helper);
        let maps = plan(&request(Root::Caller), &caller(&[]));
        assert_eq!((triples(&maps.uids), maps.root), (vec![(1000, 1000, 1)], (1000, 100)));
    }

    #[test]
    fn ranges_fill_the_other_ids() {
        let maps = plan(&request(Root::Layered), &caller(&[(100_000, 65536), (300_000, 10)]));
        assert_eq!(triples(&maps.uids), [(0, 1000, 1), (1, 100_000, 65536), (65537, 300_000, 10)]);
        let maps = plan(&request(Root::Caller), &caller(&[(100_000, 600), (300_000, 1000)]));
        let expected = [(1000, 1000, 1), (0, 100_000, 600), (600, 300_000, 400), (1001, 300_400, 600)];
        assert_eq!(triples(&maps.uids), expected);
        assert!(maps.helper && !maps.deny_setgroups);
    }

    #[test]
    fn root_keeps_the_ids_it_has() {
        let known = vec![Range { inside: 0, outside: 7, count: 10 }, Range { inside: 65530, outside: 9, count: 100 }];
        let caller = Caller { privileged: true, known: (known.clone(), known), ..Caller::default() };
        let maps = plan(&request(Root::Layered), &caller);
        assert_eq!(triples(&maps.uids), [(0, 0, 10), (65530, 65530, 6)]);
    }

    #[test]
    fn subuid_is_read_as_newuidmap_reads_it() {
        let text = b"# x\nroot:1:2\nme:100000:65536\n1000:5:0\n1000:300:4\nme:x:1\nme:1:2:3\n\xff:1:1\n";
        assert_eq!(ranges(text, 1000, b"me"), [(100_000, 65536), (300, 4)]);
        assert_eq!(ranges(text, 1000, b""), [(300, 4)]);
    }
}
