//! `yendor ps`: the containers.

use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use serde_json::json;
use yendor_engine::state::Places;

use crate::container::{self, Found, Now, Stat};
use crate::failure::Outcome;
use crate::print;

/// List containers
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  yendor ps -a --json")]
pub struct Ps {
    /// Those that do not run, too
    #[arg(short, long)]
    all: bool,
    /// Print as JSON
    #[arg(long)]
    pub json: bool,
}

struct Row {
    name: String,
    now: Now,
    /// Whether all of its tasks are stopped.
    stopped: bool,
    pid: i32,
    started: u64,
    uptime: u64,
    tasks: u64,
    memory: u64,
    image: Option<String>,
    generation: u64,
}

impl Ps {
    /// Runs it.
    pub fn run(self) -> Outcome {
        let found = container::all(&Places::from_environment()?)?;
        let rows: Vec<Row> = found.iter().map(Row::of).filter(|row| self.all || row.now == Now::Running).collect();
        if self.json {
            let all: Vec<_> = rows.iter().map(Row::json).collect();
            print::out(&json!(all).to_string());
            return Ok(0);
        }
        let head = ["NAME", "STATE", "PID", "UPTIME", "TASKS", "MEMORY", "IMAGE"].map(str::to_owned).to_vec();
        let lines: Vec<Vec<String>> = std::iter::once(head).chain(rows.iter().map(Row::cells)).collect();
        print::out(&print::table(&lines));
        Ok(0)
    }
}

impl Row {
    fn of(found: &Found) -> Row {
        let state = &found.state;
        let now = found.now();
        let (mut tasks, mut memory, mut uptime) = (0, 0, 0);
        let mut stopped = now == Now::Running;
        if now == Now::Running {
            for pid in container::descendants(state.init) {
                let Some(stat) = Stat::of(pid) else { continue };
                // Pid 1 is ours, not the container's own.
                let own = pid != state.init || pid == state.main;
                tasks += if own { stat.threads } else { 0 };
                stopped &= stat.stopped || !own;
                memory += proportional(pid).unwrap_or(stat.resident.saturating_mul(4096));
            }
            let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
            uptime = clock.saturating_sub(state.started);
        }
        Row {
            name: state.name.clone(),
            now,
            stopped: stopped && tasks > 0,
            pid: state.main,
            started: state.started,
            uptime,
            tasks,
            memory,
            image: state.image.clone(),
            generation: state.generation,
        }
    }

    fn word(&self) -> &'static str {
        match self.now {
            Now::Running if self.stopped => "stopped",
            Now::Running => "running",
            Now::Exited(_) => "exited",
            Now::Checkpointed => "checkpointed",
            Now::Lost => "lost",
        }
    }

    fn json(&self) -> serde_json::Value {
        let running = self.now == Now::Running;
        let code = match self.now {
            Now::Exited(status) => Some(container::exit_code(status)),
            _ => None,
        };
        json!({
            "name": self.name, "state": self.word(), "exit_code": code, "pid": running.then_some(self.pid),
            "started": self.started, "uptime_s": running.then_some(self.uptime), "tasks": self.tasks,
            "memory_bytes": self.memory, "image": self.image, "generation": self.generation,
        })
    }

    fn cells(&self) -> Vec<String> {
        let running = self.now == Now::Running;
        let or_dash = |text: String| if running { text } else { "-".into() };
        let state = match self.now {
            Now::Exited(status) => format!("exited ({})", container::exit_code(status)),
            _ => self.word().into(),
        };
        vec![
            self.name.clone(),
            state,
            or_dash(self.pid.to_string()),
            or_dash(print::seconds(self.uptime)),
            or_dash(self.tasks.to_string()),
            or_dash(print::bytes(self.memory)),
            self.image.clone().unwrap_or_else(|| "-".into()),
        ]
    }
}

/// Memory of a process in bytes, shared pages divided among those who share them (proc(5), smaps_rollup).
fn proportional(pid: i32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("Pss:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}
