//! The words of the command line (CLI.md is the contract), and who answers to which.

use std::process::ExitCode;

use clap::{ArgAction, Parser, Subcommand};
use yendor_engine::state::Places;

use crate::failure::{Failure, Outcome};
use crate::{print, verb};

const ABOUT: &str = "Checkpoint and restore containers and process trees, as any user, from images nobody has to trust";
const EXAMPLE: &str = "\
Example:
  yendor run -d --name web -- nginx -g 'daemon off;'
  yendor checkpoint web
  yendor restore web

Exit codes: 0 done; 1 failed, everything is as it was; 2 usage; 3 not supported, nothing touched; 4 the image is
damaged; 5 denied by permission or policy; 6 failed and not as it was. `run`, `restore`, `attach`, `exec` and `wait` exit
with the status of what they waited for, 128+N after signal N; 1, and say so, when a checkpoint has ended it meanwhile.";

/// The command line.
#[derive(Debug, Parser)]
#[command(name = "yendor", version, about = ABOUT, after_help = EXAMPLE)]
pub struct Cli {
    /// Say more: how long each step took; twice: under what and where, too
    #[arg(short, long, global = true, action = ArgAction::Count, conflicts_with = "quiet")]
    verbose: u8,
    /// Say less: errors only; twice is the same
    #[arg(short, long, global = true, action = ArgAction::Count)]
    quiet: u8,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Run(Box<verb::run::Run>),
    Ps(verb::ps::Ps),
    Exec(verb::exec::Exec),
    Attach(verb::attach::Attach),
    Logs(verb::logs::Logs),
    Kill(verb::kill::Kill),
    Wait(verb::wait::Wait),
    Rm(verb::rm::Rm),
    Checkpoint(verb::checkpoint::Checkpoint),
    #[command(visible_alias = "restart")]
    Restore(Box<verb::restore::Restore>),
    Clone(verb::clone::CloneContainer),
    Inspect(verb::inspect::Inspect),
    Plan(Box<verb::plan::Plan>),
    Guard(verb::guard::Guard),
    Flatten(verb::flatten::Flatten),
    Images(verb::images::Images),
    Rmi(verb::rmi::Rmi),
    Doctor(verb::doctor::Doctor),
    Demo(verb::demo::Demo),
    #[command(hide = true)]
    Generate(verb::generate::Generate),
}

impl Verb {
    fn run(self) -> Outcome {
        match self {
            Verb::Run(v) => v.run(),
            Verb::Ps(v) => v.run(),
            Verb::Exec(v) => v.run(),
            Verb::Attach(v) => v.run(),
            Verb::Logs(v) => v.run(),
            Verb::Kill(v) => v.run(),
            Verb::Wait(v) => v.run(),
            Verb::Rm(v) => v.run(),
            Verb::Checkpoint(v) => v.run(),
            Verb::Restore(v) => v.run(),
            Verb::Clone(v) => v.run(),
            Verb::Inspect(v) => v.run(),
            Verb::Plan(v) => v.run(),
            Verb::Guard(v) => v.run(),
            Verb::Flatten(v) => v.run(),
            Verb::Images(v) => v.run(),
            Verb::Rmi(v) => v.run(),
            Verb::Doctor(v) => v.run(),
            Verb::Demo(v) => v.run(),
            Verb::Generate(v) => v.run(),
        }
    }

    fn json(&self) -> bool {
        match self {
            Verb::Run(v) => v.json,
            Verb::Ps(v) => v.json,
            Verb::Checkpoint(v) => v.json,
            Verb::Restore(v) => v.json,
            Verb::Inspect(v) => v.json,
            Verb::Plan(v) => v.json,
            Verb::Images(v) => v.json,
            Verb::Doctor(v) => v.json,
            _ => false,
        }
    }
}

/// What a report of an error should tell.
fn surroundings() -> String {
    let (version, kernel) = (env!("CARGO_PKG_VERSION"), rustix::system::uname());
    let user = rustix::process::geteuid().as_raw();
    let places = Places::from_environment().map_or_else(
        |why| why.to_string(),
        |places| format!("containers in {}, images in {}", places.run.display(), places.images.display()),
    );
    format!("yendor {version} under Linux {}, user {user}; {places}", kernel.release().to_string_lossy())
}

/// Reads the command line and does what it says.
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => return misused(&e),
    };
    print::set_loudness(i8::try_from(cli.verbose).unwrap_or(2), cli.quiet > 0);
    let json = cli.verb.json();
    print::surroundings(surroundings);
    match cli.verb.run() {
        Ok(code) => ExitCode::from(code),
        Err(failure) => ExitCode::from(fail(&failure, json)),
    }
}

