//! What a command answers about what has gone or is not there: statuses of containers that nobody finds any more, images that there are not,
//! words that nobody knows.

use std::path::Path;
use std::time::Duration;

use yendor_tests::{Flavour, Outcome, PATIENCE, Started, Terminal, Yendor, wait_until};

const SOON: Duration = Duration::from_secs(30);

yendor_tests::root_and_user! {
    a_container_that_removes_itself_leaves_its_status_to_those_who_wait
}

fn utf8(path: &Path) -> &str {
    path.to_str().expect("paths of tests are UTF-8")
}

#[track_caller]
fn says(outcome: &Outcome, words: &str) {
    assert!(outcome.stderr.contains(words), "`{}` does not say {words:?}: {}", outcome.command, outcome.stderr);
}

fn a_container_that_removes_itself_leaves_its_status_to_those_who_wait(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let name = yendor.fresh("brief");
    for _ in 0..3 {
        yendor.run_detached_with(&name, &["--rm"], &["sh", "-c", "sleep 0.3; exit 8"]).exits(0);
        yendor.call(&["wait", &name]).exits(8);
        let gone = || !yendor.path("state/run").join(&name).exists();
        assert!(wait_until(SOON, gone), "it is there still");
    }
    yendor.run_detached_with(&name, &["--rm", "-t"], &["sh", "-c", "echo rea''dy; read line; exit 9"]).exits(0);
    let mut terminal = Terminal::new(25, 80);
    let mut attach = terminal.start(&mut yendor.command(&["attach", &name]));
    terminal.write("on\r");
    assert_eq!(attach.ended(PATIENCE).map(Started::code), Some(9), "{}", terminal.text());
}
