//! `cargo xtask lab`: security modules that the kernel at hand does not have, in virtual machines that boot in seconds.
//!
//! Each machine is a kernel of Debian with one set of security modules, and an initramfs made here: busybox, the built
//! command, the probes, and `lab-guest` of the tests, which is its init, runs its table of tests and reports line by line.

mod archive;
mod machine;
mod own;
mod parts;

use crate::{Outcome, workspace};
use archive::Archive;
use parts::{Kernel, Missing};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Options of `cargo xtask lab`.
#[derive(clap::Args)]
pub struct Options {
    /// Only this machine ("6.12 apparmor"), or those of this word
    #[arg(long)]
    machine: Option<String>,
    /// Only tests with this word in their name
    #[arg(long)]
    test: Option<String>,
    /// Print what the guests say as it is
    #[arg(long)]
    verbose: bool,
    /// Only the machines of `cargo xtask test`
    #[arg(long)]
    daily: bool,
}

/// One machine.
struct Config {
    /// The kernel's series.
    series: &'static str,
    /// What it is called, and what the tests of the guest look at.
    name: &'static str,
    /// The kernel's `lsm=`, and more of its words.
    words: &'static str,
    /// Whether it is a part of `cargo xtask test`: emulated machines take minutes.
    daily: bool,
}

/// Those that take longest first: the last ones fill what is left of two processors.
const CONFIGS: &[Config] = &[
    APPARMOR,
    Config {
        series: "6.12",
        name: "selinux",
        words: "lsm=landlock,lockdown,yama,selinux,bpf enforcing=1",
        daily: true,
    },
    Config { series: OWN, name: "smack", words: "lsm=landlock,yama,smack", daily: false },
    Config {
        series: "6.12",
        name: "tomoyo",
        // What asks for a policy, and who would load one: in the guest nobody, it is written before.
        words: "lsm=landlock,lockdown,yama,apparmor,tomoyo,bpf TOMOYO_trigger=/bin/true TOMOYO_loader=/lab/lab-guest",
        daily: true,
    },
    Config { series: "6.12", name: "plain", words: "lsm=landlock,yama", daily: true },
    Config { series: "6.1", name: "plain", words: "lsm=landlock,yama", daily: true },
];

const APPARMOR: Config =
    Config { series: "6.12", name: "apparmor", words: "lsm=landlock,lockdown,yama,apparmor,bpf", daily: true };

/// What takes an image under AppArmor for the machine that wants one of another; it is run before that and alone writes to the disk.
const HANDING: &str = "handed-on";
const WANTS_IT: &str = "selinux";

/// Instead of a series: a kernel built here, since Debian's do not have everything.
const OWN: &str = "own";

/// For how long a machine may run. Emulated, beside tests that come first.
const LIMIT: Duration = Duration::from_secs(1400);

/// Bytes of the disk by which one machine hands an image to another.
const DISK: u64 = 64 << 20;

/// What the guest is given beside the command: all of them built by `cargo build --workspace --bins`.
const GUEST: &str = "lab-guest";

/// Runs every machine.
///
/// # Errors
/// Names the tests that failed.
pub fn run(options: &Options) -> Outcome {
    let status = Command::new(workspace::cargo())
        .args(["build", "--quiet", "--workspace", "--bins"])
        .current_dir(workspace::root())
        .status()?;
    if !status.success() {
        return Err(format!("cargo build: {status}").into());
    }
    let skipped = all(options)?;
    for what in skipped {
        println!("skipped  {what}");
    }
    Ok(())
}

/// The stage of `cargo xtask test`, and what it skips; the programs are built already.
///
/// # Errors
/// As [`run`].
pub fn stage() -> Outcome<Vec<String>> {
    let elsewhere = CONFIGS.iter().filter(|config| !config.daily);
    let mut skipped: Vec<String> =
        elsewhere.map(|config| format!("machine {}: `cargo xtask lab` has it", config.full_name())).collect();
    skipped.extend(all(&Options { machine: None, test: None, verbose: false, daily: true })?);
    Ok(skipped)
}

