//! State of a process or thread, in numbers.
//!
//! Source: proc_pid_stat(5); `fs/proc/array.c`, `do_task_stat`. Without ptrace access the kernel prints 0 for addresses,
//! `wchan` and the exit code.

use crate::Dev;
use crate::field::{Result, number, only_line};

const FILE: &str = "stat";

/// All 52 fields, in the order of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// Process or thread id, in the pid namespace of the reader's procfs.
    pub pid: i32,
    /// Name, any bytes but NUL: parentheses, spaces and newlines are not escaped here.
    pub comm: Vec<u8>,
    /// State letter: `R S D T t Z X I P` and the older `K W x`.
    pub state: u8,
    /// Parent.
    pub ppid: i32,
    /// Process group.
    pub pgrp: i32,
    /// Session.
    pub session: i32,
    /// Controlling terminal, 0 without one; see [`Stat::tty`].
    pub tty_nr: i32,
    /// Foreground process group of the terminal; -1 without one.
    pub tpgid: i32,
    /// `PF_*` flags of `include/linux/sched.h`.
    pub flags: u32,
    /// Minor faults.
    pub minflt: u64,
    /// Minor faults of waited-for children.
    pub cminflt: u64,
    /// Major faults.
    pub majflt: u64,
    /// Major faults of waited-for children.
    pub cmajflt: u64,
    /// User time, clock ticks.
    pub utime: u64,
    /// System time, clock ticks.
    pub stime: u64,
    /// User time of waited-for children, clock ticks.
    pub cutime: u64,
    /// System time of waited-for children, clock ticks.
    pub cstime: u64,
    /// Kernel priority: nice + 20, or -1 - real-time priority.
    pub priority: i64,
    /// Nice value, -20 to 19.
    pub nice: i64,
    /// Threads of the process.
    pub num_threads: i64,
    /// Always 0.
    pub itrealvalue: i64,
    /// Start, clock ticks since boot as seen in the reader's time namespace.
    pub starttime: u64,
    /// Virtual memory, bytes.
    pub vsize: u64,
    /// Resident pages.
    pub rss: u64,
    /// Soft `RLIMIT_RSS`, bytes.
    pub rsslim: u64,
    /// `mm->start_code`.
    pub startcode: u64,
    /// `mm->end_code`.
    pub endcode: u64,
    /// `mm->start_stack`.
    pub startstack: u64,
    /// Stack pointer; 0 unless the process is dumping core or exiting.
    pub kstkesp: u64,
    /// Instruction pointer; likewise.
    pub kstkeip: u64,
    /// Pending signals, low 31 only: use `status`.
    pub signal: u64,
    /// Blocked signals, low 31 only.
    pub blocked: u64,
    /// Ignored signals, low 31 only.
    pub sigignore: u64,
    /// Caught signals, low 31 only.
    pub sigcatch: u64,
    /// 1 if the task sleeps in the kernel (an address before Linux 4.2).
    pub wchan: u64,
    /// Always 0.
    pub nswap: u64,
    /// Always 0.
    pub cnswap: u64,
    /// Signal sent to the parent at exit; -1 for a thread.
    pub exit_signal: i32,
    /// CPU that it ran on last.
    pub processor: i32,
    /// Real-time priority, 0 or 1 to 99.
    pub rt_priority: u32,
    /// `SCHED_*` policy.
    pub policy: u32,
    /// Time waited for block devices, clock ticks.
    pub delayacct_blkio_ticks: u64,
    /// Guest time, clock ticks.
    pub guest_time: u64,
    /// Guest time of children, clock ticks.
    pub cguest_time: i64,
    /// `mm->start_data`.
    pub start_data: u64,
    /// `mm->end_data`.
    pub end_data: u64,
    /// `mm->start_brk`.
    pub start_brk: u64,
    /// `mm->arg_start`.
    pub arg_start: u64,
    /// `mm->arg_end`.
    pub arg_end: u64,
    /// `mm->env_start`.
    pub env_start: u64,
    /// `mm->env_end`.
    pub env_end: u64,
    /// Wait status, for a zombie.
    pub exit_code: i32,
    /// Fields after the 52nd.
    pub leftover: Vec<Vec<u8>>,
}

