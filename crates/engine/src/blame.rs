//! Whose fault a refused call is, when an image has asked for it.

use yendor_kinds::Cause;
use yendor_sys::Errno;
use yendor_sys::wait::Event;
use yendor_task::RunError;

use crate::error::{Error, Step};

/// Calls by which a task or a file becomes somebody's: what they refuse is more than the container's root may be.
const IDENTITY: [&str; 10] =
    ["setresuid", "setresgid", "setgroups", "setfsuid", "setfsgid", "capset", "chown", "fchown", "fchownat", "lchown"];

/// Calls by which a task has more memory.
const MEMORY: [&str; 8] = ["mmap", "mremap", "mprotect", "madvise", "mlock", "mlock2", "brk", "shmget"];

/// Values that no kernel takes are the image's fault, ids that the container does not have are a denial, and what the machine does not
/// have is a hole. A call that is refused for any other reason says nothing about the image. `alone`: nobody else can have its addresses.
pub fn image(e: Error, alone: bool) -> Error {
    if e.place.object.as_deref() == Some("/proc") && e.cause.sys().is_some_and(|sys| sys.errno == Errno::NOENT) {
        let cause = Cause::corrupt(format!("its files have removed where proc is mounted: {}", e.cause));
        return Error { cause: Box::new(cause), ..e };
    }
    if matches!(e.place.step, Step::Admit | Step::Contain) {
        return e;
    }
    if by_its_own_hand(&e.cause) {
        // Memory and registers that no task could have had that was ever stopped.
        let cause = Cause::corrupt(format!("a task that cannot be made again: {}", e.cause));
        return Error { cause: Box::new(cause), ..e };
    }
    let Some(sys) = e.cause.sys() else { return e };
    let what = sys.to_string();
    let cause = match sys.errno {
        Errno::ADDRINUSE if alone => Cause::corrupt(format!("two have what one can have: {what}")),
        Errno::INVAL if IDENTITY.contains(&sys.call) => {
            let hint = e.hint().unwrap_or_else(|| "the image asks for an id that this container does not have".into());
            Cause::Denied { what, hint }
        }
        Errno::INVAL
        | Errno::FAULT
        | Errno::RANGE
        | Errno::OVERFLOW
        | Errno::NAMETOOLONG
        | Errno::FBIG
        | Errno::LOOP
        | Errno::XDEV => Cause::corrupt(format!("it asks for what cannot be: {what}")),
        // A link to nothing at all.
        Errno::NOENT if sys.call == "symlinkat" => Cause::corrupt(format!("it asks for what cannot be: {what}")),
        Errno::NODEV if sys.call == "mmap" => Cause::corrupt(format!("it asks for what cannot be: {what}")),
        Errno::IO if sys.call == "ptrace" => Cause::corrupt(format!("it asks for what cannot be: {what}")),
        // Keys of System V objects, in a namespace that is new.
        Errno::EXIST if matches!(sys.call, "shmget" | "semget" | "msgget") => {
            Cause::corrupt(format!("two have what one can have: {what}"))
        }
        // Of files whose size is right, into memory that ends too early.
        Errno::PROTO if sys.call == "pread64" => Cause::corrupt(format!("pages without memory to lie in: {what}")),
        // Nobody is borrowed without one, so nobody was who had none.
        Errno::NOENT if sys.call == "borrow" => Cause::corrupt(format!("a task without the vdso that it had: {what}")),
        // What the caller has asked for is confined later.
        Errno::NOENT | Errno::NOTDIR if sys.call == "openat2" && e.place.step == Step::Rebuild => Cause::Hole {
            what: format!("a place of its file system as it was: {what}"),
            option: "--volume or --rootfs".into(),
        },
        Errno::NOMEM if MEMORY.contains(&sys.call) && e.place.step == Step::Rebuild => Cause::of_machine(
            format!(
                "more memory than this machine and its limits (ulimit -a, vm.overcommit_memory) let it have: {what}"
            ),
            "a machine that has it",
        ),
        // A timer had expired, and does not.
        Errno::AGAIN if sys.call == "rt_sigtimedwait" => Cause::corrupt(format!("a signal that does not come: {what}")),
        Errno::ISCONN if sys.call == "connect" => Cause::corrupt(format!("it asks for what cannot be: {what}")),
        Errno::DOM if sys.call == "setsockopt" => Cause::corrupt(format!("it asks for what cannot be: {what}")),
        // A stack that is too small.
        Errno::NOMEM if sys.call == "sigaltstack" => Cause::corrupt(format!("it asks for what cannot be: {what}")),
        // A lock that only who may write can have.
        Errno::BADF if sys.call == "fcntl" => Cause::corrupt(format!("it asks for what cannot be: {what}")),
        Errno::ADDRNOTAVAIL if e.place.step == Step::Rebuild => Cause::of_machine(
            format!("an address that the container's network does not have ({what})"),
            "--net host where the host has it, or the network that it had",
        ),
        Errno::OPNOTSUPP | Errno::NOPROTOOPT if sys.call == "setsockopt" => {
            Cause::of_machine(format!("a kernel with this option of sockets ({what})"), "one that has it")
        }
        Errno::NXIO if sys.call == "prctl" => Cause::of_machine(
            format!("a processor whose speculation can be controlled ({what})"),
            "a machine that has one",
        ),
        Errno::TOOBIG => Cause::corrupt(format!("it asks for what cannot be: {what}")),
        Errno::NODEV if sys.call == "arch_prctl" => {
            Cause::of_machine(format!("a processor that can deny cpuid ({what})"), "a machine that has one")
        }
        _ => return e,
    };
    Error { cause: Box::new(cause), ..e }
}

