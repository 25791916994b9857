//! What a thread's user space has registered with the kernel: restartable sequences, the robust futex list, the word that
//! is cleared when the thread exits.
//! *Read from:* `PTRACE_GET_RSEQ_CONFIGURATION`, get_robust_list, `PR_GET_TID_ADDRESS` in the task.
//! *Made again by:* rseq, set_robust_list, set_tid_address.
//! *Lost:* nothing; an interrupted critical section starts at its abort handler (see regs).

use serde::{Deserialize, Serialize};
use yendor_sys::ptrace;
use yendor_task::script::out;
use yendor_task::{Nr, Script, args};

use super::{Inquiry, Question};
use crate::Result;

/// The registrations; address 0 means none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Address, size and signature of `struct rseq`.
    pub rseq: (u64, u32, u32),
    /// Head and length of the robust list.
    pub robust: (u64, u64),
    /// `clear_child_tid`.
    pub tid_address: u64,
}

const PR_GET_TID_ADDRESS: u32 = 40;

/// Asks for the word's address.
pub fn ask(inquiry: &mut Inquiry) -> Question {
    inquiry.ask(Nr::PRCTL, args![PR_GET_TID_ADDRESS, out(8), 0, 0, 0])
}

/// Reads everything.
///
/// # Errors
/// The kernel's.
pub fn collect(tid: i32, conf: &ptrace::Rseq, inquiry: &Inquiry, asked: Question) -> Result<Record> {
    Ok(Record {
        rseq: (conf.area, conf.size, conf.signature),
        robust: ptrace::robust_list(tid)?,
        tid_address: inquiry.word(asked, 0)?,
    })
}

/// Registers again.
pub fn rebuild(record: &Record, script: &mut Script) {
    let Record { rseq: (area, size, signature), robust: (head, len), tid_address } = record;
    if *area != 0 {
        script.call(Nr::RSEQ, args![*area, *size, 0, *signature]);
    }
    if *head != 0 {
        script.call(Nr::SET_ROBUST_LIST, args![*head, *len]);
    }
    script.call(Nr::SET_TID_ADDRESS, args![*tid_address]);
}