/// What was skipped, and why.
fn all(options: &Options) -> Outcome<Vec<String>> {
    let qemu = parts::program("qemu-system-x86_64", "qemu-system-x86");
    let busybox = parts::program("busybox", "busybox-static");
    let (qemu, busybox) = match (qemu, busybox) {
        (Ok(qemu), Ok(busybox)) => (qemu, busybox),
        (Err(Missing(why)), _) | (_, Err(Missing(why))) => {
            return Ok(vec![format!("the lab of security modules: {why}")]);
        }
    };
    let target = workspace::target_directory()?;
    let lab = Lab { qemu, busybox, cache: target.join("lab"), programs: target.join("debug") };
    let (mut skipped, mut failed) = (Vec::new(), Vec::new());
    let mut kernels: BTreeMap<&str, (Kernel, PathBuf)> = BTreeMap::new();
    let mut machines = Vec::new();
    let wanted = || CONFIGS.iter().filter(|config| config.is_wanted(options));
    let hands = !options.daily && wanted().any(|config| config.name == WANTS_IT);
    for config in wanted() {
        if lab.has_kernel(config, &mut kernels, options, &mut skipped)? {
            machines.push(config);
        }
    }
    fs::File::create(lab.disk())?.set_len(DISK)?;
    let mut reports = Vec::new();
    if hands
        && lab.has_kernel(&APPARMOR, &mut kernels, options, &mut skipped)?
        && let Some((kernel, initramfs)) = kernels.get(APPARMOR.series)
    {
        let how = (Only::Word(HANDING), options.verbose);
        reports.push((APPARMOR.full_name(), lab.one(&APPARMOR, kernel, initramfs, how)?));
    }
    reports.extend(lab.boot_all(&machines, &kernels, options)?);
    for (name, report) in reports {
        skipped.extend(report.skipped.into_iter().map(|what| format!("{name}: {what}")));
        failed.extend(report.failed.into_iter().map(|what| format!("{name}: {what}")));
    }
    if failed.is_empty() { Ok(skipped) } else { Err(failed.join("\n").into()) }
}

struct Lab {
    qemu: PathBuf,
    busybox: PathBuf,
    cache: PathBuf,
    programs: PathBuf,
}

/// Which tests a guest runs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Only<'a> {
    All,
    /// What `cargo xtask test` has time for.
    Daily,
    /// Those with this word.
    Word(&'a str),
}

/// What a guest has said.
#[derive(Default, Debug, PartialEq, Eq)]
struct Report {
    passed: usize,
    failed: Vec<String>,
    skipped: Vec<String>,
}

impl Config {
    fn full_name(&self) -> String {
        format!("{} {}", self.series, self.name)
    }

    fn is_wanted(&self, options: &Options) -> bool {
        let name = self.full_name();
        let machine = options.machine.as_ref();
        (self.daily || !options.daily)
            && machine.is_none_or(|wanted| *wanted == name || name.split(' ').any(|word| word == wanted))
    }
}

impl Lab {
    /// Whether a machine's kernel is there, or can be had.
    fn has_kernel(
        &self,
        config: &Config,
        kernels: &mut BTreeMap<&'static str, (Kernel, PathBuf)>,
        options: &Options,
        skipped: &mut Vec<String>,
    ) -> Outcome<bool> {
        if kernels.contains_key(config.series) {
            return Ok(true);
        }
        let name = config.full_name();
        let kernel = if config.series == OWN {
            // A build takes minutes: only who asks for it gets it, but everybody uses it then.
            own::kernel(&self.cache, options.machine.as_deref().is_some_and(|wanted| name.contains(wanted)))
        } else {
            parts::kernel(&self.cache, config.series)
        };
        match kernel? {
            Ok(kernel) => {
                let initramfs = self.initramfs(&kernel, skipped)?;
                kernels.insert(config.series, (kernel, initramfs));
                Ok(true)
            }
            Err(Missing(why)) => {
                skipped.push(format!("machine {name}: {why}"));
                Ok(false)
            }
        }
    }

