//! The command, driven with one account in one place.

use crate::account::{Account, Flavour, skipped};
use crate::binary::yendor_binary;
use crate::task::{Started, kill_marked, marked, wait_until};
use std::cell::RefCell;
use std::fs::{self, File, OpenOptions, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

/// The variable with the directory that all files of tests are in, when it is not the one for temporary files.
const PLACE: &str = "YENDOR_TEST_PLACE";

/// For how long a command, or a word in a log, is waited for.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What a command did.
#[derive(Debug)]
pub struct Outcome {
    /// The command line.
    pub command: String,
    /// Exit code; 128 and more for a signal.
    pub code: i32,
    /// All of its stdout.
    pub stdout: String,
    /// All of its stderr.
    pub stderr: String,
}

impl Outcome {
    /// Panics with everything that was said unless the exit code is this one.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        let Self { command, code: got, stdout, stderr } = &self;
        assert_eq!(*got, code, "exit code of `{command}`\nstdout: {stdout}\nstderr: {stderr}");
        self
    }

    /// stdout as one JSON value. Panics when it is none.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{error}: `{}`: {}", self.command, self.stdout))
    }
}

/// The command in a flavour, with state, home and images in a directory of its own.
pub struct Yendor {
    flavour: Flavour,
    account: Account,
    place: PathBuf,
    mark: String,
    through: Vec<String>,
    started: RefCell<Vec<String>>,
    count: AtomicU32,
}

impl Yendor {
    /// `None`, and said so, when the flavour takes root and we are not.
    pub fn new(flavour: Flavour) -> Option<Self> {
        let place = std::env::var_os(PLACE).map_or_else(std::env::temp_dir, PathBuf::from);
        Self::in_place(flavour, &place)
    }

    /// The same with all of its files on a disk, when there is one: what `cargo xtask test` chooses is memory.
    pub fn on_disk(flavour: Flavour) -> Option<Self> {
        Self::in_place(flavour, Path::new("/var/tmp"))
    }

