//! Every parser of `/proc` text, chosen by the first byte: any bytes are a value or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((&choice, text)) = bytes.split_first() else {
        return;
    };
    match choice % 21 {
        0 => drop(yendor_proc::maps::parse(text)),
        1 => drop(yendor_proc::smaps::parse(text)),
        2 => drop(yendor_proc::stat::parse(text)),
        3 => drop(yendor_proc::status::parse(text)),
        4 => drop(yendor_proc::limits::parse(text)),
        5 => drop(yendor_proc::locks::parse(text)),
        6 => drop(yendor_proc::timens_offsets::parse(text)),
        7 => drop(yendor_proc::id_map::parse(text)),
        8 => drop(yendor_proc::sysvipc::parse_shm(text)),
        9 => drop(yendor_proc::sysvipc::parse_sem(text)),
        10 => drop(yendor_proc::sysvipc::parse_msg(text)),
        11 => drop(yendor_proc::mountinfo::parse(text)),
        12 => drop(yendor_proc::cgroup::parse(text)),
        13 => drop(yendor_proc::children::parse(text)),
        14 => drop(yendor_proc::syscall::parse(text)),
        15 => drop(yendor_proc::auxv::parse(text)),
        16 => drop(yendor_proc::timers::parse(text)),
        17 => drop(yendor_proc::personality::parse(text)),
        18 => drop(yendor_proc::net_unix::parse(text)),
        19 => drop(yendor_proc::fdinfo::parse(text)),
        _ => drop(yendor_policy::seccomp::program(text)),
    }
});