/// Parses `/proc/PID/stat` or `/proc/PID/task/TID/stat`.
///
/// # Errors
/// Fewer than 52 fields, or a field out of range.
pub fn parse(text: &[u8]) -> Result<Stat> {
    let mut line = only_line(FILE, text)?;
    let (pid, comm) = name(&line)?;
    let at = line.rest().iter().rposition(|b| *b == b')').ok_or_else(|| line.bad("comm"))?;
    line.advance(at.saturating_add(1));
    let [state] = *line.token("state")? else { return Err(line.bad("state")) };
    Ok(Stat {
        pid,
        comm,
        state,
        ppid: line.dec("ppid")?,
        pgrp: line.dec("pgrp")?,
        session: line.dec("session")?,
        tty_nr: line.dec("tty_nr")?,
        tpgid: line.dec("tpgid")?,
        flags: line.dec("flags")?,
        minflt: line.dec("minflt")?,
        cminflt: line.dec("cminflt")?,
        majflt: line.dec("majflt")?,
        cmajflt: line.dec("cmajflt")?,
        utime: line.dec("utime")?,
        stime: line.dec("stime")?,
        cutime: line.dec("cutime")?,
        cstime: line.dec("cstime")?,
        priority: line.dec("priority")?,
        nice: line.dec("nice")?,
        num_threads: line.dec("num_threads")?,
        itrealvalue: line.dec("itrealvalue")?,
        starttime: line.dec("starttime")?,
        vsize: line.dec("vsize")?,
        rss: line.dec("rss")?,
        rsslim: line.dec("rsslim")?,
        startcode: line.dec("startcode")?,
        endcode: line.dec("endcode")?,
        startstack: line.dec("startstack")?,
        kstkesp: line.dec("kstkesp")?,
        kstkeip: line.dec("kstkeip")?,
        signal: line.dec("signal")?,
        blocked: line.dec("blocked")?,
        sigignore: line.dec("sigignore")?,
        sigcatch: line.dec("sigcatch")?,
        wchan: line.dec("wchan")?,
        nswap: line.dec("nswap")?,
        cnswap: line.dec("cnswap")?,
        exit_signal: line.dec("exit_signal")?,
        processor: line.dec("processor")?,
        rt_priority: line.dec("rt_priority")?,
        policy: line.dec("policy")?,
        delayacct_blkio_ticks: line.dec("delayacct_blkio_ticks")?,
        guest_time: line.dec("guest_time")?,
        cguest_time: line.dec("cguest_time")?,
        start_data: line.dec("start_data")?,
        end_data: line.dec("end_data")?,
        start_brk: line.dec("start_brk")?,
        arg_start: line.dec("arg_start")?,
        arg_end: line.dec("arg_end")?,
        env_start: line.dec("env_start")?,
        env_end: line.dec("env_end")?,
        exit_code: line.dec("exit_code")?,
        leftover: line.leftover(),
    })
}

impl Stat {
    /// The controlling terminal.
    #[must_use]
    pub fn tty(&self) -> Option<Dev> {
        (self.tty_nr != 0).then(|| Dev::from_user(self.tty_nr.cast_unsigned()))
    }
}

