//! `cargo xtask fuzz`: parsers under a coverage-guided fuzzer, for as long as one likes; with `--restore` whole images.
//!
//! No nightly toolchain and no cargo-fuzz: coverage is an LLVM pass that the stable compiler has, and what else cargo-fuzz
//! adds, a sanitizer for memory errors, finds nothing in crates without `unsafe`. Needs a C++ compiler for libFuzzer.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::stage::{Act, Session, Stage};
use crate::{Outcome, host, workspace};

/// How many images the restore of mutated images takes.
const IMAGES: &str = "YENDOR_FUZZ_IMAGES";
/// The number of the first one: the same number makes the same image.
const SEED: &str = "YENDOR_FUZZ_SEED";
/// Where those images are kept that do harm.
const KEEP: &str = "YENDOR_FUZZ_KEEP";
/// Says to the fuzzer which target it is.
const TARGET: &str = "YENDOR_FUZZ_TARGET";

/// Options of `cargo xtask fuzz`.
#[derive(clap::Args)]
pub struct Options {
    /// Restore so many mutated images as the plain user, instead of fuzzing the parsers
    #[arg(long, value_name = "IMAGES", num_args = 0..=1, default_missing_value = "2000")]
    restore: Option<u64>,
    /// The number of the first image
    #[arg(long, default_value_t = 1, requires = "restore")]
    seed: u64,
    /// How long each parser is fuzzed
    #[arg(long, default_value_t = 600, conflicts_with = "restore")]
    seconds: u64,
    /// Only these targets (the table in fuzz/src/lib.rs), or those whose names begin so
    #[arg(conflicts_with = "restore")]
    targets: Vec<String>,
}

const PREPARE: Stage =
    Stage { name: "host", why: "programs and an account that the tests need", act: Act::Inside(host::prepare) };
const BUILD: Stage = Stage {
    name: "build",
    why: "the command whose images are seeds, and which restores",
    act: Act::Cargo(&["build", "--workspace", "--bins"]),
};
const RESTORE: Stage = Stage {
    name: "restore",
    why: "mutated images, each of which is refused or harmless",
    act: Act::Cargo(&[
        "test",
        "-p",
        "yendor-tests",
        "--test",
        "hostile",
        "mutated_images_do_no_harm",
        "--",
        "--nocapture",
    ]),
};

/// The compiler and linker flags of a build that libFuzzer can follow, with the checks that a release leaves out.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 -Cdebug-assertions -Coverflow-checks";
/// Named, so that build scripts and macros are built without those flags.
const MACHINE: &str = "x86_64-unknown-linux-gnu";

/// Runs it.
///
/// # Errors
/// Names the targets, or the stage, that failed.
pub fn run(options: &Options) -> Outcome {
    let mut session = Session::default();
    if let Some(images) = options.restore {
        session.export(IMAGES, images.to_string());
        session.export(SEED, options.seed.to_string());
        session.export(KEEP, workspace::target_directory()?.join("fuzz/images"));
        return session.run(&[&PREPARE, &BUILD, &RESTORE]);
    }
    session.run(&[&BUILD])?;
    let place = workspace::target_directory()?.join("fuzz");
    let fuzzer = build(&place)?;
    cargo(&["run", "-q", "-p", "yendor-fuzz", "--bin", "fuzz-seeds"], &[place.join("seeds").as_path()])?;
    let targets = chosen(&targets(&place)?, &options.targets)?;
    let mut failed = Vec::new();
    for target in &targets {
        println!("\n== {target}, {} s", options.seconds);
        if !fuzz(&fuzzer, &place, target, options.seconds)? {
            failed.push(target.as_str());
        }
    }
    println!("\n{} targets, {} failed", targets.len(), failed.len());
    if failed.is_empty() { Ok(()) } else { Err(format!("failed: {}", failed.join(", ")).into()) }
}

fn build(place: &Path) -> Outcome<PathBuf> {
    let mut command = Command::new(workspace::cargo());
    command.args(["build", "--release", "-p", "yendor-fuzz", "--features", "libfuzzer", "--bin", "fuzz"]);
    command.args(["--target", MACHINE, "--target-dir"]).arg(place.join("build")).env("RUSTFLAGS", FLAGS);
    done(command.current_dir(workspace::root()))?;
    Ok(place.join("build").join(MACHINE).join("release/fuzz"))
}

fn cargo(words: &[&str], paths: &[&Path]) -> Outcome {
    done(Command::new(workspace::cargo()).args(words).arg("--").args(paths).current_dir(workspace::root()))
}

fn done(command: &mut Command) -> Outcome {
    let status = command.stdin(Stdio::null()).status()?;
    if status.success() { Ok(()) } else { Err(format!("{command:?}: {status}").into()) }
}

/// The targets that there are: each has a directory of seeds, which may be empty.
fn targets(place: &Path) -> Outcome<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(place.join("seeds"))? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort_unstable();
    Ok(names)
}

fn chosen(all: &[String], wanted: &[String]) -> Outcome<Vec<String>> {
    let is = |name: &String, word: &String| name.starts_with(word.as_str());
    if let Some(unknown) = wanted.iter().find(|word| !all.iter().any(|name| is(name, word))) {
        return Err(format!("no target `{unknown}`: there are {}", all.join(", ")).into());
    }
    let mut list = all.to_vec();
    list.retain(|name| wanted.is_empty() || wanted.iter().any(|word| is(name, word)));
    Ok(list)
}

/// Whether a target holds. What it fails on is kept below cargo's target directory, and what it has learned.
fn fuzz(fuzzer: &Path, place: &Path, target: &str, seconds: u64) -> Outcome<bool> {
    let directory = |name: &str| -> Outcome<PathBuf> {
        let path = place.join(name).join(target);
        fs::create_dir_all(&path)?;
        Ok(path)
    };
    let (corpus, seeds, found) = (directory("corpus")?, directory("seeds")?, directory("found")?);
    let mut command = Command::new(fuzzer);
    command.env(TARGET, target).arg(corpus).arg(seeds).arg(format!("-max_total_time={seconds}"));
    command.args(["-timeout=10", "-rss_limit_mb=1024", "-print_final_stats=1"]);
    command.arg(format!("-artifact_prefix={}/", found.display()));
    let status = command.stdin(Stdio::null()).status()?;
    if !status.success() {
        println!("{target}: {status}; what it failed on is in {}", found.display());
    }
    Ok(status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_chosen_by_how_they_begin() {
        let all = ["image_records", "proc_maps", "proc_stat"].map(str::to_owned);
        let chosen = |words: &[&str]| chosen(&all, &words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>());
        assert_eq!(chosen(&[]).expect("all").len(), 3);
        assert_eq!(chosen(&["proc_"]).expect("two"), ["proc_maps", "proc_stat"]);
        assert!(chosen(&["proc_", "nothing"]).is_err_and(|e| e.to_string().contains("`nothing`")));
    }
}
