//! `yendor rm`: a container and all that is kept of it goes.

use std::time::Duration;

use clap::Args;
use yendor_engine::state::Places;

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
            // A start that was killed may leave a directory without a state.
            Err(_) if self.force && name::is_valid(&self.container) && places.container(&self.container).exists() => {
                container::remove(&places.container(&self.container))?;
                return Ok(0);
            }
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
