//! Signals by name and number (signal(7)).

/// Names by number, without `SIG`; the numbers are those of x86 and ARM.
const NAMES: [&str; 32] = [
    "", "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM",
    "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH",
    "IO", "PWR", "SYS",
];
const OTHER_NAMES: [(&str, i32); 4] = [("IOT", 6), ("CLD", 17), ("POLL", 29), ("UNUSED", 31)];
/// As libc counts: two below are its own.
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// `SIGKILL`.
pub const KILL: i32 = 9;
/// `SIGWINCH`.
pub const WINCH: i32 = 28;
/// What a caller in the foreground passes on to the container: HUP INT QUIT USR1 USR2 TERM CONT.
pub const FORWARDED: [i32; 7] = [1, 2, 3, 10, 12, 15, 18];

/// A signal by name (`TERM`, `SIGTERM`, `rtmin+3`) or number.
pub fn parse(text: &str) -> Result<i32, String> {
    let unknown = || format!("{text:?} is no signal");
    if let Ok(number) = text.parse::<i32>() {
        return if (1..=RTMAX).contains(&number) { Ok(number) } else { Err(unknown()) };
    }
    let upper = text.to_ascii_uppercase();
    let plain = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |rest: &str, sign: char| match rest {
        "" => Some(0),
        _ => rest.strip_prefix(sign).and_then(|n| n.parse::<i32>().ok()),
    };
    let real_time = if let Some(rest) = plain.strip_prefix("RTMIN") {
        offset(rest, '+').and_then(|n| RTMIN.checked_add(n))
    } else if let Some(rest) = plain.strip_prefix("RTMAX") {
        offset(rest, '-').and_then(|n| RTMAX.checked_sub(n))
    } else {
        None
    };
    if let Some(number) = real_time {
        return if (RTMIN..=RTMAX).contains(&number) { Ok(number) } else { Err(unknown()) };
    }
    let by_number = (0..).zip(NAMES).map(|(number, name)| (name, number)).filter(|(name, _)| !name.is_empty());
    let found = by_number.chain(OTHER_NAMES).find(|(name, _)| *name == plain);
    found.map(|(_, number)| number).ok_or_else(unknown)
}

/// `SIGTERM`, or the number.
pub fn name(number: i32) -> String {
    let known = usize::try_from(number).ok().and_then(|n| NAMES.get(n)).filter(|n| !n.is_empty());
    known.map_or_else(|| format!("signal {number}"), |name| format!("SIG{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        let cases = [("TERM", 15), ("sigkill", 9), ("SIGUSR2", 12), ("1", 1), ("64", 64), ("RTMIN", 34)];
        for (text, number) in cases.into_iter().chain([("rtmin+2", 36), ("SIGRTMAX-1", 63), ("POLL", 29), ("SYS", 31)])
        {
            assert_eq!(parse(text), Ok(number), "{text}");
        }
        for bad in ["", "SIG", "0", "65", "-9", "RTMIN+31", "RTMAX-31", "RTMIN-1", "NOPE"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert_eq!((name(15).as_str(), name(40).as_str()), ("SIGTERM", "signal 40"));
    }
}
