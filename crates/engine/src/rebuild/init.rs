//! Pid 1: the first stub. It forgets the keeper's memory, gives birth to the
//! others, and in the end reaps (a machine-code loop; see the task crate's gadget).

use std::collections::BTreeSet;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{MemfdFlags, Mode, OFlags, memfd_create, openat};
use yendor_image::Bytes;
use yendor_kinds::memory::layout;
use yendor_kinds::memory::vma::Backing;
use yendor_kinds::process::{Inquiry, control, sched, sigaction};
use yendor_kinds::{Cause, Named};
use yendor_proc::maps::{self, Label};
use yendor_sys::seccomp::descriptor_of;
use yendor_sys::{Errno, SysError, ptrace};
use yendor_task::script::{Want, bytes, cstr};
use yendor_task::stop::StopError;
use yendor_task::{Nr, Script, Stopped, args, gadget};

use super::vdso::Vdso;
use super::{PARKING, Rebuilt, Site, Task};
use crate::error::{At, Result, Step, With};
use crate::recorder;

const MREMAP_MAYMOVE_FIXED: u32 = 3;
const TASK_END: u64 = 0x7fff_ffff_f000;
const RSEQ_UNREGISTER: u32 = 1;
const PR_SET_PDEATHSIG: u32 = 1;
const SIGKILL: u32 = 9;

