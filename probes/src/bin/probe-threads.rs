//! Sixteen threads that differ in all that a thread has of its own.
#![allow(unsafe_code)]

use probe::{expect, expect_that, name_of, ok, sleep_ms, tid};
use std::cell::Cell;
use std::ffi::{CStr, CString};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::thread::{JoinHandle, spawn};

thread_local!(static LOCAL: Cell<u64> = const { Cell::new(0) });

struct Shared {
    started: AtomicU32,
    released: AtomicU32,
    locks: [Lock; 16],
}

struct Lock(*mut libc::pthread_mutex_t);
// SAFETY: a mutex is made for that.
unsafe impl Send for Lock {}
// SAFETY: as above.
unsafe impl Sync for Lock {}

fn robust_lock() -> Lock {
    // SAFETY: initialised before use, never moved.
    unsafe {
        let mut attributes = std::mem::zeroed();
        libc::pthread_mutexattr_init(&mut attributes);
        expect("robust", libc::pthread_mutexattr_setrobust(&mut attributes, libc::PTHREAD_MUTEX_ROBUST), 0);
        let mutex = Box::into_raw(Box::new(std::mem::zeroed()));
        libc::pthread_mutex_init(mutex, &attributes);
        Lock(mutex)
    }
}

#[derive(Debug, PartialEq)]
struct Own {
    tid: i32,
    name: Vec<u8>,
    mask: u64,
    stack: (usize, usize, i32),
    robust: (usize, usize),
    local: u64,
}

fn own() -> Own {
    // SAFETY: all are reads into values of the right size.
    unsafe {
        let mut mask = 0_u64;
        ok("sigprocmask", libc::syscall(libc::SYS_rt_sigprocmask, 0, 0, &mut mask, 8));
        let mut stack: libc::stack_t = std::mem::zeroed();
        ok("sigaltstack", libc::sigaltstack(std::ptr::null(), &mut stack));
        let (mut head, mut length) = (0_usize, 0_usize);
        ok("get_robust_list", libc::syscall(libc::SYS_get_robust_list, 0, &mut head, &mut length));
        let (stack, robust) = ((stack.ss_sp as usize, stack.ss_size, stack.ss_flags), (head, length));
        Own { tid: tid(), name: name_of(tid()), mask, stack, robust, local: LOCAL.get() }
    }
}

/// glibc registers rseq(2) for each thread and publishes where: its cpu_id must follow the thread.
fn rseq_follows() {
    // SAFETY: the symbol is an offset from the thread pointer, as rseq(2) in glibc's manual says.
    unsafe {
        let offset = libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_offset".as_ptr()).cast::<isize>();
        if offset.is_null() {
            return;
        }
        let thread: *const u8;
        std::arch::asm!("mov {}, fs:0", out(reg) thread);
        let cpu_id = thread.offset(*offset + 4).cast::<i32>();
        let mut allowed: libc::cpu_set_t = std::mem::zeroed();
        ok("sched_getaffinity", libc::sched_getaffinity(0, size_of_val(&allowed), &mut allowed));
        for cpu in (0..1024).filter(|&cpu| libc::CPU_ISSET(cpu, &allowed)) {
            let mut one: libc::cpu_set_t = std::mem::zeroed();
            libc::CPU_SET(cpu, &mut one);
            ok("sched_setaffinity", libc::sched_setaffinity(0, size_of_val(&one), &one));
            expect("rseq cpu_id", cpu_id.read_volatile(), cpu as i32);
        }
        ok("sched_setaffinity", libc::sched_setaffinity(0, size_of_val(&allowed), &allowed));
    }
}

fn work(number: usize, shared: &Shared) {
    LOCAL.set(0x1000_0000_0000 * number as u64 + 7);
    // SAFETY: calls on values of our own; the alternate stack lives as long as the process.
    unsafe {
        let name = CString::new(vec![b'p', 0xf0 + number as u8, b' ', b')', b'a' + number as u8]).unwrap();
        libc::prctl(libc::PR_SET_NAME, name.as_ptr());
        let stack = libc::stack_t {
            ss_sp: Box::leak(vec![0_u8; 16384 + 4096 * number].into_boxed_slice()).as_mut_ptr().cast(),
            ss_flags: 0,
            ss_size: 16384 + 4096 * number,
        };
        ok("sigaltstack", libc::sigaltstack(&stack, std::ptr::null_mut()));
        // All but a real-time signal of one's own; requests are for the main thread.
        let mask = !(1_u64 << (40 + number));
        ok("sigprocmask", libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &mask, 0, 8));
        expect("lock", libc::pthread_mutex_lock(shared.locks[number].0), 0);
    }
    let before = own();
    shared.started.fetch_add(1, SeqCst);
    while shared.released.load(SeqCst) == 0 {
        sleep_ms(3);
    }
    expect("what a thread has of its own", own(), before);
    rseq_follows();
    // Ends with the lock held: its next owner must be told.
}

type State = (Arc<Shared>, Vec<JoinHandle<()>>, i32);

fn setup() -> State {
    let shared = Arc::new(Shared {
        started: AtomicU32::new(0),
        released: AtomicU32::new(0),
        locks: std::array::from_fn(|_| robust_lock()),
    });
    let threads = (0..16)
        .map(|number| {
            spawn({
                let shared = shared.clone();
                move || work(number, &shared)
            })
        })
        .collect();
    probe::wait_until("threads", || shared.started.load(SeqCst) == 16);
    (shared, threads, tid())
}

fn check((shared, threads, main): State) {
    expect("tid of the main thread", tid(), main);
    expect("pid", std::process::id() as i32, main);
    for lock in &shared.locks {
        // SAFETY: as initialised.
        expect("lock of a living thread", unsafe { libc::pthread_mutex_trylock(lock.0) }, libc::EBUSY);
    }
    let count = std::fs::read_dir("/proc/self/task").map(Iterator::count).unwrap_or(0);
    expect("threads", count, 17);
    shared.released.store(1, SeqCst);
    for thread in threads {
        // pthread_join waits for the word that the kernel clears (set_tid_address(2)).
        expect("join", thread.join().is_ok(), true);
    }
    for lock in &shared.locks {
        // SAFETY: as initialised.
        let result = unsafe { libc::pthread_mutex_lock(lock.0) };
        // SAFETY: errno texts are static.
        let text = unsafe { CStr::from_ptr(libc::strerror(result)) };
        expect_that("lock of a dead thread tells so", result == libc::EOWNERDEAD, text);
    }
    rseq_follows();
}

fn main() {
    probe::run(setup, check)
}
