//! timerfd_create(2).
//! *Read from:* timerfd_gettime, then fdinfo.
//! *Made again by:* timerfd_settime; the unread expirations by `TFD_IOC_SET_TICKS`.
//! *Lost:* that the clock was set while `TFD_TIMER_CANCEL_ON_SET` waited for it and nobody had read that.

use std::os::fd::{AsFd, OwnedFd};

use rustix::time::{ClockId, clock_gettime, timerfd_gettime};
use serde::{Deserialize, Serialize};
use yendor_proc::fdinfo::Detail;
use yendor_sys::event;

use super::{Entry, FileKind, Gather, Seen, Workshop};
use crate::{Cause, Named, Result};

const TFD_TIMER_ABSTIME: u32 = 1;
const BILLION: i128 = 1_000_000_000;

/// A timerfd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// `CLOCK_*`.
    pub clock: i32,
    /// `TFD_TIMER_*` of the last timerfd_settime.
    pub settime_flags: u32,
    /// When it expires next, in seconds and nanoseconds: wall clock for an absolute timer on a wall clock, else the
    /// container's own `CLOCK_MONOTONIC` or `CLOCK_BOOTTIME`. None when it is not armed.
    pub expiry: Option<(i64, u32)>,
    /// Its period in seconds and nanoseconds.
    pub interval: (u64, u64),
    /// Expirations that nobody has read.
    pub ticks: u64,
}

/// How far the container's clocks are ahead of our own, in nanoseconds (time_namespaces(7)).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Clocks {
    /// `CLOCK_MONOTONIC`.
    pub monotonic: i64,
    /// `CLOCK_BOOTTIME`.
    pub boottime: i64,
}

impl FileKind for Record {
    const NAME: &'static str = "timerfd";

    fn claims(seen: &Seen) -> bool {
        matches!(seen.info.detail, Detail::Timerfd(_))
    }

    fn collect(seen: &Seen, gather: &mut Gather<'_>) -> Result<Self> {
        // Brings the count of a periodic timer up to date, as a read would; fdinfo alone shows it as not armed.
        let now = timerfd_gettime(&seen.fd).named("timerfd_gettime", || seen.link.to_string())?;
        let Detail::Timerfd(info) = gather.info_of(seen.fd.as_fd())?.detail else {
            return Err(Cause::unsupported(format!("{}: no timerfd", seen.link)));
        };
        let left = nanoseconds(now.it_value.tv_sec, now.it_value.tv_nsec);
        let (id, ahead) = base(info.clock, info.settime_flags, gather.clocks)?;
        let expiry = if left == 0 { None } else { Some(split(read(id) + i128::from(ahead) + left)) };
        Ok(Record {
            clock: info.clock,
            settime_flags: info.settime_flags,
            expiry,
            interval: info.interval,
            ticks: info.ticks,
        })
    }

    fn rebuild(&self, _entry: &Entry, workshop: &mut Workshop<'_>) -> Result<OwnedFd> {
        let Record { clock, settime_flags, expiry, interval, ticks } = self;
        let (id, ahead) = base(*clock, *settime_flags, workshop.clocks).map_err(Cause::claimed)?;
        let fd = event::timerfd(*clock)?;
        let value = match expiry {
            None => (0, 0),
            Some((seconds, nanos)) => {
                let at = nanoseconds(*seconds, i64::from(*nanos)) - i128::from(ahead);
                let relative = settime_flags & TFD_TIMER_ABSTIME == 0;
                // Zero would disarm it: what is due fires at once. A relative timer is never early.
                let value = split(if relative { at - read(id) } else { at }.max(1));
                (value.0, i64::from(value.1))
            }
        };
        let number =
            |n: u64| i64::try_from(n).map_err(|_| Cause::corrupt(format!("a timerfd with the period {interval:?}")));
        event::timerfd_settime(&fd, *settime_flags, value, (number(interval.0)?, number(interval.1)?))?;
        if *ticks > 0 {
            event::timerfd_set_ticks(&fd, *ticks)?;
        }
        Ok(fd)
    }
}

/// The clock that a timer's expiry is told in, and how far the container's is ahead of ours.
fn base(clock: i32, flags: u32, clocks: Clocks) -> Result<(ClockId, i64)> {
    const REALTIME: i32 = 0;
    const MONOTONIC: i32 = 1;
    const BOOTTIME: i32 = 7;
    const REALTIME_ALARM: i32 = 8;
    const BOOTTIME_ALARM: i32 = 9;
    match clock {
        REALTIME if flags & TFD_TIMER_ABSTIME != 0 => Ok((ClockId::Realtime, 0)),
        REALTIME_ALARM => Ok((ClockId::Realtime, 0)),
        // A relative timer is not moved when the wall clock is set.
        REALTIME | MONOTONIC => Ok((ClockId::Monotonic, clocks.monotonic)),
        BOOTTIME | BOOTTIME_ALARM => Ok((ClockId::Boottime, clocks.boottime)),
        other => Err(Cause::unsupported(format!("a timerfd on clock {other}"))),
    }
}

fn read(id: ClockId) -> i128 {
    let now = clock_gettime(id);
    nanoseconds(now.tv_sec, now.tv_nsec)
}

fn nanoseconds(seconds: i64, nanos: i64) -> i128 {
    i128::from(seconds) * BILLION + i128::from(nanos)
}

fn split(nanos: i128) -> (i64, u32) {
    let seconds = i64::try_from(nanos.div_euclid(BILLION)).unwrap_or(i64::MAX);
    (seconds, u32::try_from(nanos.rem_euclid(BILLION)).unwrap_or(0))
}