/// The name may hold anything, also `) R (`: it runs from the first opening to the last closing parenthesis.
fn name(line: &crate::field::Line<'_>) -> Result<(i32, Vec<u8>)> {
    let text = line.rest();
    let open = text.iter().position(|b| *b == b'(').ok_or_else(|| line.bad("comm"))?;
    let close = text.iter().rposition(|b| *b == b')').ok_or_else(|| line.bad("comm"))?;
    let pid = text
        .get(..open)
        .and_then(|p| p.strip_suffix(b" "))
        .and_then(|p| number(p, 10))
        .ok_or_else(|| line.bad("pid"))?;
    let comm = open.checked_add(1).and_then(|from| text.get(from..close)).ok_or_else(|| line.bad("comm"))?;
    Ok((pid, comm.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::parse;
    use crate::{Dev, hostile};

    const CAPTURED: &[u8] = b"6036 (a) R (\n\xffx y) R 6032 6032 4120 0 -1 4194560 3679 6784 24 0 5 5 4 2 20 0 1 0 150274 \
        36552704 3921 18446744073709551615 94164809134080 94164809134421 140734850208832 0 0 0 0 16781312 2 0 0 0 17 1 0 0 0 \
        0 0 94164809145776 94164809146392 94165047259136 140734850214126 140734850214184 140734850214184 140734850215887 0\n";
    const ZOMBIE: &[u8] = b"6080 () Z 6036 6032 4120 34816 -1 4227148 229 0 0 0 0 0 0 0 -51 -20 1 0 150295 0 0 \
        18446744073709551615 0 0 0 0 0 0 0 16781312 2 1 0 0 17 0 50 1 0 0 0 0 0 0 0 0 0 0 768\n";

    #[test]
    fn captured() {
        let stat = parse(CAPTURED).unwrap();
        assert_eq!((stat.pid, stat.comm.as_slice(), stat.state), (6036, &b"a) R (\n\xffx y"[..], b'R'));
        assert_eq!((stat.ppid, stat.session, stat.tpgid, stat.flags), (6032, 4120, -1, 4_194_560));
        assert_eq!((stat.rsslim, stat.starttime, stat.num_threads), (u64::MAX, 150_274, 1));
        assert_eq!((stat.sigignore, stat.sigcatch, stat.exit_signal, stat.processor), (16_781_312, 2, 17, 1));
        assert_eq!((stat.start_brk, stat.env_end, stat.exit_code), (94_165_047_259_136, 140_734_850_215_887, 0));
        assert_eq!(stat.tty(), None);
        assert!(stat.leftover.is_empty());
    }

    #[test]
    fn zombie_with_empty_name_and_terminal() {
        let stat = parse(ZOMBIE).unwrap();
        assert_eq!((stat.comm.len(), stat.state, stat.exit_code), (0, b'Z', 768));
        assert_eq!((stat.priority, stat.nice, stat.rt_priority, stat.policy), (-51, -20, 50, 1));
        assert_eq!(stat.tty(), Some(Dev { major: 136, minor: 0 }));
    }

    #[test]
    fn a_53rd_field_is_kept_and_a_51st_missed() {
        let mut more = CAPTURED.strip_suffix(b"\n").unwrap().to_vec();
        more.extend_from_slice(b" 7 8\n");
        assert_eq!(parse(&more).unwrap().leftover, [b"7", b"8"]);
        let mut less = CAPTURED.strip_suffix(b" 0\n").unwrap().to_vec();
        less.push(b'\n');
        assert_eq!(parse(&less).unwrap_err().what, "exit_code");
        for bad in [&b"1 )(\n"[..], b"1\n", b"1 (x\n", b"1 x) R 1\n", b"(x) R 1\n", b"\n"] {
            assert!(parse(bad).is_err(), "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn hostile_input() {
        hostile::survives(CAPTURED, parse);
        hostile::survives(ZOMBIE, parse);
    }

    #[test]
    fn processes_of_this_kernel() {
        let mut seen = 0;
        for entry in std::fs::read_dir("/proc").unwrap() {
            // A process may end between the listing and the read.
            if let Ok(text) = std::fs::read(entry.unwrap().path().join("stat"))
                && text.contains(&b'(')
            {
                assert_eq!(parse(&text).unwrap().leftover, Vec::<Vec<u8>>::new());
                seen += 1;
            }
        }
        assert!(seen > 0);
        let own = parse(&std::fs::read("/proc/self/stat").unwrap()).unwrap();
        assert_eq!(u32::try_from(own.pid), Ok(std::process::id()));
    }
}
