//! POSIX timers of a process.
//!
//! Source: proc_pid_timers(5); `fs/proc/base.c`, `show_timer`. Needs `CONFIG_CHECKPOINT_RESTORE`.

use crate::field::{Line, Result, lines};

const FILE: &str = "timers";

/// How the process is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notify {
    /// `SIGEV_SIGNAL`.
    Signal,
    /// `SIGEV_NONE`.
    None,
    /// `SIGEV_THREAD`.
    Thread,
}

/// One timer. What remains until it fires is not printed: ask with timer_gettime(2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timer {
    /// Id, as in timer_create(2).
    pub id: i32,
    /// Signal number; 0 with [`Notify::None`].
    pub signal: i32,
    /// `sigev_value`.
    pub value: u64,
    /// How.
    pub notify: Notify,
    /// `SIGEV_THREAD_ID`: `target` is a thread.
    pub to_thread: bool,
    /// Process or thread that is told, in the reader's pid namespace; 0 if it has gone.
    pub target: i32,
    /// `CLOCK_*`; negative for CPU clocks.
    pub clock: i32,
    /// Lines after these four, up to the next timer, as printed.
    pub leftover: Vec<Vec<u8>>,
}

/// Parses `/proc/PID/timers`; newest timer first.
///
/// # Errors
/// A timer without its four lines, or text that is cut off.
pub fn parse(text: &[u8]) -> Result<Vec<Timer>> {
    let mut out: Vec<Timer> = Vec::new();
    let mut rest = lines(FILE, text)?.into_iter();
    while let Some(mut line) = rest.next() {
        if line.starts("ID:") {
            line.tag("ID:")?;
            let id = only(&mut line, "ID")?;
            let mut next = |what| rest.next().ok_or_else(|| line.bad(what));
            out.push(timer(id, [next("signal")?, next("notify")?, next("ClockID")?])?);
        } else {
            let last = out.last_mut().ok_or_else(|| line.bad("ID"))?;
            last.leftover.push(line.rest().to_vec());
        }
    }
    Ok(out)
}

fn timer(id: i32, [mut signal, mut how, mut clock]: [Line<'_>; 3]) -> Result<Timer> {
    signal.tag("signal:")?;
    let number = signal.number_until(b'/', 10, "signal")?;
    let value = signal.hex("signal")?;
    end(&mut signal, "signal")?;
    how.tag("notify:")?;
    how.skip_blanks();
    let notify = match how.until(b'/', "notify")? {
        b"signal" => Notify::Signal,
        b"none" => Notify::None,
        b"thread" => Notify::Thread,
        _ => return Err(how.bad("notify")),
    };
    let to_thread = match how.until(b'.', "notify")? {
        b"tid" => true,
        b"pid" => false,
        _ => return Err(how.bad("notify")),
    };
    let target = only(&mut how, "notify")?;
    clock.tag("ClockID:")?;
    let clock = only(&mut clock, "ClockID")?;
    Ok(Timer { id, signal: number, value, notify, to_thread, target, clock, leftover: Vec::new() })
}

fn only(line: &mut Line<'_>, what: &'static str) -> Result<i32> {
    let value = line.dec(what)?;
    end(line, what)?;
    Ok(value)
}

fn end(line: &mut Line<'_>, what: &'static str) -> Result<()> {
    if line.word().is_some() { Err(line.bad(what)) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::{Notify, Timer, parse};
    use crate::hostile;

    const CAPTURED: &[u8] = b"\
ID: 3\nsignal: 64/ffffffffffffffff\nnotify: signal/tid.6036\nClockID: 7
ID: 2\nsignal: 34/0000000000000007\nnotify: signal/pid.6036\nClockID: -6
ID: 1\nsignal: 0/0000000000000000\nnotify: none/pid.6036\nClockID: 0
ID: 0\nsignal: 10/0000deadbeefcafe\nnotify: signal/pid.6036\nClockID: 1\n";

    #[test]
    fn captured() {
        let timers = parse(CAPTURED).unwrap();
        assert_eq!(timers.len(), 4);
        let first = Timer {
            id: 3,
            signal: 64,
            value: u64::MAX,
            notify: Notify::Signal,
            to_thread: true,
            target: 6036,
            clock: 7,
            leftover: Vec::new(),
        };
        assert_eq!(timers[0], first);
        assert_eq!((timers[1].clock, timers[1].to_thread), (-6, false));
        assert_eq!((timers[2].notify, timers[2].signal), (Notify::None, 0));
        assert_eq!(timers[3].value, 0xdead_beef_cafe);
    }

    #[test]
    fn odd_lines() {
        let mut more = CAPTURED.to_vec();
        more.extend_from_slice(b"Overrun: 3\n");
        assert_eq!(parse(&more).unwrap()[3].leftover, [b"Overrun: 3"]);
        assert_eq!(parse(b"ID: 1\nsignal: 1/0\n").unwrap_err().what, "notify");
        assert!(parse(b"signal: 1/0\n").is_err());
        assert_eq!(parse(b"").unwrap(), []);
    }

    #[test]
    fn hostile_input() {
        hostile::survives(CAPTURED, parse);
        hostile::refuses_cuts(CAPTURED, parse);
    }
}
