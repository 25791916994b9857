//! `yendor logs`: what a detached container has written.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::time::Duration;

use clap::Args;
use yendor_engine::state::Places;

use crate::container::{self, Now};
use crate::failure::{Failure, Outcome};

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
        let path = found.directory.join("log");
        let mut log = match File::open(&path) {
            Ok(log) => log,
            Err(e) if e.kind() == ErrorKind::NotFound => {
                let what = format!("container {} has no log: it was not started with -d", self.container);
                return Err(Failure::Failed(what));
            }
            Err(e) => return Err(Failure::io("open", &path, &e)),
        };
        let mut buffer = vec![0; 64 << 10];
        loop {
            // Asked before reading: what comes before the end is then read.
            let over = !self.follow || found.now() != Now::Running;
            loop {
                let got = log.read(&mut buffer).map_err(|e| Failure::io("read", &path, &e))?;
                let Some(bytes) = buffer.get(..got).filter(|b| !b.is_empty()) else { break };
                match std::io::stdout().write_all(bytes).and_then(|()| std::io::stdout().flush()) {
                    Ok(()) => {}
                    // The reader has seen enough.
                    Err(e) if e.kind() == ErrorKind::BrokenPipe => return Ok(0),
                    Err(e) => return Err(Failure::Failed(format!("write to standard output: {e}"))),
                }
            }
            if over {
                return Ok(0);
            }
            std::thread::sleep(PAUSE);
        }
    }
}
