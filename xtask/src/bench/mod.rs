//! `cargo xtask bench`: what Yendor costs, beside what the same work costs a plain program in the same minute.
//!
//! The rows are data ([`rows::ROWS`]). Measured command and yardstick take turns, so that a slow minute of
//! the machine slows both; what counts is the ratio of the medians.

mod measure;
mod row;
mod rows;
mod table;
pub mod yardstick;

use crate::{Outcome, workspace};
use measure::Bench;
use row::Row;
use rows::ROWS;
use std::process::{Command, Stdio};

/// Options of `cargo xtask bench`.
#[derive(clap::Args)]
pub struct Options {
    /// Only rows whose name contains this
    row: Option<String>,
    /// Rounds of each row, overriding its own number
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
}

/// Builds the release, measures the rows, prints the table and writes it to docs/bench.md when no row was left out.
///
/// # Errors
/// The build or a command of a row failed, or its answer lacks the number that the row asks for.
pub fn run(options: &Options) -> Outcome {
    let wanted = |row: &&Row| options.row.as_ref().is_none_or(|part| row.name.contains(part));
    let rows: Vec<&Row> = ROWS.iter().filter(wanted).collect();
    if rows.is_empty() {
        let known: Vec<&str> = ROWS.iter().map(|row| row.name).collect();
        return Err(format!("no such row: there are {}", known.join("; ")).into());
    }
    build()?;
    let bench = Bench::new()?;
    let mut lines = Vec::new();
    for row in &rows {
        eprintln!("{}", row.name);
        let rounds = options.rounds.unwrap_or(row.rounds);
        lines.extend(bench.row(row, rounds).map_err(|error| format!("{}: {error}", row.name))?);
    }
    let page = table::page(&lines, &table::Machine::this());
    println!("{page}");
    if rows.len() == ROWS.len() {
        std::fs::write(workspace::root().join("docs/bench.md"), page)?;
    }
    Ok(())
}

fn build() -> Outcome {
    let status = Command::new(workspace::cargo())
        .args(["build", "--release", "--package", "yendor", "--package", "xtask"])
        .current_dir(workspace::root())
        .stdin(Stdio::null())
        .status()?;
    if status.success() { Ok(()) } else { Err(format!("cargo build --release: {status}").into()) }
}
