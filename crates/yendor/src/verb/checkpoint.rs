//! `yendor checkpoint`: a container or a process tree becomes an image.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;
use yendor_engine::checkpoint::{Options, Summary, Target, Wanted, checkpoint};
use yendor_engine::sign::Signer;
use yendor_engine::state::{CHECKPOINT, Places};
use yendor_image::Compression;
use yendor_image::crypt::Recipients;
use yendor_kinds::LOSABLE;

use crate::container::{self, Found};
use crate::failure::{Failure, Outcome};
use crate::reference::{self, Image, Reference};
use crate::{cli, name, parse, print, progress};

/// Write a container or process tree into an image
///
/// Its tasks end once the image is safely stored, unless they are to be left. On any failure they run on and no image
/// is left. Commands of `yendor exec` stand still meanwhile and are in no image.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  yendor checkpoint web\n  yendor checkpoint web -o ./web.image --leave-running\n  \
    yendor checkpoint --pid 4711 -o ./tree.image\n  \
    yendor checkpoint web --leave-running --parent web\n  \
    yendor checkpoint web --leave-running --rounds auto\n  \
    yendor checkpoint web --encrypt-to age1...\n  \
    yendor checkpoint web --compress zstd:1")]
#[command(group = clap::ArgGroup::new("target").required(true))]
pub struct Checkpoint {
    /// The container
    #[arg(group = "target")]
    container: Option<String>,
    /// The process tree below this pid, whether or not Yendor started it
    #[arg(long, value_name = "PID", group = "target", value_parser = clap::value_parser!(i32).range(1..))]
    pid: Option<i32>,
    /// Where to make the image; without it, in the store
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Let the tasks run on afterwards
    #[arg(long, conflicts_with = "leave_stopped")]
    leave_running: bool,
    /// Memory that copies of the tasks may take while they run on, in bytes (K, M, G, T); else what the machine has to
    /// spare. What is more is read while they stand still
    #[arg(long, value_name = "BYTES", value_parser = parse::size_or_none, requires = "leave_running")]
    max_extra_memory: Option<u64>,
    /// An earlier image: memory that it has already is not written again, its files become the new image's, too. Either image
    /// can be removed then
    #[arg(long, value_name = "IMAGE", conflicts_with = "encrypt_to")]
    parent: Option<Reference>,
    /// Track from now on which memory is written: the next checkpoint has this image as its parent, if no other is given, and reads
    /// and writes what has changed only (see docs/adr/0011 for what the program can see of that)
    #[arg(long, requires = "leave_running", conflicts_with_all = ["encrypt_to", "pid"])]
    track: bool,
    /// Write all memory, also where it was tracked since an earlier image
    #[arg(long, conflicts_with = "parent")]
    no_parent: bool,
    /// Compare what was tracked and not written with the parent all the same; if anything differs, there is no image
    #[arg(long)]
    verify_delta: bool,
    /// Read memory while the tasks still run: all of it, then what they have written meanwhile, so many times, or until little
    /// is left (auto). They are stopped for the rest only
    #[arg(long, value_name = "N|auto", value_parser = parse::rounds, conflicts_with = "encrypt_to")]
    rounds: Option<Wanted>,
    /// Leave the tasks stopped (SIGSTOP)
    #[arg(long)]
    leave_stopped: bool,
    /// Accept the loss of this kind of object, a connection that leads outside for one; the image records what was lost
    #[arg(long, value_name = "KIND", value_parser = clap::builder::PossibleValuesParser::new(LOSABLE))]
    allow_lost: Vec<String>,
    /// Sign the image with this minisign secret key (a file without a password)
    #[arg(long, value_name = "KEY")]
    sign: Option<PathBuf>,
    /// Encrypt the image so that only the owner of this key of age (age1...) can open it; several: any of them
    #[arg(long, value_name = "RECIPIENT")]
    encrypt_to: Vec<String>,
    /// Compress the image's files: lz4, zstd or zstd:LEVEL (1 to 19; 3 when none is given). A restore decodes all of it into memory
    /// first, so it pays where the disk is slow or small
    #[arg(long, value_name = "lz4|zstd[:LEVEL]", value_parser = parse::compression, conflicts_with_all = ["track", "rounds"])]
    compress: Option<Compression>,
    /// Print the summary as JSON
    #[arg(long)]
    pub json: bool,
}

