//! What a row of the benchmark is.

/// One row: a command of Yendor and what it is held against.
pub(super) struct Row {
    pub(super) name: &'static str,
    /// Commands before the first round.
    pub(super) setup: &'static [Step],
    /// Commands before each round of the subject.
    pub(super) before: &'static [Step],
    pub(super) subject: Sample,
    /// Commands after each round of the subject, to make the next one possible.
    pub(super) after: &'static [Step],
    pub(super) yardstick: Sample,
    /// Commands after the last round, and when a round failed.
    pub(super) teardown: &'static [Step],
    pub(super) rounds: u32,
    pub(super) cpus: Cpus,
}

/// One step around the measurement.
pub(super) enum Step {
    /// A command that must succeed.
    Do(Run),
    /// The container's log must come to hold this word.
    Await(&'static str),
    /// This file or directory goes away.
    Remove(&'static str),
}

/// A program and its arguments. `{name}` becomes the container's name, `{dir}` the directory of the benchmark,
/// `{xtask}` the path of the yardsticks, `{yendor}` that of Yendor.
pub(super) struct Run {
    pub(super) program: Program,
    pub(super) arguments: &'static [&'static str],
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Program {
    Yendor,
    Yardstick,
    Host(&'static str),
}

/// A measured command and the numbers that are read from it.
pub(super) struct Sample {
    pub(super) run: Run,
    pub(super) readings: &'static [Reading],
}

/// One number, in microseconds.
pub(super) struct Reading {
    pub(super) label: &'static str,
    pub(super) source: Source,
    pub(super) limit: Limit,
}

pub(super) enum Source {
    /// From before the command is started to after it has ended.
    Wall,
    /// The place of a number in the JSON that the command prints.
    Json(&'static str),
}

#[derive(Clone, Copy)]
pub(super) enum Limit {
    None,
    /// Milliseconds.
    AtMost(u32),
    /// Per cent of the yardstick's reading.
    Ratio(u32),
}

/// Where both sides run. A command that does one thing after the other is pinned to one CPU, for less noise;
/// one that copies in bulk may use all that there are.
#[derive(Clone, Copy)]
pub(super) enum Cpus {
    One,
    All,
}

pub(super) const fn yendor(arguments: &'static [&'static str]) -> Run {
    Run { program: Program::Yendor, arguments }
}

pub(super) const fn yardstick(arguments: &'static [&'static str]) -> Run {
    Run { program: Program::Yardstick, arguments }
}

pub(super) const fn host(program: &'static str, arguments: &'static [&'static str]) -> Run {
    Run { program: Program::Host(program), arguments }
}

pub(super) const fn at_most(label: &'static str, source: Source, milliseconds: u32) -> Reading {
    Reading { label, source, limit: Limit::AtMost(milliseconds) }
}

pub(super) const fn plain(label: &'static str, source: Source) -> Reading {
    Reading { label, source, limit: Limit::None }
}
