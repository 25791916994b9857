//! Landlock rulesets (landlock(7), linux/landlock.h).

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use crate::{Result, SysError};

/// `struct landlock_ruleset_attr` as far as ABI 6 knows it; the kernel takes shorter ones from older programs.
#[repr(C)]
struct RulesetAttr {
    fs: u64,
    net: u64,
    scoped: u64,
}

#[repr(C, packed)]
struct PathBeneath {
    access: u64,
    parent: i32,
}

#[repr(C)]
struct NetPort {
    access: u64,
    port: u64,
}

const RULE_PATH_BENEATH: i32 = 1;
const RULE_NET_PORT: i32 = 2;

/// The kernel's ABI version; 0 when it has no Landlock, or it is switched off.
#[must_use]
pub fn abi() -> u32 {
    const VERSION: u32 = 1;
    let none = std::ptr::null::<RulesetAttr>();
    // SAFETY: with this flag the kernel wants a null pointer and size 0 and touches no memory.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, none, 0usize, VERSION) };
    u32::try_from(version).unwrap_or(0)
}

/// A ruleset from the bytes of a `landlock_ruleset_attr` of any length.
///
/// # Errors
/// As the kernel judges them.
pub fn create_ruleset_from(attr: &[u8]) -> Result<OwnedFd> {
    let shown = || format!("{} bytes", attr.len());
    // SAFETY: the bytes outlive the call, which reads no more than it is told.
    let fd = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, attr.as_ptr(), attr.len(), 0u32) };
    if fd < 0 {
        return Err(SysError::last("landlock_create_ruleset", shown()));
    }
    let fd = i32::try_from(fd).map_err(|_| SysError::new("landlock_create_ruleset", shown(), crate::Errno::BADF))?;
    // SAFETY: the kernel has just made it, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A ruleset that restricts these accesses and scopes.
///
/// # Errors
/// `EINVAL` or `E2BIG` for what this kernel does not know, `ENOMSG` for nothing at all.
pub fn create_ruleset(fs: u64, net: u64, scoped: u64) -> Result<OwnedFd> {
    let attr = RulesetAttr { fs, net, scoped };
    let shown = || format!("{{fs={fs:#x}, net={net:#x}, scoped={scoped:#x}}}");
    // No longer than needed: a kernel that does not know a field wants it left out or zero.
    let size = std::mem::size_of::<RulesetAttr>();
    // SAFETY: `attr` has the kernel's layout and outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, &raw const attr, size, 0u32) };
    if fd < 0 {
        return Err(SysError::last("landlock_create_ruleset", shown()));
    }
    let fd = i32::try_from(fd).map_err(|_| SysError::new("landlock_create_ruleset", shown(), crate::Errno::BADF))?;
    // SAFETY: the kernel has just made it, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Allows accesses at and below a file.
///
/// # Errors
/// `EINVAL` for accesses that the ruleset does not restrict or that a file cannot have, `EBADFD` for a file that has no
/// place in the tree.
pub fn allow_beneath(ruleset: &impl AsFd, access: u64, parent: &impl AsFd) -> Result<()> {
    let attr = PathBeneath { access, parent: parent.as_fd().as_raw_fd() };
    let fd = ruleset.as_fd().as_raw_fd();
    // SAFETY: `attr` has the kernel's packed layout and outlives the call.
    let ret = unsafe { libc::syscall(libc::SYS_landlock_add_rule, fd, RULE_PATH_BENEATH, &raw const attr, 0u32) };
    let shown = || format!("LANDLOCK_RULE_PATH_BENEATH, {access:#x}");
    if ret < 0 { Err(SysError::last("landlock_add_rule", shown())) } else { Ok(()) }
}

/// Allows accesses to a TCP port.
///
/// # Errors
/// `EINVAL` for accesses that the ruleset does not restrict or a port that is none, `EAFNOSUPPORT` without TCP.
pub fn allow_port(ruleset: &impl AsFd, access: u64, port: u64) -> Result<()> {
    let attr = NetPort { access, port };
    let fd = ruleset.as_fd().as_raw_fd();
    // SAFETY: `attr` has the kernel's layout and outlives the call.
    let ret = unsafe { libc::syscall(libc::SYS_landlock_add_rule, fd, RULE_NET_PORT, &raw const attr, 0u32) };
    let shown = || format!("LANDLOCK_RULE_NET_PORT, {access:#x}, {port}");
    if ret < 0 { Err(SysError::last("landlock_add_rule", shown())) } else { Ok(()) }
}

/// Restricts the calling thread, for good.
///
/// # Errors
/// `EPERM` without `no_new_privs` or `CAP_SYS_ADMIN` in the own user namespace, `E2BIG` after 16 domains.
pub fn restrict_self(ruleset: &impl AsFd, flags: u32) -> Result<()> {
    restrict_self_with(ruleset, flags, 0)
}

/// Likewise, with a sixth argument, which the kernel ignores.
///
/// # Errors
/// As [`restrict_self`].
pub fn restrict_self_with(ruleset: &impl AsFd, flags: u32, cookie: u64) -> Result<()> {
    let fd = ruleset.as_fd().as_raw_fd();
    // SAFETY: takes no pointer.
    let ret = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, fd, flags, 0usize, 0usize, 0usize, cookie) };
    if ret < 0 { Err(SysError::last("landlock_restrict_self", format!("{fd}, {flags:#x}"))) } else { Ok(()) }
}

/// Runs `f` in a thread that is restricted by the ruleset and has none of these capabilities in effect. The calling
/// thread and all others stay as they are.
///
/// # Errors
/// What hindered the thread from being confined; then `f` was not run.
pub fn confined<T: Send>(ruleset: Option<&OwnedFd>, without: u64, f: impl FnOnce() -> T + Send) -> Result<T> {
    let body = || {
        // Entering a domain needs a capability that may be among those that go.
        ruleset.map_or(Ok(()), |r| restrict_self(r, 0))?;
        let named = |call| move |e| SysError::new(call, format!("without {without:#x}"), e);
        let mut sets = rustix::thread::capabilities(None).map_err(named("capget"))?;
        sets.effective &= !rustix::thread::CapabilitySet::from_bits_retain(without);
        rustix::thread::set_capabilities(None, sets).map_err(named("capset"))?;
        Ok(f())
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, body);
        let thread = thread.map_err(|e| SysError::io("clone", "a confined thread", &e))?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_restricts_itself_alone() {
        const READ_FILE: u64 = 1 << 2;
        assert!(abi() > 0, "this kernel has no Landlock");
        let ruleset = create_ruleset(READ_FILE, 0, 0).unwrap();
        let usr = std::fs::File::open("/usr").unwrap();
        allow_beneath(&ruleset, READ_FILE, &usr).unwrap();
        assert!(allow_beneath(&ruleset, 1 << 40, &usr).is_err());
        let inside = std::thread::spawn(move || {
            rustix::thread::set_no_new_privs(true).unwrap();
            restrict_self(&ruleset, 0).unwrap();
            std::fs::File::open("/etc/passwd").unwrap_err().raw_os_error()
        });
        assert_eq!(inside.join().unwrap(), Some(libc::EACCES));
        std::fs::File::open("/etc/passwd").unwrap();
    }
}
