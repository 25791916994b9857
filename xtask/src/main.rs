//! `cargo xtask VERB`: the chores of the workspace.

use clap::{Parser, Subcommand};
use std::process::ExitCode;
use xtask::{Outcome, bench, docs, fuzz, lab, soak, suite};

/// Chores of the Yendor workspace.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Chore {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Everything that must hold before a change goes in: format, lints, house rules, all tests
    Test(suite::Options),
    /// Measure Yendor against yardsticks taken in the same run; writes docs/bench.md
    Bench(bench::Options),
    /// Write what is made from the code: docs/resources.md, docs/records.md; man pages and completions below cargo's target directory
    Docs,
    /// Fuzz the parsers; with --restore, restore mutated images as the plain user
    Fuzz(fuzz::Options),
    /// Boot virtual machines with security modules that this kernel does not have, and test there
    Lab(lab::Options),
    /// Run the sweeps of the tests at full length
    Soak(soak::Options),
    /// What the benchmark compares Yendor with
    #[command(hide = true)]
    Yardstick {
        #[command(subcommand)]
        yardstick: bench::yardstick::Yardstick,
    },
}

fn main() -> ExitCode {
    match run(Chore::parse().verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Outcome {
    match verb {
        Verb::Test(options) => suite::run(&options),
        Verb::Bench(options) => bench::run(&options),
        Verb::Docs => docs::run(),
        Verb::Fuzz(options) => fuzz::run(&options),
        Verb::Lab(options) => lab::run(&options),
        Verb::Soak(options) => soak::run(&options),
        Verb::Yardstick { yardstick } => yardstick.run(),
    }
}
