//! `yendor run -t`, `restore` and `attach` as a person sees them: in a terminal of tmux, outside of the container.

use std::path::Path;
use std::time::Duration;

use yendor_tests::{Flavour, Yendor, skipped, wait_until, yendor_binary};

const TMUX: &str = "/usr/bin/tmux";
const PATIENCE: Duration = Duration::from_secs(40);

/// A terminal with a shell of the account in it.
struct Terminal<'y> {
    yendor: &'y Yendor,
    socket: String,
}

impl<'y> Terminal<'y> {
    fn open(yendor: &'y Yendor) -> Self {
        let socket = yendor.path("tmp/tmux").to_str().expect("paths of tests are UTF-8").to_owned();
        let terminal = Self { yendor, socket };
        terminal.tmux(&["new-session", "-d", "-x", "80", "-y", "24", "PS1='out> ' bash --norc --noprofile"]);
        terminal.shows("out>");
        terminal
    }

    fn tmux(&self, words: &[&str]) -> String {
        let mut command = self.yendor.program(Path::new(TMUX));
        command.args(["-S", &self.socket, "-f", "/dev/null"]).args(words).env("LANG", "C.UTF-8");
        let output = command.output().expect("tmux runs");
        assert!(output.status.success(), "tmux {words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn keys(&self, keys: &[&str]) {
        self.tmux(&[&["send-keys"], keys].concat());
    }

    /// A command of ours, typed.
    fn types(&self, arguments: &str) {
        self.keys(&[&format!("clear; {} {arguments}", yendor_binary().display()), "Enter"]);
    }

    /// Characters, colours, and where the cursor is.
    fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p", "-e"]) + &self.tmux(&["display-message", "-p", "#{cursor_x},#{cursor_y}"])
    }

    #[track_caller]
    fn shows(&self, text: &str) {
        let there = wait_until(PATIENCE, || self.screen().contains(text));
        assert!(there, "no `{text}` on the screen:\n{}", self.screen());
    }

    #[track_caller]
    fn looks_like(&self, before: &str) {
        let same = wait_until(PATIENCE, || self.screen() == before);
        assert!(same, "the screen is\n{}\ninstead of\n{before}", self.screen());
    }
}

impl Drop for Terminal<'_> {
    fn drop(&mut self) {
        // If it does not answer, what it has started is killed with all the rest.
        let mut command = self.yendor.program(Path::new(TMUX));
        let _ = command.args(["-S", &self.socket, "kill-server"]).output();
    }
}

fn an_edit_and_a_job_go_on(flavour: Flavour) {
    if !Path::new(TMUX).exists() {
        return skipped("tmux is not there: terminals cannot be looked at");
    }
    let Some(yendor) = Yendor::new(flavour) else { return };
    let terminal = Terminal::open(&yendor);
    let [first, second, third] = [yendor.fresh("a"), yendor.fresh("b"), yendor.fresh("c")];
    let mark = yendor.mark();
    terminal.types(&format!("run -t -e {mark} --name {first} -- bash --norc --noprofile"));
    terminal.shows("bash-");
    terminal.keys(&["PS1='in> '", "Enter"]);
    terminal.shows("\nin>");
    terminal.keys(&["sleep 1000 & vim -n -u DEFAULTS -i NONE /tmp/letter", "Enter"]);
    terminal.shows("\"/tmp/letter\" [New");
    terminal.keys(&["ian unsaved"]);
    terminal.shows("an unsaved");
    let before = terminal.screen();

    let image = yendor.path("image");
    yendor.checkpoint(&first, &image);
    let image = image.display();
    terminal.keys(&["clear", "Enter"]);
    terminal.types(&format!("restore {image} --name {second}; echo code $?"));
    terminal.looks_like(&before);
    terminal.keys(&[" edit", "Escape", ":wq", "Enter"]);
    terminal.shows("in>");
    terminal.keys(&["clear; cat /tmp/letter; jobs; stty size", "Enter"]);
    for text in ["an unsaved edit\n", "Running", "24 80\n"] {
        terminal.shows(text);
    }
    terminal.keys(&["kill %1; exit 7", "Enter"]);
    terminal.shows("code 7");

    // Once more from the same image, in the background; then somebody comes, leaves, and comes again.
    yendor.restore(Path::new(&image.to_string()), &third);
    for _ in 0..2 {
        terminal.types(&format!("attach {third}"));
        terminal.looks_like(&before);
        terminal.keys(&["C-p", "C-q"]);
        terminal.shows("detached from");
    }
    terminal.types(&format!("attach {third}; echo code $?"));
    terminal.looks_like(&before);
    terminal.keys(&["Escape", ":q!", "Enter"]);
    terminal.shows("in>");
    terminal.keys(&["kill %1; exit 9", "Enter"]);
    terminal.shows("code 9");
}

/// An editor of no container, taken from its terminal and brought back into another one, where nobody may open the ptmx of /dev/pts.
fn an_edit_of_no_container_goes_on(flavour: Flavour) {
    if !Path::new(TMUX).exists() {
        return skipped("tmux is not there: terminals cannot be looked at");
    }
    let Some(yendor) = Yendor::new(flavour) else { return };
    let terminal = Terminal::open(&yendor);
    let (letter, image, again) = (yendor.path("tmp/letter"), yendor.path("image"), yendor.fresh("again"));
    let vim = format!("exec vim -n -u DEFAULTS -i NONE {}", letter.display());
    let pid = terminal.tmux(&["new-window", "-P", "-F", "#{pane_pid}", &vim]);
    terminal.shows("letter\" [New");
    terminal.keys(&["ian unsaved"]);
    terminal.shows("an unsaved");
    yendor.checkpoint_pid(pid.trim().parse().expect("a pid"), &image);
    terminal.shows("out>");
    terminal.types(&format!("restore {} --name {again}; echo code $?", image.display()));
    terminal.shows("an unsaved");
    terminal.keys(&[" edit", "Escape", ":wq", "Enter"]);
    terminal.shows("code 0");
    assert_eq!(std::fs::read_to_string(&letter).expect("the letter"), "an unsaved edit\n");
}

#[test]
fn of_no_container() {
    an_edit_of_no_container_goes_on(Flavour::user());
}

#[test]
fn userns() {
    an_edit_and_a_job_go_on(Flavour::RootUserns);
}

#[test]
fn user() {
    an_edit_and_a_job_go_on(Flavour::user());
}
