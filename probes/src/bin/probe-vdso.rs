//! vdso: where the auxiliary vector says, its clocks agree with the kernel's, none goes backwards.
#![allow(unsafe_code)]

use probe::{clock, expect, expect_that, ok, sleep_ms};

const CLOCKS: [(&str, i32); 5] = [
    ("monotonic", libc::CLOCK_MONOTONIC),
    ("boottime", libc::CLOCK_BOOTTIME),
    ("raw", libc::CLOCK_MONOTONIC_RAW),
    ("coarse", libc::CLOCK_MONOTONIC_COARSE),
    ("realtime", libc::CLOCK_REALTIME),
];

/// The kernel's own word, past the vdso.
fn asked(id: i32) -> i128 {
    unsafe {
        let mut time: libc::timespec = std::mem::zeroed();
        ok("clock_gettime", libc::syscall(libc::SYS_clock_gettime, id, &mut time));
        i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec)
    }
}

/// Start of the mapping with this name.
fn mapping(name: &str) -> Option<u64> {
    let text = probe::read_file("/proc/self/maps");
    let line = text.lines().find(|line| line.ends_with(name))?;
    u64::from_str_radix(line.split('-').next()?, 16).ok()
}

fn auxiliary() -> Vec<[u64; 2]> {
    let bytes = std::fs::read("/proc/self/auxv").unwrap_or_default();
    let word = |bytes: &[u8]| u64::from_ne_bytes(bytes.try_into().unwrap_or([0; 8]));
    bytes.chunks_exact(16).map(|pair| [word(&pair[..8]), word(&pair[8..])]).collect()
}

type State = (Vec<[u64; 2]>, Vec<i128>);

fn setup() -> State {
    (auxiliary(), CLOCKS.map(|(_, id)| clock(id)).to_vec())
}

fn check((vector, times): State) {
    expect("auxiliary vector", auxiliary(), vector.clone());
    let header = unsafe { libc::getauxval(libc::AT_SYSINFO_EHDR) };
    expect(
        "vdso in the auxiliary vector",
        vector.iter().find(|pair| pair[0] == libc::AT_SYSINFO_EHDR).map(|pair| pair[1]),
        Some(header),
    );
    expect("mapping of the vdso", mapping("[vdso]"), Some(header));
    expect("magic", unsafe { *(header as *const [u8; 4]) }, *b"\x7fELF");
    let now: Vec<i128> = CLOCKS.map(|(_, id)| clock(id)).to_vec();
    let real = now[4] - times[4];
    for ((name, id), (now, before)) in CLOCKS.into_iter().zip(now.iter().zip(&times)) {
        let gone = now - before;
        expect_that(&format!("time gone of {name}"), gone >= 0 && gone <= real + 1_000_000_000, (gone, real));
        for _ in 0..100 {
            // A coarse clock may lag by a tick.
            let (first, vdso, last) = (asked(id), clock(id), asked(id));
            expect_that(&format!("{name}: kernel, vdso, kernel"), first <= vdso && vdso <= last, (first, vdso, last));
        }
        let start = clock(id);
        sleep_ms(20);
        expect_that(&format!("{name} goes on"), clock(id) > start, start);
    }
    cpu_is_known();
}

fn cpu_is_known() {
    unsafe {
        let mut allowed: libc::cpu_set_t = std::mem::zeroed();
        ok("sched_getaffinity", libc::sched_getaffinity(0, size_of_val(&allowed), &mut allowed));
        for cpu in (0..1024).filter(|&cpu| libc::CPU_ISSET(cpu, &allowed)) {
            let mut one: libc::cpu_set_t = std::mem::zeroed();
            libc::CPU_SET(cpu, &mut one);
            ok("sched_setaffinity", libc::sched_setaffinity(0, size_of_val(&one), &one));
            expect("processor", libc::sched_getcpu(), cpu as i32);
        }
        ok("sched_setaffinity", libc::sched_setaffinity(0, size_of_val(&allowed), &allowed));
    }
}

fn main() {
    probe::run(setup, check)
}