/// SIGSYS, by which a seccomp filter ends who makes a call.
const BY_A_FILTER: i32 = 31;

/// Whether a task was stopped or killed by a signal that only its own instructions cause.
fn by_its_own_hand(cause: &Cause) -> bool {
    // SIGILL, SIGTRAP, SIGBUS, SIGFPE, SIGSEGV, SIGSYS.
    const OWN: [i32; 6] = [4, 5, 7, 8, 11, BY_A_FILTER];
    signal(cause).is_some_and(|signal| OWN.contains(&signal))
}

/// By which signal a task was stopped or killed.
fn signal(cause: &Cause) -> Option<i32> {
    let event = match cause {
        Cause::Run(RunError::Signal { signal, .. }) => return Some(*signal),
        Cause::Run(RunError::Died { event, .. }) => event,
        Cause::Dead(dead) => &dead.event,
        _ => return None,
    };
    if let Event::Killed(signal) = event { Some(signal & 0x7f) } else { None }
}

/// Who was ended by a filter, where one is in force that is not the image's: that has denied a call, and did not say so by an error. `filter`:
/// whose.
pub fn filter(e: Error, filter: Option<String>) -> Error {
    if signal(&e.cause) != Some(BY_A_FILTER) || filter.is_none() {
        return e;
    }
    let what = format!("a seccomp filter ends who makes a call ({})", e.cause);
    let hint = "let the filter answer with an error (SECCOMP_RET_ERRNO): then it can be said which call it was".into();
    Error { cause: Box::new(Cause::Denied { what, hint }), by: filter, ..e }
}

#[cfg(test)]
mod tests {
    use super::*;
    use yendor_sys::SysError;

    #[test]
    fn who_is_ended_by_a_filter_is_denied_if_it_is_not_the_images() {
        let ended = |signal| Error::new(Step::Confine, Cause::Run(RunError::Signal { tid: 7, signal }));
        let code =
            |signal, whose: Option<&str>| image(filter(ended(signal), whose.map(str::to_owned)), true).exit_code();
        assert_eq!((code(BY_A_FILTER, Some("whose")), code(BY_A_FILTER, None)), (5, 4));
        assert_eq!((code(11, Some("whose")), code(10, Some("whose"))), (4, 1));
    }

