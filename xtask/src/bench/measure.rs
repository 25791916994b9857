//! Runs a row: its set-up, rounds in turn with the yardstick, and what is cleared away.

use super::row::{Cpus, Limit, Program, Reading, Row, Run, Sample, Source, Step};
use crate::{Outcome, workspace};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use std::{fs, io, thread};

/// How long a container may take to say that it is ready.
const PATIENCE: Duration = Duration::from_secs(60);

/// One line of the table. Times are medians, in microseconds.
pub(super) struct Line {
    pub(super) row: &'static str,
    pub(super) label: &'static str,
    pub(super) took: f64,
    pub(super) yardstick: &'static str,
    pub(super) yardstick_took: f64,
    pub(super) limit: Limit,
}

/// The built programs and a place for images and state.
pub(super) struct Bench {
    release: PathBuf,
    directory: PathBuf,
    state: PathBuf,
    name: String,
}

impl Bench {
    pub(super) fn new() -> Outcome<Self> {
        let target = workspace::target_directory()?;
        let name = format!("bench-{}", std::process::id());
        let directory = target.join(&name);
        // Control sockets live in the state, and the path of a socket is short (unix(7): 108 bytes).
        let state = std::env::temp_dir().join(format!("yendor-{name}"));
        fs::create_dir_all(&directory)?;
        fs::create_dir_all(&state)?;
        Ok(Self { release: target.join("release"), directory, state, name })
    }

    /// Measures one row; the first round, with cold caches, does not count.
    pub(super) fn row(&self, row: &Row, rounds: u32) -> Outcome<Vec<Line>> {
        let outcome = self.rounds(row, rounds);
        let cleared = self.steps(row.teardown);
        let lines = outcome?;
        cleared?;
        Ok(lines)
    }

    fn rounds(&self, row: &Row, rounds: u32) -> Outcome<Vec<Line>> {
        self.steps(row.setup)?;
        let mut subject = vec![Vec::new(); row.subject.readings.len()];
        let mut yardstick = vec![Vec::new(); row.yardstick.readings.len()];
        for round in 0..=rounds {
            self.steps(row.before)?;
            let ours = self.sample(&row.subject, row.cpus)?;
            self.steps(row.after)?;
            let theirs = self.sample(&row.yardstick, row.cpus)?;
            if round > 0 {
                keep(&mut subject, &ours);
                keep(&mut yardstick, &theirs);
            }
        }
        let mut lines = Vec::new();
        for (reading, took) in row.subject.readings.iter().zip(&mut subject) {
            // A limit is held against the first yardstick of a row; the others are printed beside it.
            let mut limit = reading.limit;
            for (against, yardstick_took) in row.yardstick.readings.iter().zip(&mut yardstick) {
                lines.push(Line {
                    row: row.name,
                    label: reading.label,
                    took: median(took)?,
                    yardstick: against.label,
                    yardstick_took: median(yardstick_took)?,
                    limit: std::mem::replace(&mut limit, Limit::None),
                });
            }
        }
        Ok(lines)
    }

    fn sample(&self, sample: &Sample, cpus: Cpus) -> Outcome<Vec<f64>> {
        let begin = Instant::now();
        let output = self.output(&sample.run, cpus)?;
        let wall = begin.elapsed();
        sample.readings.iter().map(|reading| read(reading, wall, &output)).collect()
    }

    fn steps(&self, steps: &[Step]) -> Outcome {
        steps.iter().try_for_each(|step| match step {
            Step::Do(run) => self.output(run, Cpus::All).map(drop),
            Step::Await(word) => self.wait_for(word),
            Step::Remove(path) => remove(&PathBuf::from(self.filled(path))),
        })
    }

    fn wait_for(&self, word: &str) -> Outcome {
        let logs = Run { program: Program::Yendor, arguments: &["logs", "{name}"] };
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE {
            let output = self.output(&logs, Cpus::All)?;
            if String::from_utf8_lossy(&output.stdout).contains(word) {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(50));
        }
        Err(format!("the container did not say `{word}` within {} s", PATIENCE.as_secs()).into())
    }

    fn output(&self, run: &Run, cpus: Cpus) -> Outcome<Output> {
        let mut command = match cpus {
            Cpus::All => Command::new(self.path_of(run.program)),
            Cpus::One => {
                let mut command = Command::new("taskset");
                command.args(["--cpu-list", "0"]).arg(self.path_of(run.program));
                command
            }
        };
        if run.program == Program::Yardstick {
            command.arg("yardstick");
        }
        command.args(run.arguments.iter().map(|argument| self.filled(argument)));
        command.env("YENDOR_ROOT", &self.state).stdin(Stdio::null());
        let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
        if output.status.success() {
            return Ok(output);
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(format!("{command:?}: {}: {}", output.status, said.trim()).into())
    }

    fn path_of(&self, program: Program) -> PathBuf {
        match program {
            Program::Yendor => self.release.join("yendor"),
            Program::Yardstick => self.release.join("xtask"),
            Program::Host(name) => name.into(),
        }
    }

    fn filled(&self, argument: &str) -> String {
        let [xtask, yendor] = ["xtask", "yendor"].map(|name| self.release.join(name));
        argument
            .replace("{yendor}", &yendor.to_string_lossy())
            .replace("{name}", &self.name)
            .replace("{dir}", &self.directory.to_string_lossy())
            .replace("{xtask}", &xtask.to_string_lossy())
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        for directory in [&self.directory, &self.state] {
            if let Err(error) = fs::remove_dir_all(directory) {
                eprintln!("remove {}: {error}", directory.display());
            }
        }
    }
}

fn remove(path: &PathBuf) -> Outcome {
    let outcome = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match outcome {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(format!("remove {}: {error}", path.display()).into())
        }
        _ => Ok(()),
    }
}

fn read(reading: &Reading, wall: Duration, output: &Output) -> Outcome<f64> {
    let Source::Json(pointer) = reading.source else {
        return Ok(wall.as_secs_f64() * 1e6);
    };
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let number = answer.pointer(pointer).and_then(serde_json::Value::as_f64);
    number.ok_or_else(|| format!("no number at {pointer} in {answer}").into())
}

fn keep(kept: &mut [Vec<f64>], readings: &[f64]) {
    for (kept, reading) in kept.iter_mut().zip(readings) {
        kept.push(*reading);
    }
}

fn median(values: &mut [f64]) -> Outcome<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.get(values.len() / 2).ok_or("no rounds")?;
    let below = values.get((values.len() - 1) / 2).ok_or("no rounds")?;
    Ok((middle + below) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() -> Outcome {
        assert!((median(&mut [9.0, 1.0, 5.0])? - 5.0).abs() < 1e-9);
        assert!((median(&mut [4.0, 1.0, 2.0, 9.0])? - 3.0).abs() < 1e-9);
        assert!((median(&mut [7.0])? - 7.0).abs() < 1e-9);
        Ok(())
    }

    #[test]
    fn a_reading_that_is_not_there_is_an_error() -> Outcome {
        let reading = Reading { label: "a", source: Source::Json("/phases/a"), limit: Limit::None };
        let answer = |command: &str| Command::new("echo").arg(command).output();
        let there = read(&reading, Duration::ZERO, &answer("{\"phases\":{\"a\":17}}")?)?;
        assert!((there - 17.0).abs() < 1e-9);
        assert!(read(&reading, Duration::ZERO, &answer("{\"phases\":{}}")?).is_err());
        assert!(read(&reading, Duration::ZERO, &answer("nothing")?).is_err());
        Ok(())
    }
}
