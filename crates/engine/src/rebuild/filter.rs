//! Seccomp filters, the last calls of a process that is otherwise ready: through the vdso's own `syscall`, since the
//! gadget's calls would be judged by the filter, too.

use std::ops::Range;

use yendor_kinds::Cause;
use yendor_kinds::memory::vma::{Backing, Record};
use yendor_kinds::process::seccomp::Filter;
use yendor_kinds::process::{Alive, credential};
use yendor_policy::seccomp;
use yendor_sys::{Errno, SysError, vm};
use yendor_task::arena::{lay_down, lay_zeros, size};
use yendor_task::live::{self, Region, RegionKind};
use yendor_task::regs::Regs;
use yendor_task::script::{Memory, Want};
use yendor_task::{Arg, Call, Nr, Script, Stopped};

use super::{PARKING, Site, process::stop_cause};
use crate::request::Seccomp;

const SET_MODE_FILTER: u32 = 1;
const FLAG_TSYNC: u32 = 1;
/// `SECCOMP_FILTER_FLAG_LOG`, `SECCOMP_FILTER_FLAG_SPEC_ALLOW`: all others are about the installation, not the filter.
const FLAGS_KEPT: u32 = 2 | 4;
/// `CAP_SYS_ADMIN`: without it only a task with `no_new_privs` may install a filter.
const SYS_ADMIN: u64 = 1 << 21;

/// The call that installs the container's filter.
pub fn install(filter: &Seccomp, cookie: u64, script: &mut Script) {
    script.call_wanting(Nr::SECCOMP, arguments(filter.flags, &filter.program.0, cookie), Want::Exactly(0));
}

fn arguments(flags: u32, program: &[u8], cookie: u64) -> [Arg; 6] {
    let mut header = vec![0; 16];
    let len = u16::try_from(program.len() / 8).unwrap_or(u16::MAX);
    header[..2].copy_from_slice(&len.to_ne_bytes());
    let program = Memory { bytes: program.to_vec(), ..Memory::default() };
    let header = Memory { bytes: header, pointers: vec![(8, program)], ..Memory::default() };
    // The recorder lets calls with the cookie pass.
    [SET_MODE_FILTER.into(), flags.into(), header.into(), 0.into(), 0.into(), cookie.into()]
}

/// The filters that a thread will have, in order: flags and program; the container's first.
pub struct Chain<'a>(Vec<(Option<u32>, u32, &'a [u8])>);

impl<'a> Chain<'a> {
    /// The container's policy and a thread's own, by number in the image's table.
    pub fn new(policy: Option<&'a Seccomp>, own: &[u32], table: &'a [Filter]) -> Chain<'a> {
        let policy = policy.map(|p| (None, p.flags, p.program.0.as_slice()));
        let own = own.iter().filter_map(|number| {
            let filter = table.get(usize::try_from(*number).ok()?)?;
            Some((Some(*number), filter.flags, filter.program.0.as_slice()))
        });
        Chain(policy.into_iter().chain(own).collect())
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether all of a thread's filters were found.
    pub fn check(&self, own: &[u32]) -> Result<(), Cause> {
        let found = self.0.iter().filter_map(|(number, ..)| *number).eq(own.iter().copied());
        let whole = self.0.iter().all(|(_, _, program)| seccomp::program(program).is_some());
        if found && whole {
            Ok(())
        } else {
            Err(Cause::corrupt("a seccomp filter that is not in the image, or none at all"))
        }
    }

    /// Installs some of them.
    pub fn install(&self, some: Range<usize>, everywhere: bool, calls: &Calls, cookie: u64) -> Result<(), Cause> {
        for (_, flags, program) in self.0.get(some).unwrap_or_default() {
            let flags = flags & FLAGS_KEPT | if everywhere { FLAG_TSYNC } else { 0 };
            let args = arguments(flags, program, cookie).into_iter().collect();
            calls.call(&Call { nr: Nr::SECCOMP, args, want: Want::Exactly(0) })?;
        }
        Ok(())
    }

    fn allows(&self, nr: Nr, ip: u64) -> bool {
        let programs: Option<Vec<_>> = self.0.iter().map(|(_, _, p)| seccomp::program(p)).collect();
        let nr = u32::try_from(nr.raw()).unwrap_or(u32::MAX);
        let call = seccomp::Call { nr, arch: seccomp::ARCH, ip: Some(ip), args: [None; 6] };
        let verdict = programs.and_then(|p| seccomp::verdict(p.iter().map(Vec::as_slice), &call));
        verdict.is_some_and(seccomp::allows)
    }
}

