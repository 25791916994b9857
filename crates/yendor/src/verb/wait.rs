//! `yendor wait`: until a container ends.

use clap::Args;
use yendor_engine::state::Places;

use crate::container::{self, Now};
use crate::failure::{Failure, Outcome};

/// Wait until a container ends, and exit with its status
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  yendor wait job && echo done")]
pub struct Wait {
    /// The container
    container: String,
}

impl Wait {
    /// Runs it.
    pub fn run(self) -> Outcome {
        status(&Places::from_environment()?, &self.container)
    }
}

/// The exit code of a container that has ended or will.
pub fn status(places: &Places, name: &str) -> Outcome {
    let mut found = container::find(places, name)?;
    if found.now() == Now::Running {
        if let Some(keeper) = found.keeper()? {
            container::ended(&keeper, None)?;
        }
        found = container::find(places, name)?;
    }
    if let Some(failure) = found.state.failure {
        return Err(yendor_engine::Error::from(failure).into());
    }
    match found.now() {
        Now::Exited(status) => Ok(container::exit_code(status)),
        Now::Checkpointed => Err(Failure::Failed(format!("container {name} was checkpointed: it has no status"))),
        Now::Lost | Now::Running => {
            Err(Failure::Failed(format!("container {name} has lost its keeper: its status is not known")))
        }
    }
}
