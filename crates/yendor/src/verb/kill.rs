//! `yendor kill`: a signal for a container's root task.

use clap::Args;
use yendor_engine::state::Places;

use crate::failure::{Failure, Outcome};
use crate::{container, signal};

/// Send a signal to the root task of a container
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  yendor kill web\n  yendor kill -s HUP web")]
pub struct Kill {
    /// By name or number: TERM, SIGUSR1, 9, RTMIN+1
    #[arg(short, long, value_name = "SIGNAL", default_value = "TERM", value_parser = signal::parse)]
    signal: i32,
    /// The container
    container: String,
}

impl Kill {
    /// Runs it.
    pub fn run(self) -> Outcome {
        let found = container::find_running(&Places::from_environment()?, &self.container)?;
        let gone = || Failure::Failed(format!("container {} has ended", self.container));
        let main = found.main()?.ok_or_else(gone)?;
        if container::send(&main, self.signal)? { Ok(0) } else { Err(gone()) }
    }
}
