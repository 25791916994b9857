//! A System V message queue.
//! *Read from:* /proc/sysvipc/msg; `IPC_STAT`; messages by msgrcv with `MSG_COPY`, which leaves them where they are.
//! *Made again by:* msgget, msgsnd of every message in order, `IPC_SET`.
//! *Lost:* times and pids of the last sender and receiver; LSM labels of messages.

use std::os::fd::BorrowedFd;

use serde::{Deserialize, Serialize};
use yendor_image::Bytes;
use yendor_proc::sysvipc;
use yendor_sys::ipc;

use super::Perm;
use crate::{Cause, Result};

/// A queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Key, id, rights.
    pub perm: Perm,
    /// How many bytes it takes.
    pub limit: u64,
    /// What is in it, the oldest first.
    pub messages: Vec<Message>,
}

/// A message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// Its type, at least 1.
    pub kind: i64,
    /// Its text.
    pub body: Bytes,
}

pub(super) fn collect(row: sysvipc::Msg) -> Result<Record> {
    let sysvipc::Msg {
        perm,
        bytes,
        count,
        last_sender: _,
        last_receiver: _,
        send_time: _,
        receive_time: _,
        change_time: _,
        leftover,
    } = row;
    let shown = || format!("message queue {}", perm.id);
    if !leftover.is_empty() {
        return Err(Cause::unsupported(format!("{}: unknown columns in /proc/sysvipc/msg", shown())));
    }
    let most = usize::try_from(bytes).map_err(|_| super::changed(shown()))?;
    let mut messages = Vec::new();
    let mut total = 0;
    for index in 0..u32::try_from(count).map_err(|_| super::changed(shown()))? {
        let (kind, body) = ipc::msg_peek(perm.id, index, most)?.ok_or_else(|| super::changed(shown()))?;
        total += body.len();
        messages.push(Message { kind, body: Bytes(body) });
    }
    if total != most {
        return Err(super::changed(shown()));
    }
    Ok(Record { perm: Perm::collect(&perm), limit: ipc::msg_limit(perm.id)?, messages })
}

impl Record {
    /// What the queue must take so that its messages fit, which may be more than it takes of new ones: the kernel counts
    /// bytes, and messages too.
    pub(super) fn room(&self) -> u64 {
        let bytes: u64 = self.messages.iter().map(|m| m.body.0.len() as u64).sum();
        self.limit.max(bytes).max(self.messages.len() as u64)
    }
}

pub(super) fn rebuild(record: &Record, proc: BorrowedFd<'_>) -> Result<()> {
    let Record { perm, limit, messages } = record;
    perm.make(proc, "msg", || ipc::msg_create(perm.key, perm.mode))?;
    ipc::msg_set(perm.id, perm.rights(), record.room())?;
    for Message { kind, body } in messages {
        ipc::msg_send(perm.id, *kind, &body.0)?;
    }
    Ok(ipc::msg_set(perm.id, perm.rights(), *limit)?)
}