    #[test]
    fn an_image_is_blamed_for_what_it_asks_and_not_for_the_rest() {
        let code = |step, call, errno| image(Error::new(step, SysError::new(call, "", errno)), true).exit_code();
        assert_eq!(code(Step::Confine, "setresuid", Errno::INVAL), 5);
        assert_eq!(code(Step::Rebuild, "mmap", Errno::INVAL), 4);
        assert_eq!(code(Step::Rebuild, "openat2", Errno::NOENT), 5);
        assert_eq!(code(Step::Confine, "openat2", Errno::NOENT), 1);
        assert_eq!(code(Step::Rebuild, "mmap", Errno::NODEV), 4);
        assert_eq!(code(Step::Rebuild, "symlinkat", Errno::NOENT), 4);
        assert_eq!(code(Step::Rebuild, "mmap", Errno::NOMEM), 5);
        assert_eq!(code(Step::Rebuild, "clone3", Errno::NOMEM), 1);
        assert_eq!(code(Step::Rebuild, "read", Errno::IO), 1);
        assert_eq!(code(Step::Rebuild, "openat", Errno::NOSPC), 1);
        assert_eq!(code(Step::Thaw, "borrow", Errno::NOENT), 4);
        assert_eq!(code(Step::Rebuild, "pread64", Errno::PROTO), 4);
        assert_eq!(code(Step::Rebuild, "shmget", Errno::EXIST), 4);
        assert_eq!(code(Step::Rebuild, "pread64", Errno::IO), 1);
        assert_eq!(code(Step::Rebuild, "bind", Errno::ADDRINUSE), 4);
        let taken = Error::new(Step::Rebuild, SysError::new("bind", "", Errno::ADDRINUSE));
        assert_eq!(image(taken, false).exit_code(), 1);
        assert_eq!(code(Step::Rebuild, "arch_prctl", Errno::NODEV), 5);
        assert_eq!(code(Step::Rebuild, "bind", Errno::ADDRNOTAVAIL), 5);
        assert_eq!(code(Step::Rebuild, "setsockopt", Errno::OPNOTSUPP), 5);
        assert_eq!(code(Step::Rebuild, "setsockopt", Errno::NOPROTOOPT), 5);
        assert_eq!(code(Step::Rebuild, "rt_sigtimedwait", Errno::AGAIN), 4);
        assert_eq!(code(Step::Rebuild, "connect", Errno::ISCONN), 4);
        assert_eq!(code(Step::Rebuild, "setsockopt", Errno::DOM), 4);
        assert_eq!(code(Step::Rebuild, "sigaltstack", Errno::NOMEM), 4);
        assert_eq!(code(Step::Confine, "fcntl", Errno::BADF), 4);
        assert_eq!(code(Step::Rebuild, "mmap", Errno::PERM), 5);
        assert_eq!(code(Step::Contain, "mount", Errno::INVAL), 1);
        assert_eq!(code(Step::Rebuild, "prctl", Errno::NXIO), 5);
        assert_eq!(code(Step::Rebuild, "sched_setattr", Errno::TOOBIG), 4);
        let signal = Error::new(Step::Rebuild, Cause::Run(RunError::Signal { tid: 7, signal: 11 }));
        assert_eq!(image(signal, true).exit_code(), 4);
        let died = |signal| {
            let event = Event::Killed(signal);
            image(Error::new(Step::Rebuild, Cause::Run(RunError::Died { tid: 7, event })), true).exit_code()
        };
        assert_eq!((died(11), died(9)), (4, 1));
        let proc = Error::new(Step::Contain, SysError::new("move_mount", "\"/proc\"", Errno::NOENT));
        assert_eq!(image(proc.kind("mount", "/proc"), true).exit_code(), 4);
    }
}
