//! What is said, how loudly, and in which shape.

use std::io::{IsTerminal, Write};
use std::sync::OnceLock;

use serde_json::{Map, Value, json};

static LOUDNESS: OnceLock<i8> = OnceLock::new();

/// How much is said: -1 errors only, 0 as usual, 1 and 2 more.
pub fn set_loudness(verbose: i8, quiet: bool) {
    // Once, at the start; a second call would change nothing.
    let _ = LOUDNESS.set(if quiet { -1 } else { verbose });
}

fn loudness() -> i8 {
    LOUDNESS.get().copied().unwrap_or(0)
}

/// Whether only errors are said.
pub fn is_quiet() -> bool {
    loudness() < 0
}

/// A number of things: `1 task`, `2 tasks`.
pub fn count(n: usize, thing: &str) -> String {
    if n == 1 { format!("1 {thing}") } else { format!("{n} {thing}s") }
}

/// Data, to standard output, for a terminal as [`error`] does it: programs get every byte of a path. A reader that has gone away is no
/// failure of ours.
pub fn out(text: &str) {
    let mut stdout = std::io::stdout().lock();
    let _ = if stdout.is_terminal() { writeln!(stdout, "{}", steady(text)) } else { writeln!(stdout, "{text}") };
}

/// An error; never silenced. It may quote an image, or whoever has read one: what would steer a terminal is spelt.
pub fn error(text: &str) {
    let mut stderr = std::io::stderr().lock();
    let _ = writeln!(stderr, "{}", steady(text));
}

/// Text of several lines that steers no terminal.
fn steady(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && !matches!(c, '\n' | '\t') { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

/// A word on what was done; not with -q.
pub fn note(text: &str) {
    if loudness() >= 0 {
        error(text);
    }
}

/// Details; only with -v.
pub fn detail(text: &str) {
    if loudness() >= 1 {
        error(text);
    }
}

/// Surroundings; only with -vv.
pub fn surroundings(text: impl FnOnce() -> String) {
    if loudness() >= 2 {
        error(&text());
    }
}

/// A table with aligned columns, the first row its head. No cell steers a terminal: names of images and files are others' words.
pub fn table(rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|cell| safe(cell)).collect()).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Bytes for people.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    let mut whole = n;
    let mut rest = 0;
    while whole >= 1024 && unit + 1 < UNITS.len() {
        rest = whole % 1024;
        whole /= 1024;
        unit += 1;
    }
    let name = UNITS.get(unit).copied().unwrap_or_default();
    if unit == 0 || whole >= 100 { format!("{whole} {name}") } else { format!("{whole}.{} {name}", rest * 10 / 1024) }
}

/// Microseconds for people.
pub fn micros(us: u64) -> String {
    match us {
        0..10_000 => format!("{}.{:02} ms", us / 1000, us % 1000 / 10),
        10_000..1_000_000 => format!("{}.{} ms", us / 1000, us % 1000 / 100),
        _ => format!("{}.{:02} s", us / 1_000_000, us % 1_000_000 / 10_000),
    }
}

/// Seconds for people.
pub fn seconds(s: u64) -> String {
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        3600..86_400 => format!("{}h{:02}m", s / 3600, s % 3600 / 60),
        _ => format!("{}d{:02}h", s / 86_400, s % 86_400 / 3600),
    }
}

/// Seconds since 1970 as a date and time of UTC.
pub fn date(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days since 0000-03-01 in eras of 400 years: the leap day is then the last of a year.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = era * 400 + year + next;
    format!("{year}-{month:02}-{day:02} {:02}:{:02}:{:02} UTC", rest / 3600, rest % 3600 / 60, rest % 60)
}

/// `freeze 1.20 ms, collect 3.40 ms`.
pub fn phases(timings: &[(String, u64)]) -> String {
    timings.iter().map(|(name, us)| format!("{name} {}", micros(*us))).collect::<Vec<_>>().join(", ")
}

/// `{"freeze_us": 1200, ...}`.
pub fn phases_json(timings: &[(String, u64)]) -> Map<String, Value> {
    timings.iter().map(|(name, us)| (format!("{name}_us"), json!(us))).collect()
}

/// Text from an image, so that it cannot steer a terminal.
pub fn safe(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\'' | '"' | '\\' => out.push(c),
            _ => out.extend(c.escape_debug()),
        }
    }
    out
}

/// Microseconds since then.
pub fn since(begin: std::time::Instant) -> u64 {
    u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        assert_eq!([0, 1023, 1024, 1536, 200 << 20].map(bytes), ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "200 MiB"]);
        assert_eq!(bytes(u64::MAX), "16777215 TiB");
        assert_eq!([0, 1234, 23_456, 2_345_678].map(micros), ["0.00 ms", "1.23 ms", "23.4 ms", "2.34 s"]);
        let dates = [0, 951_827_696, 1_795_500_000].map(date);
        assert_eq!(dates, ["1970-01-01 00:00:00 UTC", "2000-02-29 12:34:56 UTC", "2026-11-24 06:00:00 UTC"]);
        assert_eq!([5, 65, 3700, 90_000].map(seconds), ["5s", "1m05s", "1h01m", "1d01h"]);
    }

    #[test]
    fn one_thing_is_no_plural() {
        assert_eq!([0, 1, 2].map(|n| count(n, "task")), ["0 tasks", "1 task", "2 tasks"]);
    }

    #[test]
    fn columns_are_aligned() {
        let rows = [vec!["A".into(), "B".into()], vec!["long".into(), "x".into()]];
        assert_eq!(table(&rows), "A     B\nlong  x");
        assert_eq!(table(&[vec!["\x1b]0;x\x07".into(), "a\nb".into()]]), "\\u{1b}]0;x\\u{7}  a\\nb");
        assert_eq!(table(&[]), "");
    }

    #[test]
    fn a_name_cannot_steer_a_terminal() {
        assert_eq!(safe("a\x1b[31m'\n\u{202e}"), "a\\u{1b}[31m'\\n\\u{202e}");
        assert_eq!(steady("a\x1b[31m'\n\té\r\u{9b}"), "a\\u{1b}[31m'\n\té\\r\\u{9b}");
    }
}
