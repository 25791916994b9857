//! `yendor kill`: a signal for a container's root task, or for all of its processes.

use std::collections::BTreeSet;

use clap::Args;
use yendor_engine::state::Places;

use crate::failure::{Failure, Outcome};
use crate::{container, signal};

/// Send a signal to the root task of a container, or to all of its processes
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  yendor kill web\n  yendor kill -s HUP web\n  yendor kill --all -s CONT web")]
pub struct Kill {
    /// By name or number: TERM, SIGUSR1, 9, RTMIN+1
    #[arg(short, long, value_name = "SIGNAL", default_value = "TERM", value_parser = signal::parse)]
    signal: i32,
    /// To all its processes but those of `exec`: with -s CONT they go on after checkpoint --leave-stopped
    #[arg(short, long)]
    all: bool,
    /// The container
    container: String,
}

impl Kill {
    /// Runs it.
    pub fn run(self) -> Outcome {
        let found = container::find_running(&Places::from_environment()?, &self.container)?;
        let gone = || Failure::Failed(format!("container {} has ended", self.container));
        let main = found.main()?.ok_or_else(gone)?;
        if self.all {
            self.send_to_all(found.state.init)?;
            return Ok(0);
        }
        if container::send(&main, self.signal)? { Ok(0) } else { Err(gone()) }
    }

    /// Parents before children, until there is none that has not got it: one may fork before it does.
    fn send_to_all(&self, init: i32) -> Result<(), Failure> {
        let mut sent = BTreeSet::new();
        loop {
            let new: Vec<i32> =
                container::descendants(init).into_iter().skip(1).filter(|pid| !sent.contains(pid)).collect();
            if new.is_empty() {
                return Ok(());
            }
            for pid in new {
                if let Some(pidfd) = container::open_process(pid)?.filter(|_| descends(pid, init)) {
                    container::send(&pidfd, self.signal)?;
                }
                sent.insert(pid);
            }
        }
    }
}

/// Whether a process that is held by its pidfd is still one of the container's: its number may have been another's.
fn descends(pid: i32, init: i32) -> bool {
    let mut at = pid;
    while let Some(stat) = container::Stat::of(at) {
        if stat.parent == init {
            return true;
        }
        at = stat.parent;
    }
    false
}
