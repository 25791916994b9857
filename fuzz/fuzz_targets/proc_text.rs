//! Every parser of `/proc` text, chosen by the first byte: any bytes are a value or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((&choice, text)) = bytes.split_first() else {
        return;
    };
    match choice % 6 {
        0 => drop(yendor_proc::maps::parse(text)),
        1 => drop(yendor_proc::smaps::parse(text)),
        2 => drop(yendor_proc::stat::parse(text)),
        3 => drop(yendor_proc::status::parse(text)),
        4 => drop(yendor_proc::limits::parse(text)),
        _ => drop(yendor_proc::locks::parse(text)),
    }
});
