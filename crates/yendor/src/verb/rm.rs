//! `yendor rm`: a container and all that is kept of it goes.

use std::io::ErrorKind;
use std::path::Path;
use std::time::{Duration, Instant};

use clap::Args;
use yendor_engine::claim;
use yendor_engine::state::{self, Places};

use crate::container::{self, Found, Now};
use crate::failure::{Failure, Outcome};
use crate::name;
use crate::verb::start;

const PATIENCE: Duration = Duration::from_secs(10);
const BUSY: Duration = Duration::from_secs(1);

/// Remove a container that has ended, with its private files and its log
///
/// Images that were made of it stay.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  yendor rm -f web")]
pub struct Rm {
    /// End it first if it runs
    #[arg(short, long)]
    force: bool,
    /// The container
    container: String,
}

impl Rm {
    /// Runs it.
    pub fn run(self) -> Outcome {
        let places = Places::from_environment()?;
        let found = match container::find(&places, &self.container) {
            Ok(found) => found,
            Err(e) if name::is_valid(&self.container) => return self.clear_up(&places.container(&self.container), e),
            Err(e) => return Err(e),
        };
        if found.now() == Now::Running && !self.force {
            let what = format!("container {0} runs\n  hint: yendor rm -f {0} ends it first", self.container);
            return Err(Failure::Failed(what));
        }
        end(&found)?;
        for path in &found.state.cgroups {
            forget_cgroup(path)?;
        }
        container::remove(&found.directory)?;
        Ok(0)
    }

    /// A directory of a container without a state that can be read.
    fn clear_up(&self, directory: &Path, why: Failure) -> Outcome {
        let stateless = directory.exists() && !directory.join(state::FILE).exists();
        if stateless && !claim::is_left_over(directory) {
            return Err(Failure::Failed(format!(
                "container {} is being started, or {} is not one of ours",
                self.container,
                directory.display()
            )));
        }
        // What a killed start has left goes; with force also what nobody understands.
        if stateless || self.force && directory.exists() {
            container::remove(directory)?;
            return Ok(0);
        }
        Err(why)
    }
}

/// Removes a cgroup that its keeper has left behind. Never one that is not Yendor's, nor one that somebody is in.
fn forget_cgroup(path: &Path) -> Result<(), Failure> {
    let ours = path.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with("yendor-"));
    if !ours {
        return Ok(());
    }
    let begin = Instant::now();
    loop {
        match std::fs::remove_dir(path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            // Its last task may not be quite gone.
            Err(e) if e.kind() == ErrorKind::ResourceBusy && begin.elapsed() < BUSY => {
                std::thread::sleep(Duration::from_millis(5));
            }
            other => return other.map_err(|e| Failure::io("rmdir", path, &e)),
        }
    }
}

/// Ends a container, if it has not, and waits for its keeper's last word.
pub fn end(found: &Found) -> Result<(), Failure> {
    let keeper = found.keeper()?;
    start::kill_init(found)?;
    match keeper {
        Some(keeper) if !container::ended(&keeper, Some(PATIENCE))? => {
            Err(Failure::Failed(format!("container {} does not end within {PATIENCE:?}", found.state.name)))
        }
        _ => Ok(()),
    }
}
