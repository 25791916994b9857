//! `cargo xtask test`: everything that must hold, as a list of stages.

use crate::stage::{Act, Session, Stage, chosen};
use crate::{Outcome, host, lab};

/// Options of `cargo xtask test`.
#[derive(clap::Args)]
pub struct Options {
    /// Only these stages: host, fmt, clippy, build, test, lab
    stages: Vec<String>,
}

/// All tests. Of the programs only those with tests of their own are named: a second build of each of the many probes, to find
/// that it has none, takes half a minute. `tests/house.rs` holds that none is forgotten.
pub const TESTS: &[&str] =
    &["test", "--workspace", "--no-fail-fast", "--lib", "--test", "*", "--bin", "yendor", "--bin", "lab-guest"];

const STAGES: &[Stage] = &[
    Stage {
        name: "host",
        why: "programs, an account and a place that the tests need",
        act: Act::Inside(host::prepare),
    },
    Stage { name: "fmt", why: "one layout for all", act: Act::Cargo(&["fmt", "--all", "--check"]) },
    Stage {
        name: "clippy",
        why: "no warning gets old",
        act: Act::Cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]),
    },
    Stage {
        name: "build",
        why: "the command and the probes that the tests run",
        act: Act::Cargo(&["build", "--workspace", "--bins"]),
    },
    Stage {
        name: "lab",
        why: "security modules that this kernel does not have, in virtual machines, beside the tests",
        act: Act::Beside(lab::stage),
    },
    Stage {
        name: "test",
        why: "unit, golden, law and probe tests, house rules and real programs",
        act: Act::Cargo(TESTS),
    },
];

/// Runs the stages.
///
/// # Errors
/// Names the stages that failed.
pub fn run(options: &Options) -> Outcome {
    let stages = chosen(STAGES, &options.stages)?;
    Session::default().run(&stages)
}
