//! Many mappings (first argument, 5000 unless told) that the kernel cannot merge.
#![allow(unsafe_code)]

use probe::{PAGE, Region, check_pattern, expect, fill_pattern, map, ok};

fn protection(number: usize) -> i32 {
    [libc::PROT_READ, libc::PROT_READ | libc::PROT_WRITE, libc::PROT_NONE][number % 3]
}

/// Start, end and permissions of each mapping in the region.
fn mappings(region: &Region) -> Vec<String> {
    let (low, high) = (region.at(0) as usize, region.at(0) as usize + region.len());
    let text = probe::read_file("/proc/self/maps");
    let inside = |line: &&str| {
        let start = usize::from_str_radix(line.split('-').next().unwrap_or(""), 16).unwrap_or(0);
        (low..high).contains(&start)
    };
    text.lines().filter(inside).map(|line| line.split(' ').take(2).collect::<Vec<_>>().join(" ")).collect()
}

fn setup() -> (Region, Vec<String>) {
    let count: usize = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(5000);
    // Far from everything else: a neighbour would be merged with the first or the last.
    let address = 0x1666_0000_0000_usize as *mut _;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    let region = unsafe { libc::mmap(address, count * PAGE, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    let region = Region::adopt(region, count * PAGE);
    for number in 0..count {
        // Every seventh stays without content.
        if number % 7 != 0 {
            fill_pattern(region.at(number * PAGE), PAGE, number as u64);
        }
        ok("mprotect", unsafe { libc::mprotect(region.at(number * PAGE).cast(), PAGE, protection(number)) });
    }
    let before = mappings(&region);
    expect("mappings", before.len(), count);
    (region, before)
}

fn check((region, before): (Region, Vec<String>)) {
    expect("mappings that changed", mappings(&region).iter().zip(&before).find(|(now, before)| now != before), None);
    expect("mappings", mappings(&region).len(), before.len());
    ok("mprotect", unsafe { libc::mprotect(region.at(0).cast(), region.len(), libc::PROT_READ) });
    let zero = map(PAGE, libc::PROT_READ, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    let bytes = |region: &Region, at: usize| unsafe { *region.at(at).cast::<[u64; 512]>() };
    for number in 0..before.len() {
        if number % 7 != 0 {
            check_pattern("page", region.at(number * PAGE), PAGE, number as u64);
        } else {
            expect("empty page", bytes(&region, number * PAGE) == bytes(&zero, 0), true);
        }
    }
}

fn main() {
    probe::run(setup, check)
}