    fn in_place(flavour: Flavour, top: &Path) -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let Some(account) = Account::of(&flavour) else {
            skipped(&format!("needs root: {}", std::thread::current().name().unwrap_or("a test")));
            return None;
        };
        let id = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Relaxed));
        let place = top.join(format!("yendor-test-{id}"));
        for directory in ["", "home", "run", "data", "state", "tmp"] {
            let path = place.join(directory);
            fs::create_dir(&path).expect("make a directory of our own");
            fs::set_permissions(&path, Permissions::from_mode(0o700)).expect("chmod of our own");
            account.owns(&path);
        }
        let (started, count) = (RefCell::new(Vec::new()), AtomicU32::new(0));
        Some(Self {
            flavour,
            account,
            place,
            mark: format!("YENDOR_TEST_MARK={id}"),
            through: Vec::new(),
            started,
            count,
        })
    }

    /// From now on the command is started through another one, which is given its path and arguments.
    pub fn start_through(&mut self, words: &[&str]) {
        self.through = words.iter().map(|word| (*word).to_owned()).collect();
    }

    /// The account that commands run with.
    pub fn account(&self) -> Account {
        self.account
    }

    /// The flavour.
    pub fn flavour(&self) -> &Flavour {
        &self.flavour
    }

    /// `K=V` that everything of this test has in its environment.
    pub fn mark(&self) -> &str {
        &self.mark
    }

    /// A path in the directory that everything is in.
    pub fn path(&self, name: &str) -> PathBuf {
        self.place.join(name)
    }

    /// A name for a container that no other test uses.
    pub fn fresh(&self, stem: &str) -> String {
        let unique = self.mark.rsplit('=').next().unwrap_or("");
        format!("{stem}-{unique}-{}", self.count.fetch_add(1, Relaxed))
    }

    /// Any program with the account's rights and surroundings; stdin is /dev/null.
    pub fn program(&self, program: &Path) -> Command {
        self.surrounded(Command::new(program))
    }

    fn surrounded(&self, mut command: Command) -> Command {
        let (key, value) = self.mark.split_once('=').unwrap_or(("", ""));
        command.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin").env(key, value);
        let places =
            [("HOME", "home"), ("XDG_RUNTIME_DIR", "run"), ("XDG_DATA_HOME", "data"), ("YENDOR_ROOT", "state")];
        command.envs(places.map(|(name, directory)| (name, self.place.join(directory)))).env("RUST_BACKTRACE", "1");
        command.current_dir(&self.place).stdin(Stdio::null());
        keeps_nothing_else(&mut command);
        self.account.runs(&mut command);
        command
    }

    /// The command, not yet started; its output goes nowhere unless somebody says where.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let Some((first, words)) = self.through.split_first() else {
            let mut command = self.program(&yendor_binary());
            command.args(arguments);
            return command;
        };
        let mut command = self.program(Path::new(first));
        command.args(words).arg(yendor_binary()).args(arguments);
        command
    }

    /// The same for [`with_fault`](crate::with_fault).
    pub fn traced(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(yendor_binary());
        crate::fault::traced(&mut command);
        let mut command = self.surrounded(command);
        command.args(arguments);
        command
    }

    /// Runs `yendor ARGUMENTS` to its end. Output goes through files: a container that keeps a descriptor open must
    /// not keep the test waiting.
    #[track_caller]
    pub fn call(&self, arguments: &[&str]) -> Outcome {
        self.call_with(arguments, &[])
    }

    /// The same with more in its environment.
    #[track_caller]
    pub fn call_with(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Outcome {
        let mut command = self.command(arguments);
        command.envs(environment.iter().copied());
        self.to_its_end(command, format!("yendor {}", arguments.join(" ")))
    }

    /// `yendor ARGUMENTS` in a mount namespace of its own, between two scripts that run as root there. `None`, and said so,
    /// when we are not root.
    #[track_caller]
    pub fn call_between(&self, before: &str, arguments: &[&str], after: &str) -> Option<Outcome> {
        Account::of(&Flavour::Root).or_else(|| {
            skipped(before);
            None
        })?;
        let plain = self.command(arguments);
        let mut command = Command::new("unshare");
        command.env_clear().envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let account = self.account.setpriv().join(" ");
        let script = format!("set -e\n{before}\nset +e\n{account} \"$0\" \"$@\"\ncode=$?\n{after}\nexit $code");
        command.args(["--mount", "--", "/bin/sh", "-c", &script]).arg(plain.get_program()).args(arguments);
        command.current_dir(&self.place).stdin(Stdio::null());
        Some(self.to_its_end(command, format!("{before}; yendor {}", arguments.join(" "))))
    }

    /// Runs any command to its end; `shown` is what messages call it.
    #[track_caller]
    pub fn to_its_end(&self, mut command: Command, shown: String) -> Outcome {
        let number = self.count.fetch_add(1, Relaxed);
        let paths = ["stdout", "stderr"].map(|name| self.place.join(format!("{name}-{number}")));
        let [stdout, stderr] = paths.each_ref().map(|path| File::create(path).expect("create a file of our own"));
        let mut started = Started::new(command.stdout(stdout).stderr(stderr));
        let ended = started.ended(PATIENCE);
        drop(started);
        let [stdout, stderr] = paths.map(|path| text(&path));
        let Some(status) = ended else {
            panic!("`{shown}` does not end in {PATIENCE:?}\nstdout: {stdout}\nstderr: {stderr}")
        };
        Outcome { command: shown, code: Started::code(status), stdout, stderr }
    }

    /// The command, started by a shell script of root's in a mount namespace of its own; its last line is `exec "$@"`, and
    /// `$PLACE` is the directory that everything is in. The command itself runs with the account's rights.
    pub fn sheltered(&self, script: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new("unshare");
        for (key, value) in self.command(&[]).get_envs() {
            command.env(key, value.unwrap_or_default());
        }
        command.env("PLACE", &self.place).current_dir(&self.place).stdin(Stdio::null());
        command.args(["--mount", "--propagation", "private", "--", "/bin/sh", "-euc", script, "sh"]);
        command.args(self.account.setpriv()).arg(yendor_binary()).args(arguments);
        keeps_nothing_else(&mut command);
        command
    }

    /// The command where `/etc/yendor/policy.toml` says this.
    #[track_caller]
    pub fn call_under_policy(&self, policy: &[u8], arguments: &[&str]) -> Outcome {
        fs::write(self.path("policy.toml"), policy).expect("write a file of our own");
        let script = "umask 022; mkdir -p $PLACE/etc; mount -t tmpfs etc $PLACE/etc; cp -a /etc/. $PLACE/etc; \
                      mkdir -p $PLACE/etc/yendor; cat $PLACE/policy.toml > $PLACE/etc/yendor/policy.toml; \
                      mount --bind $PLACE/etc /etc; exec \"$@\"";
        self.to_its_end(self.sheltered(script, arguments), format!("yendor {}", arguments.join(" ")))
    }

    /// `yendor run -d --name NAME OPTIONS -- COMMAND`.
    #[track_caller]
    pub fn run_detached_with(&self, name: &str, options: &[&str], command: &[&str]) -> Outcome {
        self.started.borrow_mut().push(name.to_owned());
        let start = ["run", "--detach", "--name", name, "-e", &self.mark];
        let end: &[&str] = if command.is_empty() { &[] } else { &["--"] };
        self.call(&[&start, self.flavour.options(), options, end, command].concat())
    }

    /// `yendor run -d --name NAME -- COMMAND`, which must succeed.
    #[track_caller]
    pub fn run_detached(&self, name: &str, command: &[&str]) {
        self.run_detached_with(name, &[], command).exits(0);
    }

    /// `yendor checkpoint NAME -o OUT`, which must succeed: the container is gone afterwards.
    #[track_caller]
    pub fn checkpoint(&self, name: &str, out: &Path) {
        self.call(&["checkpoint", name, "-o", utf8(out)]).exits(0);
    }

    /// `yendor checkpoint --pid PID -o OUT`, which must succeed: the tree is gone afterwards.
    #[track_caller]
    pub fn checkpoint_pid(&self, pid: libc::pid_t, out: &Path) {
        self.call(&["checkpoint", "--pid", &pid.to_string(), "-o", utf8(out)]).exits(0);
    }

    /// `yendor restore -d IMAGE --name NAME OPTIONS`.
    #[track_caller]
    pub fn restore_with(&self, image: &Path, name: &str, options: &[&str]) -> Outcome {
        self.started.borrow_mut().push(name.to_owned());
        let start = ["restore", "--detach", "--name", name];
        self.call(&[&start, self.flavour.options(), options, &[utf8(image)]].concat())
    }

    /// `yendor restore -d IMAGE --name NAME`, which must succeed.
    #[track_caller]
    pub fn restore(&self, image: &Path, name: &str) {
        self.restore_with(image, name, &[]).exits(0);
    }

    /// `yendor kill -s SIGNAL NAME`, which must succeed.
    #[track_caller]
    pub fn kill(&self, name: &str, signal: &str) {
        self.call(&["kill", "-s", signal, name]).exits(0);
    }

    /// `yendor wait NAME`: the container's exit code.
    #[track_caller]
    pub fn wait(&self, name: &str) -> i32 {
        self.call(&["wait", name]).code
    }

    /// `yendor logs NAME`.
    #[track_caller]
    pub fn logs(&self, name: &str) -> String {
        self.call(&["logs", name]).exits(0).stdout
    }

    /// Waits for a line in the container's log. Panics with the log when a probe has found a fault, or it takes too long.
    #[track_caller]
    pub fn wait_for_log(&self, name: &str, line: &str, limit: Duration) {
        let mut log = String::new();
        let found = wait_until(limit, || {
            log = self.logs(name);
            assert!(!log.contains("FAIL:"), "{name}:\n{log}");
            log.lines().any(|one| one == line)
        });
        assert!(found, "no line `{line}` in the log of {name} after {limit:?}:\n{log}");
    }

    /// Gives a file of the test to the account that its commands run with.
    pub fn owns(&self, path: &Path) {
        self.account.owns(path);
    }

    /// Gives a directory and the files in it to the account.
    pub fn give(&self, directory: &Path) {
        for entry in fs::read_dir(directory).expect("a directory of our own").flatten() {
            self.account.owns(&entry.path());
        }
        self.account.owns(directory);
    }

    /// A container of this name is removed at the end, if it is there.
    pub fn will_remove(&self, name: &str) {
        self.started.borrow_mut().push(name.to_owned());
    }

    /// A file for the output of a process that Yendor does not start, opened to append.
    pub fn output(&self, name: &str) -> File {
        let path = self.place.join(name);
        let file = OpenOptions::new().create(true).append(true).open(&path).expect("create a file of our own");
        self.account.owns(&path);
        file
    }

    /// Processes of this test that live still, in a container or not.
    pub fn tasks_left(&self) -> Vec<libc::pid_t> {
        marked(&self.mark)
    }
}

