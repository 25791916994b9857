//! `yendor logs`: what a detached container has written.

use std::time::Duration;

use clap::Args;
use yendor_engine::state::Places;

use crate::container::{self, Now};
use crate::failure::{Failure, Outcome};
use crate::log::Log;

const PAUSE: Duration = Duration::from_millis(50);

/// Print what a detached container has written to its standard output and error
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  yendor logs -f web")]
pub struct Logs {
    /// Go on until the container ends
    #[arg(short, long)]
    follow: bool,
    /// The container
    container: String,
}

impl Logs {
    /// Runs it.
    pub fn run(self) -> Outcome {
        let found = container::find(&Places::from_environment()?, &self.container)?;
        let Some(mut log) = Log::open(&found.directory)? else {
            let what = format!("container {} has no log: it was not started with -d", self.container);
            return Err(Failure::Failed(what));
        };
        loop {
            // Asked before reading: what comes before the end is then read.
            let over = !self.follow || found.now() != Now::Running;
            if !log.print()? {
                // The reader has seen enough.
                return Ok(0);
            }
            if over {
                return Ok(0);
            }
            std::thread::sleep(PAUSE);
        }
    }
}
