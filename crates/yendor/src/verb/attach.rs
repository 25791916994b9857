//! `yendor attach`: a container's terminal in the caller's.

use clap::Args;
use yendor_engine::state::Places;

use crate::failure::{Failure, Outcome};
use crate::terminal::End;
use crate::verb::wait;
use crate::{container, foreground, print};

/// Connect to the terminal of a container that was started with -t
///
/// ctrl-p ctrl-q leaves it again. When the container ends, this exits with its status.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  yendor run -d -t --name edit -- vim notes\n  yendor attach edit")]
pub struct Attach {
    /// The container
    container: String,
}

impl Attach {
    /// Runs it.
    pub fn run(self) -> Outcome {
        let places = Places::from_environment()?;
        let found = container::find_running(&places, &self.container)?;
        if !found.state.terminal {
            let what = format!("container {} has no terminal: it was started without -t", self.container);
            return Err(Failure::Failed(what));
        }
        match foreground::show_terminal(&found, false, true)? {
            End::Closed => wait::status(&found),
            End::Detached => {
                print::note(&format!("\ndetached from {0}; come back with: yendor attach {0}", self.container));
                Ok(0)
            }
        }
    }
}
