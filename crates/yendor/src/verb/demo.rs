//! `yendor demo`: the main job in one go, by the same commands that a user would type.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use clap::Args;

use crate::failure::{Failure, Outcome};
use crate::{container, foreground, print};

const PATIENCE: Duration = Duration::from_secs(15);
const KEYS: u32 = 10_000;
const COUNTER: &str = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done";
const SOCKET: &str = "/tmp/redis.sock";

/// Run a program, checkpoint it, kill it, restore it, and verify that it has everything it had
///
/// Takes Redis with data if it is installed, else a shell that counts. Needs no root, and leaves nothing behind.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  yendor demo\n  yendor demo --counter")]
pub struct Demo {
    /// Take the counting shell even if Redis is installed
    #[arg(long)]
    counter: bool,
}

impl Demo {
    /// Runs it.
    pub fn run(self) -> Outcome {
        // ctrl-c ends the command of the moment; then we clean up.
        let _signals = foreground::block_signals(&[])?;
        let stage = Stage::new()?;
        if !self.counter && installed("redis-server") && installed("redis-cli") {
            return redis(&stage);
        }
        counter(&stage)
    }
}

fn installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
        || ["/usr/bin", "/usr/local/bin"].iter().any(|dir| PathBuf::from(dir).join(program).is_file())
}

/// A state directory of our own, gone at the end with all containers in it.
struct Stage {
    place: PathBuf,
}

impl Stage {
    fn new() -> Result<Stage, Failure> {
        use std::os::unix::fs::DirBuilderExt;
        let place = std::env::temp_dir().join(format!("yendor-demo-{}", std::process::id()));
        let made = std::fs::DirBuilder::new().mode(0o700).create(&place);
        made.map_err(|e| Failure::io("mkdir", &place, &e))?;
        Ok(Stage { place })
    }

    fn call(&self, arguments: &[&str]) -> Result<Output, Failure> {
        // By the link, which stays right when the file has been replaced meanwhile.
        let mut command = Command::new("/proc/self/exe");
        let output = command.args(arguments).env("YENDOR_ROOT", &self.place).stdin(Stdio::null()).output();
        output.map_err(|e| Failure::Failed(format!("run yendor: {e}")))
    }

    /// Runs a command that must succeed, and shows it.
    fn step(&self, arguments: &[&str]) -> Result<String, Failure> {
        let begin = Instant::now();
        let output = self.call(arguments)?;
        let took = print::micros(print::since(begin));
        print::out(&format!("  $ yendor {:72} {took:>9}", shown(arguments)));
        for line in String::from_utf8_lossy(&output.stderr).lines().filter(|_| output.status.success()) {
            print::out(&format!("      {line}"));
        }
        checked(&output)
    }

    /// Runs a command that must succeed.
    fn quietly(&self, arguments: &[&str]) -> Result<String, Failure> {
        checked(&self.call(arguments)?)
    }

