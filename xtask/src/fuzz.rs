//! `cargo xtask fuzz`: parsers under a coverage-guided fuzzer, for as long as one likes; with `--restore` whole images.

use std::process::Command;

use crate::stage::{Act, Session, Stage};
use crate::{Outcome, host, workspace};

/// How many images the restore of mutated images takes.
const IMAGES: &str = "YENDOR_FUZZ_IMAGES";
/// The number of the first one: the same number makes the same image.
const SEED: &str = "YENDOR_FUZZ_SEED";

/// Options of `cargo xtask fuzz`.
#[derive(clap::Args)]
pub struct Options {
    /// Restore mutated images as the plain user, instead of fuzzing the parsers
    #[arg(long)]
    restore: bool,
    /// How many images
    #[arg(long, default_value_t = 2000, requires = "restore")]
    images: u64,
    /// The number of the first image
    #[arg(long, default_value_t = 1, requires = "restore")]
    seed: u64,
    /// How long each parser is fuzzed
    #[arg(long, default_value_t = 600, conflicts_with = "restore")]
    seconds: u64,
    /// Only these targets of fuzz/fuzz_targets
    #[arg(conflicts_with = "restore")]
    targets: Vec<String>,
}

const STAGES: &[Stage] = &[
    Stage { name: "host", why: "programs and an account that the tests need", act: Act::Inside(host::prepare) },
    Stage { name: "build", why: "the command that restores", act: Act::Cargo(&["build", "--workspace", "--bins"]) },
    Stage {
        name: "restore",
        why: "mutated images, each of which is refused or harmless",
        act: Act::Cargo(&["test", "-p", "yendor-tests", "--test", "hostile", "mutated_images_do_no_harm"]),
    },
];

/// Runs it.
///
/// # Errors
/// Names the target, or the stage, that failed.
pub fn run(options: &Options) -> Outcome {
    if options.restore {
        let mut session = Session::new()?;
        session.export(IMAGES, options.images.to_string());
        session.export(SEED, options.seed.to_string());
        return session.run(&STAGES.iter().collect::<Vec<_>>());
    }
    let directory = workspace::root().join("fuzz");
    let targets = if options.targets.is_empty() { targets()? } else { options.targets.clone() };
    for target in targets {
        println!("==== {target}, {} s", options.seconds);
        let mut command = Command::new("cargo");
        command.args(["+nightly", "fuzz", "run", &target, "--", &format!("-max_total_time={}", options.seconds)]);
        let status = command.current_dir(&directory).status()?;
        if !status.success() {
            let hint = "needs a nightly toolchain and cargo-fuzz: cargo install cargo-fuzz";
            return Err(format!("target {target}: {status}; {hint}").into());
        }
    }
    Ok(())
}

/// The targets that there are.
fn targets() -> Outcome<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(workspace::root().join("fuzz/fuzz_targets"))? {
        let path = entry?.path();
        names.extend(path.file_stem().and_then(|n| n.to_str()).map(str::to_owned));
    }
    names.sort_unstable();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_is_named_in_the_manifest() {
        let manifest = std::fs::read_to_string(workspace::root().join("fuzz/Cargo.toml")).expect("a manifest");
        let names = targets().expect("targets");
        assert!(names.len() >= 6, "{names:?}");
        for name in names {
            assert!(manifest.contains(&format!("fuzz_targets/{name}.rs")), "{name} has no [[bin]]");
        }
    }
}
