//! State of threads that cannot be made again, asked for so that it is not lost in silence.
//! *Read from:* modify_ldt, `PR_SCHED_CORE_GET` and keyctl in the task.
//! *Made again by:* nothing: each refuses the checkpoint.
//! *Lost:* the session keyring, which becomes the restorer's; no keyring of a process or thread is taken.

use yendor_task::script::out;
use yendor_task::{Nr, args};

use super::{Inquiry, Question, word_at};
use crate::{Cause, Result};

const READ_LDT: u32 = 0;
const PR_SCHED_CORE: u32 = 62;
const KEYCTL_GET_KEYRING_ID: u32 = 0;
const THREAD_KEYRING: i32 = -1;
const PROCESS_KEYRING: i32 = -2;

/// The questions.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    ldt: Question,
    cookie: Question,
    keyrings: [Question; 2],
}

/// Asks.
pub fn ask(inquiry: &mut Inquiry) -> Asked {
    Asked {
        ldt: inquiry.ask(Nr::MODIFY_LDT, args![READ_LDT, out(8), 8]),
        // Of the thread itself.
        cookie: inquiry.ask(Nr::PRCTL, args![PR_SCHED_CORE, 0, 0, 0, out(8)]),
        keyrings: [THREAD_KEYRING, PROCESS_KEYRING].map(|which| {
            // Without making one.
            inquiry.ask(Nr::KEYCTL, args![KEYCTL_GET_KEYRING_ID, which, 0, 0, 0])
        }),
    }
}

/// Refuses what there is. A kernel that does not know the call has no such state.
///
/// # Errors
/// `Unsupported`, by name.
pub fn check(inquiry: &Inquiry, asked: Asked, tid: i32) -> Result<()> {
    let Asked { ldt, cookie, keyrings: [thread, process] } = asked;
    let refuse = |what: &str| Err(Cause::unsupported(format!("task {tid} has {what}")));
    if inquiry.value(ldt).is_ok_and(|bytes| bytes > 0) {
        return refuse("a local descriptor table (modify_ldt)");
    }
    if inquiry.bytes(cookie).is_ok_and(|bytes| word_at(bytes, 0) != 0) {
        return refuse("a core scheduling cookie");
    }
    if inquiry.value(thread).is_ok() || inquiry.value(process).is_ok() {
        return refuse("a keyring of its own (keyctl)");
    }
    Ok(())
}