/// How many filters all threads of a process have in common.
pub fn shared(chains: &[Chain<'_>]) -> usize {
    let Some((first, rest)) = chains.split_first() else { return 0 };
    let common = |other: &Chain<'_>| first.0.iter().zip(&other.0).take_while(|(a, b)| a.0 == b.0).count();
    rest.iter().map(common).min().unwrap_or(first.len())
}

/// Credentials with which a filter can be installed; what they have too much goes with [`Calls::give_up`] or execve.
pub fn able(record: &credential::Record) -> credential::Record {
    let mut record = record.clone();
    if !is_able(&record) {
        record.capabilities[1] |= SYS_ADMIN;
        record.capabilities[2] |= SYS_ADMIN;
    }
    record
}

fn is_able(record: &credential::Record) -> bool {
    record.no_new_privs || record.capabilities[2] & SYS_ADMIN != 0
}

/// A stopped task that makes calls through its vdso; its registers are set afterwards.
pub struct Calls {
    task: Stopped,
    regs: Regs,
    /// Writable memory of its own, put back after each call.
    room: Option<(u64, u64)>,
}

impl Calls {
    /// Takes a task over that is stopped.
    pub fn new(tid: i32, alive: &Alive) -> Result<Calls, Cause> {
        let vdso = alive.memory.areas.iter().find(|a| a.backing == Backing::Vdso);
        let region = |a: &Record| Region { start: a.start.0, end: a.end.0, exec: true, what: RegionKind::Vdso };
        let mut regs = Stopped::already(tid).regs()?;
        regs.rip = live::find_plain_syscall(tid, vdso.map(region).as_slice())?;
        regs.orig_rax = u64::MAX;
        Ok(Calls { task: Stopped::already(tid), regs, room: room(alive) })
    }

    /// Scratch memory cannot unmap itself: these tasks do it side by side. What went wrong, and with which of them.
    pub fn unmap_scratch(all: &[&Calls], site: &Site<'_>) -> Result<(), (usize, Cause)> {
        let base = site.arena.base();
        let len = site.arena.end() + PARKING - base;
        let each = |step: &dyn Fn(&Calls) -> Result<(), Cause>| {
            all.iter().enumerate().try_for_each(|(i, calls)| step(calls).map_err(|cause| (i, cause)))
        };
        each(&|calls| {
            calls.task.set_regs(&calls.with(Nr::MUNMAP, [base, len, 0, 0, 0, 0]))?;
            Ok(calls.task.to_syscall()?)
        })?;
        each(&|calls| {
            calls.task.await_syscall().map_err(stop_cause)?;
            Ok(calls.task.to_syscall()?)
        })?;
        each(&|calls| {
            calls.task.await_syscall().map_err(stop_cause)?;
            match calls.task.regs()?.rax.cast_signed() {
                0 => Ok(()),
                failed => Err(SysError::new(Nr::MUNMAP.name(), format!("{base:#x}, {len:#x}"), errno(failed)).into()),
            }
        })
    }

    /// Drops what [`able`] has added, under the filters.
    pub fn give_up(&self, record: &credential::Record, chain: &Chain<'_>) -> Result<(), Cause> {
        if is_able(record) {
            return Ok(());
        }
        if !chain.allows(Nr::CAPSET, self.regs.rip + 2) {
            return Err(Cause::Denied {
                what:
                    "a seccomp filter of the task's own forbids capset, which it needs after it: it has no no_new_privs"
                        .into(),
                hint: "a program that sets no_new_privs before its filter can be restored".into(),
            });
        }
        let mut script = Script::new();
        credential::capabilities(record, &mut script);
        script.calls.iter().try_for_each(|c| self.call(c))
    }

    fn call(&self, call: &Call) -> Result<(), Cause> {
        let size = call.args.iter().map(size).sum::<usize>();
        let at = match self.room {
            _ if size == 0 => 0,
            Some((start, end)) if end - start >= size as u64 => start,
            _ => {
                let what = format!("no {size} bytes of writable memory for {}", call.nr.name());
                return Err(Cause::unsupported(what));
            }
        };
        let mut image = Vec::with_capacity(size);
        let mut words = [0; 6];
        for (word, arg) in words.iter_mut().zip(&call.args) {
            *word = match arg {
                Arg::Value(v) => *v,
                Arg::Memory(m) | Arg::Back(m) => at + lay_down(m, at, &mut image) as u64,
                Arg::Out(len) => at + lay_zeros(*len, &mut image) as u64,
            };
        }
        let mut old = vec![0; image.len()];
        if !image.is_empty() {
            vm::read_exact(self.task.tid(), at, &mut old)?;
            vm::write_all(self.task.tid(), at, &image)?;
        }
        let returned = self.make(call.nr, words)?;
        if !old.is_empty() {
            vm::write_all(self.task.tid(), at, &old)?;
        }
        let wanted = match call.want {
            Want::Success => !(-4095..0).contains(&returned),
            Want::Exactly(v) => returned.cast_unsigned() == v,
            Want::Anything => true,
        };
        if wanted {
            return Ok(());
        }
        Err(SysError::new(call.nr.name(), call.shown_args(), errno(returned)).into())
    }

    fn make(&self, nr: Nr, args: [u64; 6]) -> Result<i64, Cause> {
        self.task.set_regs(&self.with(nr, args))?;
        self.task.step_syscall().map_err(stop_cause)
    }

    /// Registers for a call.
    fn with(&self, nr: Nr, args: [u64; 6]) -> Regs {
        let mut regs = self.regs;
        regs.rax = nr.raw();
        [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9] = args;
        regs
    }
}

/// The error that a call returned.
fn errno(returned: i64) -> Errno {
    let number = i32::try_from(returned.saturating_neg()).ok().filter(|n| (1..4096).contains(n));
    number.map_or(Errno::PROTO, Errno::from_raw_os_error)
}

/// Whether it is a stack in whose far end there is room for a filter.
pub(super) fn is_roomy_stack(area: &Record) -> bool {
    /// Twice the longest filter.
    const ENOUGH: u64 = 64 * 1024;
    area.flags.contains(&yendor_kinds::memory::vma::Flag::GrowsDown) && area.len() >= ENOUGH
}

/// Anonymous memory that can be written: the far end of a stack, else the largest area.
fn room(alive: &Alive) -> Option<(u64, u64)> {
    const READ_WRITE: u32 = 3;
    let fits =
        |a: &&Record| !a.shared && a.protection & READ_WRITE == READ_WRITE && matches!(a.backing, Backing::Anonymous);
    let rank = |a: &&Record| (is_roomy_stack(a), a.len());
    alive.memory.areas.iter().filter(fits).max_by_key(rank).map(|a| (a.start.0, a.end.0))
}
