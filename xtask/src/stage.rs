//! Stages of a chore: data, one runner, a summary with the time each took.

use crate::failed::Failed;
use crate::{Outcome, workspace};
use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, IsTerminal, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// One stage.
pub struct Stage {
    /// The word that it is asked for and summed up under.
    pub name: &'static str,
    /// What it is for.
    pub why: &'static str,
    /// What it does.
    pub act: Act,
}

/// What a stage does.
pub enum Act {
    /// `cargo` with these arguments, in the top directory.
    Cargo(&'static [&'static str]),
    /// A function of ours.
    Inside(fn(&mut Session) -> Outcome),
    /// A function of ours that runs beside all later stages, and says what it skips.
    Beside(fn() -> Outcome<Vec<String>>),
}

/// How a line of a test begins, on its own standard error, that says what it skips.
const SKIPPED: &str = "skipped: ";

/// From so many of one sort on, what is skipped is counted.
const MANY: usize = 4;

/// What one stage leaves for the next ones, and for the summary.
#[derive(Default)]
pub struct Session {
    environment: Vec<(&'static str, OsString)>,
    skipped: Vec<String>,
    failed: Vec<Failed>,
}

impl Session {
    /// Sets a variable for the commands of all later stages.
    pub fn export(&mut self, name: &'static str, value: impl Into<OsString>) {
        self.environment.push((name, value.into()));
    }

    /// Notes for the summary what is not done, and why.
    pub fn skip(&mut self, what: impl Into<String>) {
        self.skipped.push(what.into());
    }

    /// Runs the stages in order, each even when one before it failed, so that one run shows everything.
    ///
    /// # Errors
    /// Names the stages that failed.
    pub fn run(mut self, stages: &[&Stage]) -> Outcome {
        let begin = Instant::now();
        let ended = std::thread::scope(|scope| {
            let (mut ended, mut beside) = (Vec::new(), Vec::new());
            for stage in stages {
                println!("\n== {}: {}", stage.name, stage.why);
                let begin = Instant::now();
                let outcome = match stage.act {
                    Act::Cargo(arguments) => self.cargo(arguments),
                    Act::Inside(function) => function(&mut self),
                    Act::Beside(function) => {
                        // Errors are text on their way between threads.
                        let work = move || (function().map_err(|error| error.to_string()), begin.elapsed());
                        beside.push((stage.name, scope.spawn(work)));
                        continue;
                    }
                };
                ended.push(Ended::new(stage.name, outcome.map_err(|error| error.to_string()), begin.elapsed()));
            }
            for (name, thread) in beside {
                let (outcome, took) = thread.join().unwrap_or_else(|_| (Err("it panicked".into()), begin.elapsed()));
                let outcome = outcome.map(|skipped| self.skipped.extend(skipped));
                ended.push(Ended::new(name, outcome, took));
            }
            ended
        });
        println!("\n== summary");
        self.print_skipped();
        for tests in &self.failed {
            tests.print();
        }
        println!();
        for stage in &ended {
            println!("{}", line(stage.name, stage.took, if stage.failed { "FAILED" } else { "ok" }));
        }
        println!("{}", line("total", begin.elapsed(), ""));
        let failed: Vec<&str> = ended.iter().filter(|stage| stage.failed).map(|stage| stage.name).collect();
        if failed.is_empty() { Ok(()) } else { Err(format!("failed: {}", failed.join(", ")).into()) }
    }

    fn cargo(&mut self, arguments: &[&str]) -> Outcome {
        let mut command = Command::new(workspace::cargo());
        command
            .args(arguments)
            .envs(self.environment.iter().cloned())
            .current_dir(workspace::root())
            .stdin(Stdio::null());
        let status = if arguments.first() == Some(&"test") {
            // Piped, it would have no colours.
            if io::stderr().is_terminal() {
                command.env("CARGO_TERM_COLOR", "always");
            }
            let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
            let said = child.stdout.take().ok_or("no output of cargo")?;
            let errors = child.stderr.take().ok_or("no errors of cargo")?;
            let (failed, skipped) = std::thread::scope(|scope| {
                let skipped = scope.spawn(|| pass_on(BufReader::new(errors), io::stderr()));
                let failed = Failed::listen(BufReader::new(said), io::stdout());
                (failed, skipped.join())
            });
            self.failed.push(failed?);
            self.skipped.extend(skipped.map_err(|_| "a thread of the session panicked")??);
            child.wait()?
        } else {
            command.status()?
        };
        if status.success() { Ok(()) } else { Err(format!("cargo {}: {status}", arguments.join(" ")).into()) }
    }

