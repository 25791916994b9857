//! State of threads that cannot be made again, asked for so that it is not lost in silence.
//! *Read from:* modify_ldt, `PR_SCHED_CORE_GET`, `ARCH_GET_UNTAG_MASK` and keyctl in the task.
//! *Made again by:* nothing: each refuses the checkpoint.
//! *Lost:* the session keyring that the container was started with, which becomes the restorer's (of a tree that Yendor did
//! not start: whichever it has), and in the host's user namespace the keys of users; a ring of io_uring that is neither
//! mapped nor open, but only registered (`IORING_SETUP_REGISTERED_FD_ONLY`).

use yendor_task::script::out;
use yendor_task::{Nr, args};

use super::{Inquiry, Question, word_at};
use crate::{Cause, Result};

const READ_LDT: u32 = 0;
const PR_SCHED_CORE: u32 = 62;
const ARCH_GET_UNTAG_MASK: u32 = 0x4001;
const KEYCTL_GET_KEYRING_ID: u32 = 0;
const KEYCTL_DESCRIBE: u32 = 6;
const KEYCTL_READ: u32 = 11;
const KEYCTL_SET_REQKEY_KEYRING: u32 = 14;
const UNCHANGED: i32 = -1;
const THREAD_KEYRING: i32 = -1;
const PROCESS_KEYRING: i32 = -2;
const SESSION_KEYRING: i32 = -3;
const USER_KEYRING: i32 = -4;
/// What the session keyring is called of who has none: the user's.
const OF_USER: &[u8] = b"_uid_ses.";

/// What is known of the keyrings around a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keyrings {
    /// The session keyring that it was started with.
    pub session: Option<i32>,
    /// Whether its users are its own, and their keys with them.
    pub own_users: bool,
}

/// The questions.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    ldt: Question,
    cookie: Question,
    untag: Question,
    keyrings: [Question; 2],
    session: [Question; 2],
    user: Option<Question>,
    request: Question,
}

/// Asks. `around`: of a container's.
pub fn ask(inquiry: &mut Inquiry, around: Option<Keyrings>) -> Asked {
    // Without making one.
    let mut id = |which| inquiry.ask(Nr::KEYCTL, args![KEYCTL_GET_KEYRING_ID, which, 0, 0, 0]);
    let (keyrings, session) = ([THREAD_KEYRING, PROCESS_KEYRING].map(&mut id), id(SESSION_KEYRING));
    let describe = args![KEYCTL_DESCRIBE, SESSION_KEYRING, out(64), 64, 0];
    Asked {
        ldt: inquiry.ask(Nr::MODIFY_LDT, args![READ_LDT, out(8), 8]),
        // Of the thread itself.
        cookie: inquiry.ask(Nr::PRCTL, args![PR_SCHED_CORE, 0, 0, 0, out(8)]),
        untag: inquiry.ask(Nr::ARCH_PRCTL, args![ARCH_GET_UNTAG_MASK, out(8)]),
        keyrings,
        session: [session, inquiry.ask(Nr::KEYCTL, describe)],
        user: around
            .filter(|around| around.own_users)
            .map(|_| inquiry.ask(Nr::KEYCTL, args![KEYCTL_READ, USER_KEYRING, 0, 0, 0])),
        request: inquiry.ask(Nr::KEYCTL, args![KEYCTL_SET_REQKEY_KEYRING, UNCHANGED, 0, 0, 0]),
    }
}

/// Refuses what there is. A kernel that does not know the call has no such state.
///
/// # Errors
/// `Unsupported`, by name.
pub fn check(inquiry: &Inquiry, asked: Asked, around: Option<Keyrings>, tid: i32) -> Result<()> {
    let Asked { ldt, cookie, untag, keyrings: [thread, process], session, user, request } = asked;
    let refuse = |what: &str| Err(Cause::unsupported(format!("task {tid} has {what}")));
    if inquiry.value(ldt).is_ok_and(|bytes| bytes > 0) {
        return refuse("a local descriptor table (modify_ldt)");
    }
    if inquiry.bytes(cookie).is_ok_and(|bytes| word_at(bytes, 0) != 0) {
        return refuse("a core scheduling cookie");
    }
    if inquiry.bytes(untag).is_ok_and(|bytes| word_at(bytes, 0) != u64::MAX) {
        return refuse("addresses with tags (ARCH_ENABLE_TAGGED_ADDR)");
    }
    if inquiry.value(thread).is_ok() || inquiry.value(process).is_ok() {
        return refuse("a keyring of its own (keyctl)");
    }
    if inquiry.value(request).is_ok_and(|which| which != 0) {
        return refuse("a keyring for keys that it requests (KEYCTL_SET_REQKEY_KEYRING)");
    }
    if user.is_some_and(|user| inquiry.value(user).is_ok_and(|bytes| bytes > 0)) {
        return refuse("a user with keys (add_key)");
    }
    let Some(started_with) = around.and_then(|around| around.session) else { return Ok(()) };
    let [id, description] = session;
    let own = inquiry.value(id).is_ok_and(|id| id != u64::from(started_with.cast_unsigned()));
    if own && !inquiry.bytes(description).is_ok_and(of_user) {
        return refuse("a session keyring that is not the container's (keyctl, add_key)");
    }
    Ok(())
}

/// Whether a description, `type;uid;gid;permissions;name`, is that of the keyring which every user has.
fn of_user(description: &[u8]) -> bool {
    description.splitn(5, |byte| *byte == b';').nth(4).is_some_and(|name| name.starts_with(OF_USER))
}

#[cfg(test)]
mod tests {
    use super::of_user;

    #[test]
    fn the_keyring_that_everybody_has_is_known_by_its_name() {
        assert!(of_user(b"keyring;0;65534;3f030000;_uid_ses.0\0"));
        assert!(!of_user(b"keyring;0;0;3f130000;mine\0") && !of_user(b"keyring;0;0;3f130000;_ses\0"));
        assert!(!of_user(b"keyring;_uid_ses.0") && !of_user(b""));
    }
}
