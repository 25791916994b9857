//! A kernel of our own, from Debian's source: the smallest one with what `xtask/src/lab/smack.config` adds. Built once, in minutes, into
//! cargo's target directory.

use super::parts::{self, Kernel, Missing, run};
use crate::{Outcome, workspace};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::process::Command;

const SOURCE: &str = "linux-source-6.12";

/// What a build needs beside a compiler, and the packages that have it.
const TOOLS: [(&str, &str); 4] = [("make", "make"), ("flex", "flex"), ("bison", "bison"), ("bc", "bc")];

/// The kernel, if it is in the cache, or `build` says that it is worth its time.
///
/// # Errors
/// The build failed. That it is not there is the inner error.
pub fn kernel(cache: &Path, build: bool) -> Outcome<Result<Kernel, Missing>> {
    let config = workspace::root().join("xtask/src/lab/smack.config");
    let mut hasher = DefaultHasher::new();
    (SOURCE, fs::read(&config)?).hash(&mut hasher);
    let name = format!("own-{:016x}", hasher.finish());
    if let Some(there) = parts::cached(cache, &name)? {
        return Ok(Ok(there));
    }
    if !build {
        let how = "no kernel with Smack (Debian's have none): `cargo xtask lab --machine smack` builds one in minutes";
        return Ok(Err(Missing(how.into())));
    }
    for (tool, package) in TOOLS {
        if let Err(missing) = parts::program(tool, package) {
            return Ok(Err(missing));
        }
    }
    fs::create_dir_all(cache)?;
    let fetch = cache.join(format!("build-{}", std::process::id()));
    fs::create_dir_all(&fetch)?;
    let built = build_in(&fetch, &config, &cache.join(format!("kernel-{name}")));
    fs::remove_dir_all(&fetch)?;
    built?;
    Ok(parts::cached(cache, &name)?.ok_or_else(|| Missing("the build left no kernel".into())))
}

fn build_in(fetch: &Path, config: &Path, kernel: &Path) -> Outcome {
    let archive = parts::unpacked(fetch, SOURCE)?.join(format!("usr/src/{SOURCE}.tar.xz"));
    run(Command::new("tar").arg("-xf").arg(archive).current_dir(fetch))?;
    let tree = fetch.join(SOURCE);
    println!("building {SOURCE} (needs libelf-dev, too)");
    let make = |words: &[&str]| run(Command::new("make").arg("--silent").args(words).current_dir(&tree));
    make(&["tinyconfig"])?;
    run(Command::new("scripts/kconfig/merge_config.sh").args(["-m", ".config"]).arg(config).current_dir(&tree))?;
    make(&["olddefconfig"])?;
    let jobs = std::thread::available_parallelism().map_or(1, |n| n.get());
    make(&[&format!("--jobs={jobs}"), "bzImage"])?;
    let release = fs::read_to_string(tree.join("include/config/kernel.release"))?;
    let release = release.trim();
    let unfinished = fetch.join("kernel");
    fs::create_dir_all(unfinished.join("boot"))?;
    fs::create_dir_all(unfinished.join("lib/modules").join(release).join("kernel"))?;
    fs::copy(tree.join("arch/x86/boot/bzImage"), unfinished.join("boot").join(format!("vmlinuz-{release}")))?;
    // By rename, so that a run that is interrupted leaves no half kernel.
    Ok(fs::rename(unfinished, kernel)?)
}
