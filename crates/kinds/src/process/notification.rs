//! That a process is to be notified of the next message in an empty POSIX message queue (mq_notify(3)).
//! *Read from:* the queue's file, all but the value that comes with the signal. That only the signal tells: a message is sent and taken back,
//! the process takes the signal and has itself notified again, in one go that goes to its end whatever becomes of us.
//! *Made again by:* mq_notify by the process, last of all.
//! *Lost:* that the process has executed another program since, after which the kernel sends no signal: it does now. Refused: `SIGEV_THREAD`, whose cookie
//! only the C library's thread gets to see; a queue that is not empty, where nobody would be notified again of what is put back; a signal of which one
//! waits already, or that stops, continues or ends a process.

use serde::{Deserialize, Serialize};
use yendor_image::FdNum;
use yendor_task::script::{Want, bytes};
use yendor_task::{Nr, Script, args};

use super::{half_at, word_at, words};
use crate::{Cause, Result};

/// One notification.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// A descriptor of the queue.
    pub number: FdNum,
    /// How it is told; none: not at all (`SIGEV_NONE`), but nobody else can be.
    pub signal: Option<Signal>,
}

/// The signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signal {
    /// Its number; 0: none is sent.
    pub number: i32,
    /// The value that comes with it.
    pub value: u64,
}

const SIGEV_SIGNAL: i32 = 0;
const SIGEV_NONE: i32 = 1;
/// `si_code` of the signal (sigaction(2)).
const SI_MESGQ: i32 = -3;
/// Bytes of a `siginfo_t`, and where in it the value is.
const SIGINFO: usize = 128;
const SI_VALUE: usize = 24;
/// Seconds that the signal may take: if it does not come, all goes on.
const PATIENCE: u64 = 5;

/// What a process calls that tells the value.
pub const CALLS: [Nr; 3] = [Nr::RT_SIGTIMEDWAIT, Nr::FUTEX, Nr::MQ_NOTIFY];

/// Whether such a signal can be taken and nobody notices.
#[must_use]
pub fn is_harmless(signal: i32) -> bool {
    const ACTING: [i32; 6] = [9, 18, 19, 20, 21, 22];
    (1..=64).contains(&signal) && !ACTING.contains(&signal)
}

/// The process takes the signal and has itself notified again with its value. `at`: where [`SIGINFO`] bytes and more are free for that. The value
/// in a `siginfo_t` is followed by zeros: it becomes a `struct sigevent` by the signal's number.
#[must_use]
pub fn take(number: FdNum, signal: i32, at: u64) -> Script {
    const WAKE_OP_PRIVATE: u32 = 5 | 128;
    let mut script = Script::new();
    let mask = 1_u64.checked_shl(u32::try_from(signal - 1).unwrap_or(64)).unwrap_or(0);
    let (event, end) = (at + SI_VALUE as u64, at + SIGINFO as u64);
    let patience = bytes(words(&[PATIENCE, 0]));
    script.call_wanting(Nr::RT_SIGTIMEDWAIT, args![bytes(mask.to_ne_bytes()), at, patience, 8], Want::Anything);
    // FUTEX_OP_SET of a number below 4096 wakes nobody here, and stores it.
    let store = u32::try_from(signal).unwrap_or(0) << 12;
    script.call_wanting(Nr::FUTEX, args![end, WAKE_OP_PRIVATE, 0, 0, event + 8, store], Want::Anything);
    script.call_wanting(Nr::MQ_NOTIFY, args![number.0, event], Want::Anything);
    script
}

/// The value, from what [`take`] has left; `again`: what its last call returned.
///
/// # Errors
/// A signal that did not come.
pub fn taken(signal: i32, left: &[u8; SIGINFO], again: i64) -> Result<Signal> {
    let came = half_at(left, 0).cast_signed() == signal && half_at(left, 8).cast_signed() == SI_MESGQ;
    if came && again == 0 {
        return Ok(Signal { number: signal, value: word_at(left, SI_VALUE) });
    }
    let what = "a POSIX message queue that notifies (mq_notify) by signal";
    Err(Cause::unsupported(format!("{what} {signal}, which does not come: mq_notify says {again}")))
}

/// Has the process notified.
pub fn rebuild(list: &[Record], script: &mut Script) {
    for Record { number, signal } in list {
        script.call(Nr::MQ_NOTIFY, args![number.0, bytes(event(signal.as_ref()))]);
    }
}

/// `struct sigevent`: value, signal, notify.
fn event(signal: Option<&Signal>) -> Vec<u8> {
    let (value, number, notify) = signal.map_or((0, 0, SIGEV_NONE), |s| (s.value, s.number, SIGEV_SIGNAL));
    let mut event = words(&[value]);
    event.extend_from_slice(&number.to_ne_bytes());
    event.extend_from_slice(&notify.to_ne_bytes());
    event.resize(64, 0);
    event
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_its_own_signal_tells_the_value() {
        let mut left = [0; SIGINFO];
        left[..4].copy_from_slice(&10_i32.to_ne_bytes());
        left[8..12].copy_from_slice(&SI_MESGQ.to_ne_bytes());
        left[SI_VALUE..SI_VALUE + 8].copy_from_slice(&u64::MAX.to_ne_bytes());
        assert_eq!(taken(10, &left, 0).unwrap(), Signal { number: 10, value: u64::MAX });
        assert!(taken(12, &left, 0).is_err() && taken(10, &left, -16).is_err());
        left[8] = 0;
        assert!(taken(10, &left, 0).is_err());
    }

    #[test]
    fn no_signal_that_does_something_by_itself() {
        assert!([1, 10, 34, 64].into_iter().all(is_harmless));
        assert!(![0, 9, 18, 19, 20, 65, -1].into_iter().any(is_harmless));
    }
}
