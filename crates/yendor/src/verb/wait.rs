//! `yendor wait`: until a container ends.

use clap::Args;
use yendor_engine::state::{Places, Status};

use crate::container::{self, Found, Now};
use crate::failure::{Failure, Outcome};

/// Wait until a container ends, and exit with its status
///
/// One that a checkpoint ends has none: that is said, and the exit code is 1, as of `run`, `restore` and `attach`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  yendor wait job && echo done")]
pub struct Wait {
    /// The container
    container: String,
}

impl Wait {
    /// Runs it.
    pub fn run(self) -> Outcome {
        status(&container::find(&Places::from_environment()?, &self.container)?)
    }
}

/// The exit code of a container that has ended or will. Its directory may be gone by then.
pub fn status(found: &Found) -> Outcome {
    if found.now() == Now::Running
        && let Some(keeper) = found.keeper()?
    {
        container::ended(&keeper, None)?;
    }
    let (name, last) = (&found.state.name, found.last());
    if let Some(failure) = &last.failure {
        return Err(yendor_engine::Error::from(failure.clone()).into());
    }
    match last.status {
        Status::Exited(status) => Ok(container::exit_code(status)),
        Status::Checkpointed => Err(container::checkpointed(&last)),
        Status::Running => {
            Err(Failure::Failed(format!("container {name} has lost its keeper: its status is not known")))
        }
    }
}
