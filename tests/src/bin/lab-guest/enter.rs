//! Starts a command with a label of its caller's choice, as a host's own tools would.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

/// Becomes the command, labelled.
pub fn enter(module: &str, label: &str, command: &[&str]) -> ExitCode {
    let Some((program, arguments)) = command.split_first() else { return ExitCode::from(2) };
    let (file, text) = match module {
        "apparmor" => ("/proc/self/attr/apparmor/exec", format!("exec {label}")),
        "tomoyo" => ("/sys/kernel/security/tomoyo/self_domain", label.to_owned()),
        "smack" => ("/proc/self/attr/smack/current", label.to_owned()),
        _ => ("/proc/self/attr/exec", label.to_owned()),
    };
    if let Err(error) = fs::write(file, &text) {
        eprintln!("{file}, {text}: {error}");
        return ExitCode::from(125);
    }
    let error = Command::new(program).args(arguments).exec();
    eprintln!("{program}: {error}");
    ExitCode::from(126)
}
