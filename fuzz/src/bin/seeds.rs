//! `fuzz-seeds DIRECTORY`: writes what fuzzing begins with into directories named like the targets.

use std::path::PathBuf;
use std::process::ExitCode;

use yendor_fuzz::{TARGETS, seeds};

fn main() -> ExitCode {
    let Some(top) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: fuzz-seeds DIRECTORY");
        return ExitCode::from(2);
    };
    match write(&top) {
        Ok(count) => println!("{count} seeds in {}", top.display()),
        Err(error) => {
            eprintln!("fuzz-seeds: {}: {error}", top.display());
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn write(top: &std::path::Path) -> std::io::Result<usize> {
    // A target may have no seed, and libFuzzer wants its directory all the same.
    TARGETS.iter().try_for_each(|target| std::fs::create_dir_all(top.join(target.name)))?;
    let all = [seeds::kept(), seeds::made(seeds::PROBES)].concat();
    for (target, name, bytes) in &all {
        std::fs::write(top.join(target).join(name), bytes)?;
    }
    Ok(all.len())
}
