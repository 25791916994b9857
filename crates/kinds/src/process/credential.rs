//! Who a thread is: user and group ids, supplementary groups, capabilities, securebits, no_new_privs.
//! *Read from:* /proc/PID/task/TID/status; the securebits by prctl in the task.
//! *Made again by:* setgroups, setresgid, setresuid, prctl, capset in the task, last of all but registers. A nested user namespace is entered
//! between ids and capabilities.
//! *Lost:* nothing. What the container's root may not become is refused by the kernel.

use serde::{Deserialize, Serialize};
use yendor_proc::status::Status;
use yendor_task::script::{Want, bytes};
use yendor_task::{Nr, Script, args};

use super::{Inquiry, Question};
use crate::Result;

/// As seen from inside the container's user namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Real, effective, saved, file system.
    pub uids: [u32; 4],
    /// Likewise.
    pub gids: [u32; 4],
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Inheritable, permitted, effective, bounding, ambient.
    pub capabilities: [u64; 5],
    /// `SECBIT_*`.
    pub securebits: u32,
    /// prctl `PR_SET_NO_NEW_PRIVS`.
    pub no_new_privs: bool,
}

const PR_CAPBSET_DROP: u32 = 24;
const PR_GET_SECUREBITS: u32 = 27;
const PR_SET_SECUREBITS: u32 = 28;
const PR_SET_NO_NEW_PRIVS: u32 = 38;
const PR_CAP_AMBIENT: u32 = 47;
const PR_CAP_AMBIENT_RAISE: u32 = 2;
const PR_CAP_AMBIENT_CLEAR_ALL: u32 = 4;
const SECBIT_NO_SETUID_FIXUP: u32 = 4;
const CAPABILITIES: u32 = 41;
const CLONE_NEWUSER: u32 = 0x1000_0000;

/// Asks for the securebits.
pub fn ask(inquiry: &mut Inquiry) -> Question {
    inquiry.ask(Nr::PRCTL, args![PR_GET_SECUREBITS, 0, 0, 0, 0])
}

/// Reads.
///
/// # Errors
/// The call's own.
pub fn collect(status: &Status, inquiry: &Inquiry, asked: Question) -> Result<Record> {
    Ok(Record {
        uids: status.uid,
        gids: status.gid,
        groups: status.groups.clone(),
        capabilities: [status.cap_inh, status.cap_prm, status.cap_eff, status.cap_bnd, status.cap_amb],
        securebits: u32::try_from(inquiry.value(asked)?).unwrap_or(0),
        no_new_privs: status.no_new_privs,
    })
}

/// Becomes it but for [`lock`]. `now`: what a task of the container has before (container root).
pub fn rebuild(record: &Record, now: &Record, script: &mut Script) {
    rebuild_in(record, now, None, script);
}

/// Likewise, with `users` the task's descriptor of the user namespace that it enters on the way, and closes.
pub fn rebuild_in(record: &Record, now: &Record, users: Option<i32>, script: &mut Script) {
    if let Some(users) = users {
        enter(record, now, users, script);
        return inside(record, script);
    }
    take_groups(record, now, script);
    inherit_beyond(record, now.capabilities, script);
    drop_bounding(record.capabilities[3], now.capabilities[3], script);
    take_ids(record, script);
    settle(record, script);
}

/// Takes the ids, and with them enters a user namespace, `users`, whose descriptor is closed; who enters has all capabilities in there.
pub fn enter(record: &Record, now: &Record, users: i32, script: &mut Script) {
    take_groups(record, now, script);
    take_ids(record, script);
    script.call(Nr::SETNS, args![users, CLONE_NEWUSER]);
    script.call(Nr::CLOSE, args![users]);
}

/// The rest of [`rebuild_in`] for one who is in the user namespace, with all capabilities.
pub fn inside(record: &Record, script: &mut Script) {
    let all = (1 << CAPABILITIES) - 1;
    inherit_beyond(record, [0, all, all, all, 0], script);
    drop_bounding(record.capabilities[3], all, script);
    settle(record, script);
}

fn take_groups(record: &Record, now: &Record, script: &mut Script) {
    let groups = &record.groups;
    // Where the caller has a single id, setgroups is forbidden for ever: then only "as it is" can be had.
    if *groups != now.groups {
        let list: Vec<u8> = groups.iter().flat_map(|g| g.to_ne_bytes()).collect();
        script.call(Nr::SETGROUPS, args![groups.len(), bytes(list)]);
    }
}

fn take_ids(record: &Record, script: &mut Script) {
    let Record { uids, gids, .. } = record;
    script.call(Nr::PRCTL, args![PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0]);
    // Ids must not take capabilities with them while they change.
    script.call(Nr::PRCTL, args![PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, 0, 0, 0]);
    script.call(Nr::SETRESGID, args![gids[0], gids[1], gids[2]]);
    script.call_wanting(Nr::SETFSGID, args![gids[3]], Want::Anything);
    script.call(Nr::SETRESUID, args![uids[0], uids[1], uids[2]]);
    script.call_wanting(Nr::SETFSUID, args![uids[3]], Want::Anything);
}

/// Securebits and capabilities, once the bounding set is what it shall be.
fn settle(record: &Record, script: &mut Script) {
    let Record { capabilities, securebits, .. } = record;
    let [inheritable, permitted, effective, _, ambient] = *capabilities;
    script.call(Nr::PRCTL, args![PR_SET_SECUREBITS, *securebits, 0, 0, 0]);
    capset(permitted, permitted | effective, inheritable, script);
    for cap in 0..CAPABILITIES {
        if ambient & 1 << cap != 0 {
            script.call(Nr::PRCTL, args![PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0]);
        }
    }
    self::capabilities(record, script);
}

/// What is inheritable beyond the bounding set cannot become so once that is dropped. `now`: the sets that the task has.
fn inherit_beyond(record: &Record, now: [u64; 5], script: &mut Script) {
    let [inheritable, _, _, bounding, _] = record.capabilities;
    if inheritable & !bounding != 0 {
        let [_, permitted, effective, ..] = now;
        capset(effective, permitted, inheritable, script);
    }
}

fn drop_bounding(wanted: u64, now: u64, script: &mut Script) {
    for cap in 0..CAPABILITIES {
        if wanted & 1 << cap == 0 && now & 1 << cap != 0 {
            script.call(Nr::PRCTL, args![PR_CAPBSET_DROP, cap, 0, 0, 0]);
        }
    }
}

/// `no_new_privs`, with which security modules refuse changes of labels: after those, and before filters.
pub fn lock(record: &Record, script: &mut Script) {
    if record.no_new_privs {
        script.call(Nr::PRCTL, args![PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0]);
    }
}

/// The three sets that capset sets, as they are in the end.
pub fn capabilities(record: &Record, script: &mut Script) {
    let [inheritable, permitted, effective, ..] = record.capabilities;
    capset(effective, permitted, inheritable, script);
}

/// capset(2), version 3: two words each of effective, permitted, inheritable.
fn capset(effective: u64, permitted: u64, inheritable: u64, script: &mut Script) {
    const VERSION_3: u32 = 0x2008_0522;
    let mut header = VERSION_3.to_ne_bytes().to_vec();
    header.extend_from_slice(&[0; 4]);
    let mut data = Vec::new();
    for shift in [0, 32] {
        for set in [effective, permitted, inheritable] {
            data.extend_from_slice(&u32::try_from(set >> shift & 0xffff_ffff).unwrap_or(0).to_ne_bytes());
        }
    }
    script.call(Nr::CAPSET, args![bytes(header), bytes(data)]);
}
