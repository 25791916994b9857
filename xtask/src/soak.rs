//! `cargo xtask soak`: the sweeps of the tests at full length.
//!
//! No test is ignored by default: a sweep asks how often it should go round, and does so more often when
//! the variable [`SOAK`] is set. This chore sets it and runs the suite again and again.

use crate::stage::{Act, Session, Stage};
use crate::suite::TESTS;
use crate::{Outcome, host};

/// Set to `1` when sweeps should take their time.
pub const SOAK: &str = "YENDOR_SOAK";

/// Options of `cargo xtask soak`.
#[derive(clap::Args)]
pub struct Options {
    /// How many times the sweeps are run; the first round that fails is the last
    #[arg(long, default_value_t = 1)]
    rounds: u32,
}

const STAGES: &[Stage] = &[
    Stage {
        name: "host",
        why: "programs, an account and a place that the tests need",
        act: Act::Inside(host::prepare),
    },
    Stage {
        name: "build",
        why: "the command and the probes that the sweeps run",
        act: Act::Cargo(&["build", "--workspace", "--bins"]),
    },
    Stage { name: "sweeps", why: "every test, its sweeps at full length", act: Act::Cargo(TESTS) },
];

/// Runs the sweeps.
///
/// # Errors
/// Names the round and the stages that failed.
pub fn run(options: &Options) -> Outcome {
    let stages: Vec<&Stage> = STAGES.iter().collect();
    for round in 1..=options.rounds {
        println!("\n==== round {round} of {}", options.rounds);
        let mut session = Session::default();
        session.export(SOAK, "1");
        session.run(&stages).map_err(|error| format!("round {round}: {error}"))?;
    }
    Ok(())
}