/// Takes the stub over and prepares it.
pub fn start(site: &mut Site<'_>, tid: i32) -> Result<Task> {
    let task = Task { tid, slot: 0 };
    Stopped::seize(tid, ptrace::O_EXITKILL | ptrace::O_TRACESYSGOOD).at(Step::Rebuild)?;
    let stopped = Stopped::interrupt(tid).map_err(cause).at(Step::Rebuild)?;
    let rseq = ptrace::rseq(tid).at(Step::Rebuild)?;
    ptrace::set_sigmask(tid, u64::MAX).at(Step::Rebuild)?;
    let regs = stopped.regs().at(Step::Rebuild)?;
    stopped.set_regs(&site.arena.entry_regs(&regs, 0, gadget::WAIT, 0)).at(Step::Rebuild)?;
    stopped.resume().at(Step::Rebuild)?;
    let mut script = Script::new();
    // Taken over before it could ask for that itself; it must end with the keeper when it is nobody's tracee any more.
    script.call(Nr::PRCTL, args![PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0]);
    if rseq.area != 0 {
        script.call(Nr::RSEQ, args![rseq.area, rseq.size, RSEQ_UNREGISTER, rseq.signature]);
    }
    script.call(Nr::SET_ROBUST_LIST, args![0, 24]);
    script.call(Nr::SET_TID_ADDRESS, args![0]);
    script.call(
        Nr::SIGALTSTACK,
        args![bytes([0u8, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), 0],
    );
    script.call(Nr::PRCTL, args![15, cstr(b"yendor-init"), 0, 0, 0]);
    sigaction::reset(&mut script);
    park_vdso(site, &mut script)?;
    let (base, end) = (site.arena.base(), site.arena.end());
    script.call(Nr::MUNMAP, args![0, base]);
    script.call(Nr::MUNMAP, args![end + PARKING, TASK_END - end - PARKING]);
    forget_program(site, &mut script)?;
    forget_descriptors(site, &mut script);
    site.run(&task, &script).at(Step::Rebuild).task(1)?;
    (site.now.sched, site.now.controls) = ask(site, &task).at(Step::Rebuild)?;
    Ok(task)
}

/// A file without a name or content.
pub fn program(proc: &OwnedFd) -> std::result::Result<OwnedFd, SysError> {
    let writable = memfd_create("yendor-init", MemfdFlags::CLOEXEC).named("memfd_create", || "yendor-init".into())?;
    // What can be written is no program.
    let path = format!("self/fd/{}", writable.as_raw_fd());
    openat(proc, path.as_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .named("openat", || format!("/proc/{path}"))
}

/// /proc/1/exe is no file of the host's any more, whose mode its owner could change: it is one without a name.
fn forget_program(site: &Site<'_>, script: &mut Script) -> Result<()> {
    let base = site.arena.base();
    let empty = (base, base);
    let record = layout::Record {
        code: (base, base + 1),
        data: empty,
        brk: (base + 1, base + 1),
        stack: base,
        arguments: empty,
        environment: empty,
        auxv: Bytes::default(),
        exe: None,
    };
    layout::rebuild(&record, Some(site.nobody), script);
    Ok(())
}

/// Of the keeper's descriptors stubs have those only that they are to have: the others lead out of the container, where any path of an
/// image could follow them (`/proc/self/fd`).
fn forget_descriptors(site: &Site<'_>, script: &mut Script) {
    let kept: BTreeSet<u32> = site.held.iter().map(|fd| fd.as_raw_fd().unsigned_abs()).collect();
    let mut free = 0;
    for number in kept {
        if number > free {
            script.call(Nr::CLOSE_RANGE, args![free, number - 1, 0]);
        }
        free = number + 1;
    }
    script.call(Nr::CLOSE_RANGE, args![free, u32::MAX, 0]);
}

/// Everybody's filter that tells us of restrictions which tasks put on themselves: the listener, or why there is none.
pub fn record(site: &Site<'_>, init: &Task, notes: &mut Vec<String>) -> Result<Option<OwnedFd>> {
    let listening = |killable| {
        let mut script = Script::new();
        recorder::install((site.confine.cookie, site.later.is_some()), killable, &mut script);
        let number = site.run(init, &script)?.first().map_or(-1, |d| d.returned);
        let fd = descriptor_of(init.tid, i32::try_from(number).unwrap_or(-1))?;
        let mut script = Script::new();
        recorder::close(number, &mut script);
        site.run(init, &script)?;
        Ok::<_, Cause>(fd)
    };
    // Once there is a filter, nobody would answer for a second attempt.
    let no_filter = |e: &Cause| e.sys().is_some_and(|s| s.call == "seccomp");
    match listening(true).or_else(|e| if no_filter(&e) { listening(false) } else { Err(e) }) {
        Ok(fd) => Ok(Some(fd)),
        Err(e) if no_filter(&e) => {
            notes.push(format!(
                "restrictions that tasks put on themselves are not recorded here: a checkpoint is refused where there may be some: {e}"
            ));
            Ok(None)
        }
        Err(e) => Err(e).at(Step::Confine).task(1),
    }
}

fn cause(e: StopError) -> Cause {
    match e {
        StopError::Dead(d) => d.into(),
        StopError::Sys(e) => e.into(),
    }
}

/// Moves vdso and vvar behind the arena, keeping their distances.
fn park_vdso(site: &mut Site<'_>, script: &mut Script) -> Result<()> {
    let me = rustix::process::getpid().as_raw_nonzero().get();
    let text = yendor_task::tree::read_proc(site.proc.as_fd(), &format!("{me}/maps")).at(Step::Rebuild)?;
    let mut to = site.arena.end();
    for map in maps::parse(&text).at(Step::Rebuild)? {
        let what = match map.label() {
            Label::Vdso => Backing::Vdso,
            Label::Vvar => Backing::Vvar,
            Label::VvarVclock => Backing::VvarClock,
            _ => continue,
        };
        let len = map.len();
        if what == Backing::Vdso {
            Vdso::at(me, &map)?.check(&site.snapshot.machine)?;
        }
        script.call_wanting(Nr::MREMAP, args![map.start, len, len, MREMAP_MAYMOVE_FIXED, to], Want::Exactly(to));
        site.parked.push((what, to, len));
        to += len;
    }
    if to > site.arena.end() + PARKING {
        return Err(SysError::new("mremap", "the vdso is larger than expected", Errno::NOMEM)).at(Step::Rebuild);
    }
    Ok(())
}

fn ask(site: &Site<'_>, task: &Task) -> std::result::Result<(sched::Record, control::Thread), Cause> {
    let mut inquiry = Inquiry::default();
    let (sched, controls) = (sched::ask(&mut inquiry), control::ask_thread(&mut inquiry));
    let done = site.run(task, inquiry.script())?;
    inquiry.answered(done);
    Ok((sched::collect(&inquiry, sched)?, control::collect_thread(&inquiry, controls)?))
}

/// The last of pid 1's scripts: no descriptors, no scratch memory but its own; then its registers lead to the reaper.
pub fn become_init(rebuilt: &Rebuilt, main: i32) -> std::result::Result<(), Cause> {
    let arena = &rebuilt.arena;
    let mut script = Script::new();
    script.call(Nr::CLOSE_RANGE, args![0, u32::MAX, 0]);
    script.call(Nr::CHDIR, args![cstr(b"/")]);
    let rest = arena.slot_address(0) + super::SLOT as u64;
    script.call(Nr::MUNMAP, args![rest, arena.end() + PARKING - rest]);
    arena.run(0, rebuilt.init, &script)?;
    let stopped = Stopped::interrupt(rebuilt.init).map_err(cause)?;
    let mut regs = arena.entry_regs(&stopped.regs()?, 0, gadget::INIT, 0);
    regs.r15 = u64::from(main.unsigned_abs());
    stopped.set_regs(&regs)?;
    ptrace::set_sigmask(rebuilt.init, 0)?;
    Ok(())
}
