//! What a seccomp filter would have said to the calls by which a program comes to its files (`--enforce early`). The filter cannot be
//! in force while they are made: it judges calls, and a restore makes others than the program did.

use yendor_kinds::file::inet::{Family, State};
use yendor_kinds::file::{Entry, Record, unix};
use yendor_policy::seccomp::{self, Call, Instruction};

use super::{Cause, Error, Result, Step};
use crate::request::Seccomp;

const UNIX: u64 = 1;
const INET: u64 = 2;
const INET6: u64 = 10;
const NETLINK: u64 = 16;

/// A call and its first arguments, as far as the file tells them.
type Way = (&'static str, &'static [Option<u64>]);

/// Looks at each file.
///
/// # Errors
/// `Denied` for the first one that no program could have under the filter.
pub fn judge(filter: &Seccomp, files: &[Entry]) -> Result<()> {
    let program = seccomp::program(&filter.program.0).ok_or_else(|| {
        Error::new(Step::Rebuild, Cause::unsupported("--enforce early by a filter that is no program"))
    })?;
    for entry in files {
        for ways in needed(&entry.record) {
            if !ways.iter().any(|way| may(&program, *way)) {
                let calls: Vec<&str> = ways.iter().map(|(call, _)| *call).collect();
                let what = format!("a program could not have this under the filter, which denies {}", calls.join(", "));
                let hint =
                    "with --enforce late files are restored whatever the filter says, and it judges what tasks do then";
                let denied = Error::new(Step::Rebuild, Cause::Denied { what, hint: hint.into() });
                let mut denied = denied.kind(entry.record.kind(), format!("file {}", entry.id));
                denied.by = Some("seccomp: the container's filter (--enforce early)".into());
                return Err(denied);
            }
        }
    }
    Ok(())
}

/// What hangs on something that is not known is not denied.
fn may(filter: &[Instruction], (name, known): Way) -> bool {
    let Some(nr) = seccomp::profile::number(name) else { return true };
    let mut args = [None; 6];
    args.iter_mut().zip(known).for_each(|(arg, known)| *arg = *known);
    let call = Call { nr, arch: seccomp::ARCH, ip: None, args };
    seccomp::verdict([filter], &call).is_none_or(seccomp::allows)
}

/// The steps by which a program comes to such a file; of each one way is enough.
fn needed(record: &Record) -> Vec<&'static [Way]> {
    const OPEN: &[Way] = &[("openat", &[]), ("open", &[]), ("openat2", &[]), ("creat", &[])];
    // Also the other side of a terminal (TIOCGPTPEER), and what is asked of a namespace (ioctl_nsfs(2)).
    const OPEN_OR_ASK: &[Way] = &[("openat", &[]), ("open", &[]), ("openat2", &[]), ("creat", &[]), ("ioctl", &[])];
    const SOCKET_UNIX: &[Way] =
        &[("socket", &[Some(UNIX)]), ("socketpair", &[Some(UNIX)]), ("accept4", &[]), ("accept", &[])];
    const SOCKET_INET: &[Way] = &[("socket", &[Some(INET)])];
    const SOCKET_INET6: &[Way] = &[("socket", &[Some(INET6)])];
    const ACCEPTED: &[Way] =
        &[("socket", &[Some(INET)]), ("socket", &[Some(INET6)]), ("accept4", &[]), ("accept", &[])];
    const LISTEN: &[Way] = &[("listen", &[])];
    match record {
        // Not opened by a program.
        Record::External(_) | Record::Console(_) => vec![],
        Record::Regular(_)
        | Record::Device(_)
        | Record::Fifo(_)
        | Record::Proc(_)
        | Record::Tty(_)
        | Record::Ptmx(_) => vec![OPEN],
        Record::Namespace(_) | Record::Pts(_) => vec![OPEN_OR_ASK],
        Record::Pipe(_) => vec![&[("pipe2", &[]), ("pipe", &[])]],
        Record::Eventfd(_) => vec![&[("eventfd2", &[]), ("eventfd", &[])]],
        Record::Epoll(_) => vec![&[("epoll_create1", &[]), ("epoll_create", &[])]],
        Record::Timerfd(_) => vec![&[("timerfd_create", &[])]],
        Record::Signalfd(_) => vec![&[("signalfd4", &[]), ("signalfd", &[])]],
        Record::Inotify(_) => vec![&[("inotify_init1", &[]), ("inotify_init", &[])]],
        Record::Memfd(_) => vec![&[("memfd_create", &[])]],
        Record::Mqueue(_) => vec![&[("mq_open", &[]), ("openat", &[]), ("open", &[]), ("openat2", &[])]],
        Record::Pidfd(_) => {
            // By SO_PEERPIDFD and SCM_PIDFD, too.
            vec![&[("pidfd_open", &[]), ("clone", &[]), ("clone3", &[]), ("getsockopt", &[]), ("recvmsg", &[])]]
        }
        Record::Netlink(_) => vec![&[("socket", &[Some(NETLINK)])]],
        Record::Unix(socket) => match socket.state {
            unix::State::Listening { .. } => vec![SOCKET_UNIX, LISTEN],
            _ => vec![SOCKET_UNIX],
        },
        Record::Inet(socket) => {
            let made = if socket.family == Family::V4 { SOCKET_INET } else { SOCKET_INET6 };
            match socket.state {
                State::TcpListening { .. } => vec![made, LISTEN],
                State::TcpConnected(_) | State::TcpEnded(_) => vec![ACCEPTED],
                State::TcpIdle | State::Udp(_) => vec![made],
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use yendor_kinds::file::{eventfd, regular};

    /// A name that nobody knows would be let go in silence.
    #[test]
    fn all_calls_are_known() {
        let source = include_str!("calls.rs").split("#[cfg(test)]").next().unwrap_or_default();
        let names = source.split("(\"").skip(1).filter_map(|rest| rest.split_once("\", &["));
        let names: Vec<&str> = names.map(|(name, _)| name).collect();
        assert!(names.len() > 30, "{names:?}");
        for name in names {
            assert!(seccomp::profile::number(name).is_some(), "{name}");
        }
    }

    #[test]
    fn one_way_is_enough_and_what_is_not_known_denies_nothing() {
        let filter = |text: &str| {
            let compiled = seccomp::profile::compile(text).expect("a profile");
            seccomp::to_bytes(&compiled.program)
        };
        let denies = |rule: &str, record: &Record| {
            let text = format!(r#"{{ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{rule}] }}"#);
            let program = seccomp::program(&filter(&text)).expect("a program");
            needed(record).iter().any(|ways| !ways.iter().any(|way| may(&program, *way)))
        };
        let counter = Record::Eventfd(eventfd::Record { count: 1, semaphore: false });
        let file = Record::Regular(regular::Record {
            path: yendor_image::Bytes::from("/x"),
            mode: 0o100_644,
            position: 0,
            size: 0,
            ghost: None,
        });
        let rule = |names: &str, args: &str| format!(r#"{{ "names": [{names}], "action": "SCMP_ACT_ERRNO"{args} }}"#);
        assert!(!denies(&rule(r#""eventfd""#, ""), &counter));
        assert!(denies(&rule(r#""eventfd", "eventfd2""#, ""), &counter));
        assert!(denies(&rule(r#""open", "openat", "openat2", "creat""#, ""), &file));
        let unknown = r#", "args": [{ "index": 2, "value": 64, "op": "SCMP_CMP_EQ" }]"#;
        assert!(!denies(&rule(r#""open", "openat", "openat2", "creat""#, unknown), &file));
    }
}