    fn clear(&self) {
        let Ok(text) = self.quietly(&["ps", "-a", "--json"]) else { return };
        let rows: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap_or_default();
        for name in rows.iter().filter_map(|row| row.get("name").and_then(serde_json::Value::as_str)) {
            if let Err(e) = self.quietly(&["rm", "-f", name]) {
                print::error(&format!("yendor: {e}"));
            }
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.clear();
        if let Err(e) = container::remove(&self.place) {
            print::error(&format!("yendor: {e}"));
        }
    }
}

fn shown(arguments: &[&str]) -> String {
    let word = |w: &&str| if w.is_empty() || w.contains([' ', '$', ';']) { format!("'{w}'") } else { (*w).to_owned() };
    arguments.iter().map(word).collect::<Vec<_>>().join(" ")
}

fn checked(output: &Output) -> Result<String, Failure> {
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let code = output.status.code().and_then(|c| u8::try_from(c).ok()).unwrap_or(1);
    Err(Failure::Said { code, what: said.strip_prefix("yendor: ").unwrap_or(&said).to_owned() })
}

/// Asks until the answer is good.
fn until<T>(what: &str, ask: impl Fn() -> Result<Option<T>, Failure>) -> Result<T, Failure> {
    let begin = Instant::now();
    loop {
        let answer = ask();
        if let Ok(Some(good)) = answer {
            return Ok(good);
        }
        if begin.elapsed() > PATIENCE {
            return Err(answer.err().unwrap_or_else(|| Failure::Failed(format!("no {what} within {PATIENCE:?}"))));
        }
        std::thread::sleep(Duration::from_millis(30));
    }
}

fn counter(stage: &Stage) -> Outcome {
    print::out("A shell counts in a container of its own:\n");
    stage.step(&["run", "-d", "--name", "counter", "--", "sh", "-c", COUNTER])?;
    let numbers = |name: &str| -> Result<Vec<u64>, Failure> {
        Ok(stage.quietly(&["logs", name])?.lines().filter_map(|line| line.parse().ok()).collect())
    };
    until("number above 10", || Ok(numbers("counter")?.last().copied().filter(|n| *n > 10)))?;
    let reference = stage.step(&["checkpoint", "counter"])?;
    let before = numbers("counter")?;
    let last = before.last().copied().unwrap_or(0);
    stage.step(&["rm", "-f", "counter"])?;
    stage.step(&["restore", &reference, "--name", "counter-again", "-d"])?;
    let after = until("further numbers", || Ok(Some(numbers("counter-again")?).filter(|n| n.len() >= 10)))?;
    stage.step(&["rm", "-f", "counter-again"])?;
    let first = after.first().copied().unwrap_or(0);
    let whole = before.iter().chain(&after).zip(1..).all(|(n, expected)| *n == expected);
    if !whole || first != last + 1 {
        return Err(Failure::Failed(format!(
            "the count broke: {last} before the checkpoint, {first} after the restore"
        )));
    }
    let seen = after.last().copied().unwrap_or(0);
    print::out(&format!(
        "\n   counter            image             counter-again\n   \
         1 2 3 ... {last:<4} ---> {reference:<12} ---> {first} {} {} ... {seen}\n   \
         (checkpointed,     on disk           (new container,\n    and gone)                            same processes)\n\n\
         Not one number is missing or twice.",
        first + 1,
        first + 2
    ));
    Ok(0)
}

fn redis(stage: &Stage) -> Outcome {
    print::out("Redis runs in a container of its own, gets data, and a counter:\n");
    let server = ["--port", "0", "--unixsocket", SOCKET, "--save", "", "--appendonly", "no"];
    stage.step(&[&["run", "-d", "--name", "redis", "--", "redis-server"][..], &server].concat())?;
    let cli = |name: &str, words: &[&str]| -> Result<String, Failure> {
        stage.quietly(&[&["exec", name, "--", "redis-cli", "-s", SOCKET][..], words].concat())
    };
    let integer = |text: &str| text.parse::<u64>().ok();
    until("answer of Redis", || Ok((cli("redis", &["ping"])? == "PONG").then_some(())))?;
    let fill = format!("for i = 1, {KEYS} do redis.call('set', 'key:' .. i, 'value ' .. i) end return {KEYS}");
    cli("redis", &["eval", &fill, "0"])?;
    let counted = integer(&cli("redis", &["incrby", "counter", "41"])?).unwrap_or(0);
    let sum = digest(&cli, "redis")?;
    print::out(&format!("      {KEYS} keys, counter at {counted}"));
    let reference = stage.step(&["checkpoint", "redis"])?;
    stage.step(&["rm", "-f", "redis"])?;
    stage.step(&["restore", &reference, "--name", "redis-again", "-d"])?;
    until("answer of the restored Redis", || Ok((cli("redis-again", &["ping"])? == "PONG").then_some(())))?;
    let same = digest(&cli, "redis-again")?;
    let next = integer(&cli("redis-again", &["incr", "counter"])?).unwrap_or(0);
    stage.step(&["rm", "-f", "redis-again"])?;
    if same != sum || next != counted + 1 {
        return Err(Failure::Failed(format!(
            "Redis lost something: {sum} and {counted} before, {same} and {next} after"
        )));
    }
    let keys = KEYS + 1;
    print::out(&format!(
        "\n   redis                 image           redis-again\n   \
         {keys} keys      ---> {reference:<9} ---> {keys} keys, the same\n   \
         counter {counted}            on disk         counter {next}\n   \
         (checkpointed,                        (new container,\n    and gone)                             same process)\n\n\
         Not one key is missing or different."
    ));
    Ok(0)
}

/// How many keys, and a digest over all of them (DEBUG DIGEST is off by default in Redis 7: the same by a script).
fn digest(cli: &impl Fn(&str, &[&str]) -> Result<String, Failure>, name: &str) -> Result<String, Failure> {
    const SCRIPT: &str = "local h = '' for i = 1, tonumber(ARGV[1]) do h = redis.sha1hex(h .. redis.call('get', \
                          'key:' .. i)) end return h";
    let keys = KEYS.to_string();
    Ok(format!("{} keys {}", cli(name, &["dbsize"])?, cli(name, &["eval", SCRIPT, "0", &keys])?))
}