impl Checkpoint {
    /// Runs it.
    pub fn run(self) -> Outcome {
        let sign = self.sign.as_deref().map(signer).transpose()?;
        let encrypt_to = if self.encrypt_to.is_empty() { None } else { Some(recipients(&self.encrypt_to)?) };
        let places = Places::from_environment()?;
        let found = self.container.as_deref().map(|name| container::find_running(&places, name)).transpose()?;
        let parent = self.parent.as_ref().map(|parent| reference::find(&places, parent)).transpose()?;
        let alone = found.as_ref().map(|found| alone(&found.directory)).transpose()?;
        let image = self.image(&places)?;
        if let Some(Some(lock)) = &alone {
            // For its keeper, which tells those who wait for it.
            let ends = !self.leave_running && !self.leave_stopped;
            let name = if ends { image.reference.to_string() } else { String::new() };
            // What cannot be said is not known then.
            let _ = lock.set_len(0).and_then(|()| lock.write_all_at(name.as_bytes(), 0));
        }
        let keeper = match &found {
            Some(found) => found.keeper()?,
            None => None,
        };
        let options = Options {
            leave_running: self.leave_running,
            max_extra_memory: self.max_extra_memory,
            parent: parent.map(|image| image.path),
            no_parent: self.no_parent,
            track: self.track,
            verify_delta: self.verify_delta,
            rounds: self.rounds,
            sign,
            encrypt_to,
            compress: self.compress,
            leave_stopped: self.leave_stopped,
            allow_lost: self.allow_lost.clone(),
            watcher: progress::watcher("copied", true),
            hung: Some(if self.json { |e| cli::fail(&e.into(), true) } else { |e| cli::fail(&e.into(), false) }),
        };
        let begin = Instant::now();
        let result = checkpoint(&self.target(found)?, &image.path, &options);
        let total = print::since(begin);
        let mut summary = result.inspect_err(|_| forget_empty(&image))?;
        if self.verify_delta && !self.track && summary.spared.verified == 0 {
            summary.notes.push(
                "--verify-delta has compared nothing: nothing was spared that was tracked since an earlier image"
                    .into(),
            );
        }
        if let (None, Some(seal)) = (&self.container, summary.seal)
            && let Err(e) = places.note_tree(seal)
        {
            print::note(&format!("note: to restore it, say --rootfs / ({}: {e})", places.trees.display()));
        }
        if let Some(keeper) = keeper.filter(|_| !self.leave_running && !self.leave_stopped) {
            // When we return, the container is gone in every eye.
            container::ended(&keeper, Some(Duration::from_secs(10)))?;
        }
        self.report(&image, &summary, total);
        Ok(0)
    }

    fn target(&self, found: Option<Found>) -> Result<Target, Failure> {
        match (found, self.pid) {
            (Some(found), _) => Ok(Target::Container(found.state, found.directory)),
            (None, Some(pid)) if container::Stat::of(pid).is_some() => Ok(Target::Tree(pid)),
            (None, Some(pid)) => Err(Failure::Failed(format!("there is no process {pid}"))),
            (None, None) => Err(Failure::Usage("give a container or --pid".into())),
        }
    }

    fn image(&self, places: &Places) -> Result<Image, Failure> {
        if let Some(path) = &self.output {
            return reference::vacant(path);
        }
        let name = self.container.clone().unwrap_or_else(|| format!("pid-{}", self.pid.unwrap_or(0)));
        debug_assert!(name::is_valid(&name));
        reference::next(places, &name)
    }

