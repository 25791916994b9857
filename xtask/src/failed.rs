//! What failed in a run of `cargo test`: said again at the end, where it is looked for.

use std::io::{self, BufRead, Write};

/// Lines of a test's output that are said again: from its beginning, and up to its end.
const HEAD: usize = 12;
const TAIL: usize = 28;

/// Tests that failed, each with what it printed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Failed(Vec<(String, Vec<String>)>);

impl Failed {
    /// Passes a run's output on, line by line, and keeps what the harness says about failures.
    ///
    /// # Errors
    /// Reading or writing fails.
    pub fn listen(from: impl BufRead, mut to: impl Write) -> io::Result<Self> {
        let mut failed = Vec::new();
        let (mut section, mut backtrace) = (false, false);
        for line in from.split(b'\n') {
            let line = line?;
            to.write_all(&line)?;
            to.write_all(b"\n")?;
            let line = String::from_utf8_lossy(&line).into_owned();
            if let Some(name) = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----")) {
                failed.push((name.to_owned(), Vec::new()));
                (section, backtrace) = (true, false);
            } else if line == "stack backtrace:" || backtrace {
                // Of a harness that panics on purpose: it would push the reason out of the two ends.
                backtrace = !line.starts_with("note: ");
            } else if line == "failures:" || line.starts_with("test result:") {
                section = false;
            } else if let Some((_, lines)) = failed.last_mut().filter(|_| section) {
                lines.push(line);
            }
        }
        Ok(Self(failed))
    }

    /// Prints every test's name, and the two ends of what it printed.
    pub fn print(&self) {
        for (name, lines) in &self.0 {
            println!("\n-- failed: {name}");
            let cut = lines.len().saturating_sub(TAIL).max(HEAD.min(lines.len()));
            let head = &lines[..cut.min(HEAD)];
            for line in head {
                println!("   {line}");
            }
            if cut > head.len() {
                println!("   [{} lines]", cut - head.len());
            }
            for line in &lines[cut..] {
                println!("   {line}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_failed_test_printed_is_kept() {
        let said = "\nrunning 2 tests\ntest a ... ok\ntest b::root ... FAILED\n\nfailures:\n\n---- b::root stdout ----\nwhy\n\
                    stack backtrace:\n   0: it\n             at lib.rs:1\nnote: Some details are omitted\nmore\n\n\nfailures:\n    b::root\n\ntest result: FAILED. 1 passed; 1 failed\n\nrunning 0 tests\n";
        let mut passed_on = Vec::new();
        let failed = Failed::listen(said.as_bytes(), &mut passed_on).expect("memory");
        assert_eq!(passed_on, said.as_bytes());
        let lines = ["why", "more", "", ""].map(str::to_owned).to_vec();
        assert_eq!(failed, Failed(vec![("b::root".to_owned(), lines)]));
    }
}
