//! `yendor generate`: man pages and shell completions, from the very declaration that parses the command line.

use std::fs;
use std::path::{Path, PathBuf};

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::cli::Cli;
use crate::failure::{Failure, Outcome};
use crate::print;

/// Write man pages and shell completions into a directory
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  yendor generate /tmp/docs && man /tmp/docs/man/yendor-run.1")]
pub struct Generate {
    /// Where; made if it is not there
    directory: PathBuf,
}

const SHELLS: [Shell; 3] = [Shell::Bash, Shell::Zsh, Shell::Fish];

impl Generate {
    /// Runs it.
    pub fn run(self) -> Outcome {
        let (man, completions) = (self.directory.join("man"), self.directory.join("completions"));
        for directory in [&man, &completions] {
            fs::create_dir_all(directory).map_err(|e| Failure::io("mkdir", directory, &e))?;
        }
        let mut command = Cli::command();
        // Names of verbs in full, as they are typed.
        command.build();
        page(&command, "yendor", &man)?;
        for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set() && verb.get_name() != "help") {
            page(verb, &format!("yendor-{}", verb.get_name()), &man)?;
        }
        for shell in SHELLS {
            let made = clap_complete::generate_to(shell, &mut Cli::command(), "yendor", &completions);
            made.map_err(|e| Failure::io("write", &completions, &e))?;
        }
        print::out(&self.directory.display().to_string());
        Ok(0)
    }
}

fn page(command: &clap::Command, name: &str, directory: &Path) -> Result<(), Failure> {
    let path = directory.join(format!("{name}.1"));
    let mut text = Vec::new();
    let page = clap_mangen::Man::new(command.clone()).title(name.to_uppercase()).manual("Yendor");
    page.render(&mut text).and_then(|()| fs::write(&path, text)).map_err(|e| Failure::io("write", &path, &e))
}