    fn report(&self, image: &Image, summary: &Summary, total: u64) {
        let Summary { timings, stopped_us, bytes, read_later, shared, not_copied, tasks, files, lost, .. } = summary;
        let Summary { rounds, not_tracked, spared, tracked, notes, content, .. } = summary;
        if self.json {
            let mut phases = print::phases_json(timings);
            phases.insert("stopped_us".into(), json!(stopped_us));
            let text = json!({
                "phases": phases, "total_us": total, "image": image.reference.to_string(),
                "path": image.path.to_string_lossy(), "name": self.container, "pid": self.pid, "bytes": bytes,
                "content": content, "compress": self.compress.map(|how| how.to_string()),
                "read_later": read_later, "shared": shared, "unread": spared.unread, "verified": spared.verified,
                "tracked": tracked, "notes": notes,
                "not_copied": reasons(not_copied), "not_tracked": reasons(not_tracked),
                "rounds": rounds.iter().map(|r| json!({ "bytes": r.bytes, "us": r.us })).collect::<Vec<_>>(),
                "tasks": tasks, "files": files, "lost": lost,
            });
            print::out(&text.to_string());
            return;
        }
        for note in notes {
            print::note(&format!("note: {}", print::safe(note)));
        }
        if let (true, Some(container)) = (self.leave_stopped, &self.container) {
            print::note(&format!("its processes are stopped: `yendor kill --all -s CONT {container}` lets them go on"));
        }
        for (kind, object) in lost {
            print::note(&format!("lost: {kind}: {}", print::safe(object)));
        }
        for (task, why) in not_tracked {
            let what = if self.track { "is not tracked" } else { "was not read before it was stopped" };
            print::note(&format!("task {task} {what}: {why}"));
        }
        for (task, why) in not_copied {
            print::note(&format!("task {task} was read while it stood still: {why}"));
        }
        let (size, time, stopped) = (print::bytes(*bytes), print::micros(total), print::micros(*stopped_us));
        // Encryption makes it a little larger, which is nobody's concern.
        let size = if content > bytes { format!("{size} for {}", print::bytes(*content)) } else { size };
        let phases = print::phases(timings);
        let before = match shared {
            0 => String::new(),
            bytes => format!(" ({} as before)", print::bytes(*bytes)),
        };
        let later = match read_later {
            0 => String::new(),
            bytes => format!("; {} read while it ran", print::bytes(*bytes)),
        };
        let read: Vec<String> = rounds.iter().map(|round| print::bytes(round.bytes)).collect();
        let later = match spared.unread {
            0 => later,
            bytes => format!("{later}; {} not written since, and not read", print::bytes(bytes)),
        };
        let early = if read.is_empty() { String::new() } else { format!("; {} read before", read.join(" + ")) };
        print::note(&format!(
            "{}, {}, {size}{before} in {time} ({phases}; stopped {stopped}{early}{later})",
            print::count(*tasks, "task"),
            print::count(*files, "file")
        ));
        print::out(&image.reference.to_string());
    }
}

/// Tasks, and why something was not done for them.
fn reasons(all: &[(i32, impl std::fmt::Display)]) -> Vec<serde_json::Value> {
    all.iter().map(|(task, why)| json!({ "task": task, "why": why.to_string() })).collect()
}

/// One checkpoint of a container at a time: others wait, for as long as that is sensible.
fn alone(directory: &Path) -> Result<Option<File>, Failure> {
    const PATIENCE: Duration = Duration::from_secs(600);
    let path = directory.join(CHECKPOINT);
    let lock = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
    // Who may not write there is told by the checkpoint itself what it may not do.
    let Ok(lock) = lock else { return Ok(None) };
    let begin = Instant::now();
    while begin.elapsed() < PATIENCE {
        match lock.try_lock() {
            Ok(()) => return Ok(Some(lock)),
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(20)),
            Err(TryLockError::Error(e)) => return Err(Failure::io("flock", &path, &e)),
        }
    }
    Err(Failure::Failed("another checkpoint of this container does not end".into()))
}

/// Reads a secret key; nothing of it is ever shown.
pub fn signer(path: &Path) -> Result<Signer, Failure> {
    let text = std::fs::read_to_string(path).map_err(|e| Failure::io("open", path, &e))?;
    Signer::parse(&text).map_err(|why| Failure::Usage(format!("--sign {}: {why}", path.display())))
}

fn recipients(given: &[String]) -> Result<Recipients, Failure> {
    Recipients::parse(given).map_err(|why| Failure::Usage(format!("--encrypt-to: {why}")))
}

/// A name in the store that has no image yet goes again.
fn forget_empty(image: &Image) {
    if let (Reference::Stored(..), Some(parent)) = (&image.reference, image.path.parent()) {
        // Refused where it is not empty, as it should be.
        let _ = std::fs::remove_dir(parent);
    }
}