    fn print_skipped(&self) {
        if self.skipped.is_empty() {
            println!("nothing was skipped");
        }
        for what in summed_up(&self.skipped) {
            println!("skipped  {what}");
        }
    }
}

/// A stage that has been run.
struct Ended {
    name: &'static str,
    took: Duration,
    failed: bool,
}

impl Ended {
    fn new(name: &'static str, outcome: Result<(), String>, took: Duration) -> Self {
        if let Err(error) = &outcome {
            println!("{name}: {error}");
        }
        Self { name, took, failed: outcome.is_err() }
    }
}

/// Passes on what tests say on standard error: what they skip.
fn pass_on(said: impl BufRead, mut to: impl Write) -> io::Result<Vec<String>> {
    let mut skipped = Vec::new();
    for line in said.split(b'\n') {
        let line = line?;
        to.write_all(&[&line[..], b"\n"].concat())?;
        skipped.extend(String::from_utf8_lossy(&line).strip_prefix(SKIPPED).map(str::to_owned));
    }
    Ok(skipped)
}

/// Many that begin with the same words before a colon are one line.
fn summed_up(skipped: &[String]) -> Vec<String> {
    let mut sorts: Vec<(&str, Vec<&str>)> = Vec::new();
    for what in skipped {
        let sort = what.split(": ").next().unwrap_or(what);
        match sorts.iter_mut().find(|(known, _)| *known == sort) {
            Some((_, all)) => all.push(what),
            None => sorts.push((sort, vec![what])),
        }
    }
    let line = |(sort, all): (&str, Vec<&str>)| match all.len() {
        ..MANY => all.into_iter().map(str::to_owned).collect(),
        many => vec![format!("{sort}: {many} tests (each says so above)")],
    };
    sorts.into_iter().flat_map(line).collect()
}

fn line(name: &str, took: Duration, word: &str) -> String {
    format!("{name:<10} {:>7.1} s  {word}", took.as_secs_f64()).trim_end().to_owned()
}

/// The stages of these names in their own order, or all of them when none is named.
///
/// # Errors
/// A name that no stage has.
pub fn chosen<'a>(stages: &'a [Stage], names: &[String]) -> Outcome<Vec<&'a Stage>> {
    let known: Vec<&str> = stages.iter().map(|stage| stage.name).collect();
    if let Some(unknown) = names.iter().find(|name| !known.contains(&name.as_str())) {
        return Err(format!("no stage `{unknown}`: there are {}", known.join(", ")).into());
    }
    let wanted = |stage: &&Stage| names.is_empty() || names.iter().any(|name| name == stage.name);
    Ok(stages.iter().filter(wanted).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAGES: &[Stage] = &[
        Stage { name: "good", why: "works", act: Act::Inside(|_| Ok(())) },
        Stage { name: "bad", why: "does not", act: Act::Inside(|_| Err("no".into())) },
        Stage { name: "slow", why: "does not, in its own time", act: Act::Beside(|| Err("no".into())) },
        Stage { name: "ugly", why: "is no command", act: Act::Cargo(&["expected-to-be-unknown-in-a-test-of-xtask"]) },
        Stage { name: "other", why: "works beside", act: Act::Beside(|| Ok(vec!["what it skips".into()])) },
    ];

    fn run(names: &[&str]) -> Result<(), String> {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let stages = chosen(STAGES, &names).map_err(|error| error.to_string())?;
        Session::default().run(&stages).map_err(|error| error.to_string())
    }

    #[test]
    fn a_failed_stage_fails_the_run_and_does_not_end_it() {
        assert_eq!(run(&["good"]), Ok(()));
        assert_eq!(run(&[]), Err("failed: bad, ugly, slow".to_owned()));
    }

    #[test]
    fn what_tests_skip_is_passed_on_and_summed_up() {
        let said = "Running x\nskipped: no tmux\n skipped: y\nskipped: needs root: a\nskipped: needs root: b\n";
        let mut passed = Vec::new();
        let skipped = pass_on(said.as_bytes(), &mut passed).expect("memory");
        assert_eq!(passed, said.as_bytes());
        let mut wanted = vec!["no tmux".to_owned(), "needs root: a".to_owned(), "needs root: b".to_owned()];
        assert_eq!(skipped, wanted);
        assert_eq!(summed_up(&skipped), wanted);
        wanted.extend(["needs root: c".to_owned(), "needs root: d".to_owned()]);
        assert_eq!(summed_up(&wanted), ["no tmux", "needs root: 4 tests (each says so above)"]);
    }

    #[test]
    fn an_unknown_stage_is_refused_by_name() {
        assert!(run(&["goood"]).is_err_and(|error| error.contains("`goood`")));
    }
}
