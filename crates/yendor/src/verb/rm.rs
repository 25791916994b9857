//! `yendor rm`: a container and all that is kept of it goes.

use std::path::Path;
use std::time::Duration;

use clap::Args;
use yendor_engine::claim;
use yendor_engine::state::{self, Places};

use crate::container::{self, Found, Now};
use crate::failure::{Failure, Outcome};
use crate::name;
use crate::verb::start;

const PATIENCE: Duration = Duration::from_secs(10);

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
        let places = Places::from_environment();
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
        container::remove(&found.directory)?;
        Ok(0)
    }

    /// A directory of a container without a state that can be read.
    fn clear_up(&self, directory: &Path, why: Failure) -> Outcome {
        let stateless = directory.exists() && !directory.join(state::FILE).exists();
        if stateless && !claim::is_left_over(directory) {
            return Err(Failure::Failed(format!("container {} is being started", self.container)));
        }
        // What a killed start has left goes; with force also what nobody understands.
        if stateless || self.force && directory.exists() {
            container::remove(directory)?;
            return Ok(0);
        }
        Err(why)
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