impl Drop for Yendor {
    fn drop(&mut self) {
        let names = self.started.take();
        for name in &names {
            let mut command = self.command(&["rm", "--force", name]);
            // Most of them are gone already, and a test that fails must not fail twice.
            if let Ok(mut child) = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn() {
                let ended = wait_until(PATIENCE, || !matches!(child.try_wait(), Ok(None)));
                let _ = if ended { Ok(()) } else { child.kill() };
            }
        }
        let clean = kill_marked(&self.mark);
        let removed = fs::remove_dir_all(&self.place).or_else(|error| remove_as_root_of(&self.place).ok_or(error));
        if !std::thread::panicking() {
            assert!(clean, "processes are left: {:?}", self.tasks_left());
            assert!(removed.is_ok(), "remove {}: {removed:?}", self.place.display());
        }
    }
}

/// What belongs to subordinate ids goes by the hands of who has them.
fn remove_as_root_of(place: &Path) -> Option<()> {
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--map-auto", "rm", "-rf"]).arg(place);
    command.status().is_ok_and(|status| status.success()).then_some(())
}

/// The program gets no descriptor that somebody left open around the tests.
fn keeps_nothing_else(command: &mut Command) {
    let close = || {
        // SAFETY: marks descriptors; the ones in use between fork and exec are marked already.
        let failed = unsafe { libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC.cast_signed()) } != 0;
        if failed { Err(std::io::Error::last_os_error()) } else { Ok(()) }
    };
    // SAFETY: the closure makes a system call and takes no lock.
    unsafe { command.pre_exec(close) };
}

fn text(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

fn utf8(path: &Path) -> &str {
    path.to_str().expect("paths of tests are UTF-8")
}
