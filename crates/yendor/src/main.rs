//! The command. Every verb is a file of [`verb`]; what several need lies beside it.

mod caller;
mod cli;
mod container;
mod failure;
mod foreground;
mod hidden;
mod log;
mod modes;
mod name;
mod options;
mod parse;
mod print;
mod progress;
mod reference;
mod signal;
mod terminal;
mod verb;

use std::process::ExitCode;

fn main() -> ExitCode {
    if hidden::is_keeper() {
        yendor_engine::front::keeper_main()
    }
    if hidden::is_outer() {
        yendor_engine::front::outer_main()
    }
    if hidden::is_peer() {
        return yendor_engine::collect::peer::main();
    }
    cli::run()
}