    /// Two at a time: a guest is busy with one thing at a time, mostly.
    fn boot_all(
        &self,
        machines: &[&Config],
        kernels: &BTreeMap<&str, (Kernel, PathBuf)>,
        options: &Options,
    ) -> Outcome<Vec<(String, Report)>> {
        let waiting = Mutex::new(machines.iter());
        let done = Mutex::new(Vec::new());
        let work = || -> Result<(), String> {
            loop {
                let next = waiting.lock().map_err(|e| e.to_string())?.next();
                let Some((config, (kernel, initramfs))) = next.and_then(|c| Some((c, kernels.get(c.series)?))) else {
                    return Ok(());
                };
                let only =
                    if options.daily { Only::Daily } else { options.test.as_deref().map_or(Only::All, Only::Word) };
                let how = (only, options.verbose);
                let report = self.one(config, kernel, initramfs, how).map_err(|e| e.to_string())?;
                done.lock().map_err(|e| e.to_string())?.push((config.full_name(), report));
            }
        };
        std::thread::scope(|scope| {
            let other = scope.spawn(work);
            work()?;
            other.join().map_err(|_| "a thread of the lab panicked".to_owned())?
        })?;
        Ok(done.into_inner()?)
    }

    fn one(
        &self,
        config: &Config,
        kernel: &Kernel,
        initramfs: &Path,
        (only, verbose): (Only<'_>, bool),
    ) -> Outcome<Report> {
        let begin = Instant::now();
        let log = self.cache.join(format!("{}-{}.log", config.series, config.name));
        let mut words = format!("{} lab.machine={}", config.words, config.name);
        match only {
            Only::All => {}
            Only::Daily => words.push_str(" lab.daily"),
            Only::Word(test) => words.push_str(&format!(" lab.test={test}")),
        }
        let snapshot = only != Only::Word(HANDING);
        let parts = machine::Parts { qemu: &self.qemu, kernel, initramfs, disk: &self.disk(), snapshot };
        let mut boot = machine::boot(&parts, &words, &log, LIMIT)?;
        if boot.code.is_none() && boot.log.contains("Kernel panic") && !boot.log.contains("lab: machine") {
            // Seen: emulated processors trip over code that the kernel patches while it starts. Nothing of ours has run.
            println!("{}: the kernel panicked while it started, and is booted once more", config.full_name());
            boot = machine::boot(&parts, &words, &log, LIMIT)?;
        }
        let mut report = read_report(&boot.log);
        match boot.code {
            Some(0) if report.failed.is_empty() => {}
            Some(code) if !report.failed.is_empty() && code == 1 => {}
            Some(code) => report.failed.push(format!("the guest ended with {code} (see {})", log.display())),
            None => report.failed.push(format!("the guest did not come to its end (see {})", log.display())),
        }
        if verbose || !report.failed.is_empty() {
            println!("{}", boot.log);
        }
        println!(
            "{:<24} {:>3} passed {:>3} failed {:>3} skipped {:>6.1} s   Linux {}",
            config.full_name(),
            report.passed,
            report.failed.len(),
            report.skipped.len(),
            begin.elapsed().as_secs_f64(),
            kernel.release,
        );
        Ok(report)
    }

    fn disk(&self) -> PathBuf {
        self.cache.join("disk")
    }

    fn initramfs(&self, kernel: &Kernel, skipped: &mut Vec<String>) -> Outcome<PathBuf> {
        let mut archive = Archive::default();
        archive.device("dev/console", 0o600, 5, 1)?;
        for directory in ["proc", "sys", "tmp", "run", "new", "root", "var/lib", "etc"] {
            archive.directory(directory)?;
        }
        archive.file("bin/busybox", 0o755, &fs::read(&self.busybox)?)?;
        archive.link("init", "lab/lab-guest")?;
        for (index, module) in kernel.modules.iter().enumerate() {
            let name = module.file_name().unwrap_or_default().to_string_lossy().into_owned();
            archive.file(&format!("lab/modules/{index:02}-{name}"), 0o644, &fs::read(module)?)?;
        }
        let mut libraries = BTreeMap::new();
        for program in self.programs()? {
            let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
            archive.file(&format!("lab/{name}"), 0o755, &self.stripped(&program)?)?;
            libraries.extend(needed(&program)?);
        }
        for (name, path) in libraries {
            archive.file(name.trim_start_matches('/'), 0o755, &fs::read(path)?)?;
        }
        self.policies(&mut archive, skipped)?;
        let path = self.cache.join(format!("initramfs-{}", kernel.release));
        fs::write(&path, archive.finish()?)?;
        Ok(path)
    }

    fn programs(&self) -> Outcome<Vec<PathBuf>> {
        let wanted =
            |name: &str| (name == "yendor" || name == GUEST || name.starts_with("probe-")) && !name.contains('.');
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.programs)?.flatten() {
            if wanted(&entry.file_name().to_string_lossy()) {
                found.push(entry.path());
            }
        }
        found.sort();
        Ok(found)
    }

