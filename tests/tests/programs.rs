//! Real programs: each is run, checkpointed, killed, restored, and asked whether it still has everything.

use std::path::Path;
use std::time::Duration;

use yendor_tests::{Flavour, Yendor};

const START: Duration = Duration::from_secs(40);

/// A script of `tests/programs` says "ready", is checkpointed in the middle of its work, restored, and asked with SIGUSR1.
#[track_caller]
fn goes_on(flavour: Flavour, script: &str, interpreter: &str, arguments: &[&str]) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs").join(script);
    let text = std::fs::read_to_string(&path).expect("script");
    let (first, second) = (yendor.fresh("a"), yendor.fresh("b"));
    // The script's text as an argument: the account may not be able to read the file's directory.
    let mut command = vec![interpreter, "-c", text.as_str()];
    if interpreter.ends_with("bash") {
        command.push(script);
    }
    command.extend(arguments);
    yendor.run_detached(&first, &command);
    yendor.wait_for_log(&first, "ready", START);
    let image = yendor.path("image");
    yendor.checkpoint(&first, &image);
    // Twice from one image, one after the other.
    for name in [&second, &yendor.fresh("c")] {
        yendor.restore(&image, name);
        std::thread::sleep(Duration::from_millis(300));
        yendor.kill(name, "USR1");
        assert_eq!(yendor.wait(name), 0, "{}", yendor.logs(name));
        assert!(yendor.logs(name).lines().any(|l| l == "ok"), "{}", yendor.logs(name));
    }
}

/// Whether a program of the system is there; says so when not.
fn has(program: &str) -> bool {
    let there = ["/usr/bin", "/usr/sbin", "/bin"].iter().any(|dir| Path::new(dir).join(program).exists());
    if !there {
        yendor_tests::skipped(&format!("{program}: not installed"));
    }
    there
}

macro_rules! programs {
    ($($name:ident $program:literal $script:literal $interpreter:literal [$($argument:literal)*];)*) => {
        $(mod $name {
            use super::*;
            #[test]
            fn userns() { if has($program) { goes_on(Flavour::RootUserns, $script, $interpreter, &[$($argument),*]) } }
            #[test]
            fn user() { if has($program) { goes_on(Flavour::user(), $script, $interpreter, &[$($argument),*]) } }
        })*
    };
}

programs! {
    redis "redis-server" "redis.py" "/usr/bin/python3" ["1000000"];
    nginx "nginx" "nginx.py" "/usr/bin/python3" [];
    python "python3" "python.py" "/usr/bin/python3" [];
    shell "bash" "job.sh" "/bin/bash" [];
}
