//! Stages of a chore: data, one runner, a summary with the time each took.

use crate::failed::Failed;
use crate::{Outcome, workspace};
use std::ffi::OsString;
use std::fs;
use std::io::{self, BufReader};
use std::path::PathBuf;
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
}

/// The environment in which tests append a line `what: why not` to the named file when they skip something.
pub const SKIP_LOG: &str = "YENDOR_SKIP_LOG";

/// What one stage leaves for the next ones, and for the summary.
pub struct Session {
    environment: Vec<(&'static str, OsString)>,
    skipped: Vec<String>,
    skip_log: PathBuf,
    failed: Vec<Failed>,
}

impl Session {
    /// A session whose tests report what they skip below cargo's target directory.
    ///
    /// # Errors
    /// That directory cannot be found or written.
    pub fn new() -> Outcome<Self> {
        let directory = workspace::target_directory()?;
        fs::create_dir_all(&directory)?;
        let skip_log = directory.join(format!("skipped-{}", std::process::id()));
        fs::write(&skip_log, "")?;
        let mut session = Self { environment: Vec::new(), skipped: Vec::new(), skip_log, failed: Vec::new() };
        session.export(SKIP_LOG, session.skip_log.clone());
        Ok(session)
    }

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
        let mut lines = Vec::new();
        let mut failed = Vec::new();
        for stage in stages {
            println!("\n== {}: {}", stage.name, stage.why);
            let begin = Instant::now();
            let outcome = self.act(&stage.act);
            if let Err(error) = &outcome {
                println!("{}: {error}", stage.name);
                failed.push(stage.name);
            }
            let word = if outcome.is_ok() { "ok" } else { "FAILED" };
            lines.push(line(stage.name, begin.elapsed(), word));
        }
        for tests in &self.failed {
            tests.print();
        }
        println!("\n== summary\n{}\n{}", lines.join("\n"), line("total", begin.elapsed(), ""));
        self.print_skipped()?;
        if failed.is_empty() { Ok(()) } else { Err(format!("failed: {}", failed.join(", ")).into()) }
    }

    fn act(&mut self, act: &Act) -> Outcome {
        let arguments = match act {
            Act::Inside(function) => return function(self),
            Act::Cargo(arguments) => arguments,
        };
        let mut command = Command::new(workspace::cargo());
        command
            .args(*arguments)
            .envs(self.environment.iter().cloned())
            .current_dir(workspace::root())
            .stdin(Stdio::null());
        let status = if arguments.first() == Some(&"test") {
            let mut child = command.stdout(Stdio::piped()).spawn()?;
            let said = child.stdout.take().ok_or("no output of cargo")?;
            self.failed.push(Failed::listen(BufReader::new(said), io::stdout().lock())?);
            child.wait()?
        } else {
            command.status()?
        };
        if status.success() { Ok(()) } else { Err(format!("cargo {}: {status}", arguments.join(" ")).into()) }
    }

    fn print_skipped(&mut self) -> Outcome {
        let reported = fs::read_to_string(&self.skip_log)?;
        self.skipped.extend(reported.lines().map(str::to_owned));
        if self.skipped.is_empty() {
            println!("nothing was skipped");
        }
        for what in &self.skipped {
            println!("skipped  {what}");
        }
        Ok(())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.skip_log) {
            eprintln!("remove {}: {error}", self.skip_log.display());
        }
    }
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
        Stage { name: "ugly", why: "is no command", act: Act::Cargo(&["expected-to-be-unknown-in-a-test-of-xtask"]) },
    ];

    fn run(names: &[&str]) -> Result<(), String> {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let stages = chosen(STAGES, &names).map_err(|error| error.to_string())?;
        Session::new().and_then(|session| session.run(&stages)).map_err(|error| error.to_string())
    }

    #[test]
    fn a_failed_stage_fails_the_run_and_does_not_end_it() {
        assert_eq!(run(&["good"]), Ok(()));
        assert_eq!(run(&[]), Err("failed: bad, ugly".to_owned()));
    }

    #[test]
    fn an_unknown_stage_is_refused_by_name() {
        assert!(run(&["goood"]).is_err_and(|error| error.contains("`goood`")));
    }
}