    /// The program without what only a debugger wants: a tenth of the size.
    fn stripped(&self, program: &Path) -> Outcome<Vec<u8>> {
        let Ok(strip) = parts::program("strip", "binutils") else { return Ok(fs::read(program)?) };
        let target = self.cache.join(format!("stripped-{}", std::process::id()));
        let status = Command::new(strip).arg("-o").arg(&target).arg(program).status()?;
        if !status.success() {
            return Err(format!("strip {}: {status}", program.display()).into());
        }
        let content = fs::read(&target)?;
        fs::remove_file(&target)?;
        Ok(content)
    }

    fn policies(&self, archive: &mut Archive, skipped: &mut Vec<String>) -> Outcome {
        let sources = workspace::root().join("tests/lab");
        let mut sources: Vec<PathBuf> = fs::read_dir(sources)?.flatten().map(|entry| entry.path()).collect();
        sources.sort();
        for source in sources {
            match parts::policy(&source, &self.cache.join("policy"))? {
                Ok(content) => {
                    let name = source.with_extension("bin");
                    let name = name.file_name().unwrap_or_default().to_string_lossy().into_owned();
                    archive.file(&format!("lab/policy/{name}"), 0o644, &content)?;
                }
                Err(Missing(why)) => skipped.push(format!("the policy {}: {why}", source.display())),
            }
        }
        Ok(())
    }
}

/// The shared libraries of a program: where the loader looks for them, and where they are.
fn needed(program: &Path) -> Outcome<Vec<(String, PathBuf)>> {
    let output = Command::new("ldd").arg(program).output().map_err(|error| format!("ldd: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let path = |line: &str| {
        let (_, path) = line.split_once("=>").unwrap_or(("", line));
        path.split_whitespace().next().filter(|path| path.starts_with('/')).map(str::to_owned)
    };
    Ok(text.lines().filter_map(path).map(|path| (path.clone(), path.into())).collect())
}

/// Lines `lab: pass NAME`, `lab: FAIL NAME`, `lab: skip NAME: WHY`.
fn read_report(log: &str) -> Report {
    let mut report = Report::default();
    for line in log.lines().filter_map(|line| line.trim_end().strip_prefix("lab: ")) {
        match line.split_once(' ') {
            Some(("pass", _)) => report.passed += 1,
            Some(("FAIL", name)) => report.failed.push(name.to_owned()),
            Some(("skip", what)) => report.skipped.push(what.to_owned()),
            _ => {}
        }
    }
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_read() {
        let log =
            "[    0.0] noise\nlab: pass one (1.2 s)\r\nlab: FAIL two (0.1 s)\nlab: skip three: no such thing\nx\n";
        let Report { passed, failed, skipped } = read_report(log);
        assert_eq!((passed, failed.len(), skipped), (1, 1, vec!["three: no such thing".to_owned()]));
    }
}