/// Says it; the exit code.
pub fn fail(failure: &Failure, json: bool) -> u8 {
    if json {
        print::error(&failure.to_json().to_string());
    } else {
        print::error(&format!("yendor: {failure}"));
    }
    failure.exit_code()
}

/// Says what is wrong with the command line, as JSON where that is asked for; help and version are no errors.
fn misused(error: &clap::Error) -> ExitCode {
    let json = std::env::args_os().skip(1).take_while(|word| word != "--").any(|word| word == "--json");
    if !json || !error.use_stderr() {
        error.exit();
    }
    let failure = misuse(&error.render().to_string());
    print::error(&failure.to_json().to_string());
    ExitCode::from(failure.exit_code())
}

/// The first paragraph is what is wrong; what to do is a tip, or how the verb is used.
fn misuse(text: &str) -> Failure {
    let mut paragraphs = text.trim().split("\n\n").map(str::trim);
    let what = paragraphs.next().unwrap_or_default();
    let what = what.strip_prefix("error: ").unwrap_or(what);
    let rest: Vec<&str> = paragraphs.collect();
    let tip =
        rest.iter().find_map(|p| p.strip_prefix("tip: ")).or(rest.iter().find(|p| p.starts_with("Usage:")).copied());
    Failure::Usage(tip.map_or_else(|| what.to_owned(), |tip| format!("{what}\n  hint: {tip}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_verb_has_an_example() {
        for verb in Cli::command().get_subcommands().filter(|v| !v.is_hide_set()) {
            let help = verb.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains(&format!("yendor {}", verb.get_name())), "{}: {help}", verb.get_name());
        }
    }

    #[test]
    fn the_words_of_the_contract_are_known() {
        let lines = [
            "run --name N -d -t -i --rootfs /r --volume d=/h:/p:ro --net host --userns auto --hostname h -e K=V -w /d \
             -u 1:2 --cap-drop CHOWN --lsm-profile apparmor:x --landlock ro:/ --seccomp f --memory 1G --pids 5 --rm -- c a -x",
            "run --bundle /b",
            "run -d --checkpoint-every 30s --keep-last 5 -- c",
            "restore n -d --checkpoint-every 1h",
            "guard n --every 5m --keep-last 1 --track",
            "checkpoint n --leave-running --parent n@1",
            "checkpoint n --leave-running --track --verify-delta",
            "checkpoint n --leave-running --track --no-parent",
            "checkpoint n --compress lz4 --parent n@1",
            "checkpoint --pid 5 --compress zstd:19 --encrypt-to age1x",
            "run -d --checkpoint-every 30s --compress zstd -- c",
            "guard n --compress lz4",
            "flatten n@2 --compress zstd:1",
            "flatten n@2 -o ./d",
            "ps -a --json",
            "exec -t -i n -- c -x",
            "attach n",
            "logs -f n",
            "kill -s TERM n",
            "kill --all -s CONT n",
            "wait n",
            "rm -f n",
            "checkpoint n -o d --leave-running --allow-lost tcp --allow-lost landlock",
            "checkpoint --pid 5 --output d --leave-stopped --sign k --encrypt-to age1x --encrypt-to age1y",
            "restore i --verify k --identity f --identity g",
            "restore i --name n -d --pidfile f --rootfs /r --volume d=/h --net none --userns host --keep-lsm \
             --enforce early --any-cpu --lsm-profile smack:x --landlock bind:80 --seccomp f",
            "restart i",
            "restore i -d --count 20 --notify USR1 --on-resume x --copy-memory",
            "clone n --count 3 --name m --notify USR1 --on-resume x --copy-memory -- --net host",
            "inspect i --tree --files --memory --sockets --security --lost --strings 5:0x1000+20",
            "plan i --name n --enforce late --volume d=/h --identity f",
            "plan i -d --pidfile f --lazy --lazy-rate 1M --verify k --checkpoint-every 1h --keep-last 2",
            "plan i -d --count 20 --notify USR1 --on-resume x --copy-memory",
            "inspect i --identity f",
            "images --json",
            "rmi i",
            "doctor",
            "demo",
        ];
        for line in lines {
            let words = std::iter::once("yendor").chain(line.split_whitespace());
            assert!(Cli::try_parse_from(words).is_ok(), "{line}");
        }
        for line in [
            "checkpoint",
            "checkpoint n --pid 5",
            "checkpoint n --allow-lost x",
            "run -- ",
            "rm",
            "inspect i --strings x",
            "checkpoint n --compress gzip",
        ] {
            let words = std::iter::once("yendor").chain(line.split_whitespace());
            assert!(Cli::try_parse_from(words).is_err(), "{line}");
        }
    }
}
