//! One target under libFuzzer: `YENDOR_FUZZ_TARGET` names it, arguments are libFuzzer's. `cargo xtask fuzz` builds and starts it.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use yendor_fuzz::{Shape, Target, changed, target};
use yendor_tests::Dice;

fn chosen() -> &'static Target {
    static CHOSEN: OnceLock<&'static Target> = OnceLock::new();
    CHOSEN.get_or_init(|| {
        let name = std::env::var("YENDOR_FUZZ_TARGET").unwrap_or_default();
        target(&name).unwrap_or_else(|| panic!("YENDOR_FUZZ_TARGET={name:?} names no target"))
    })
}

fuzz_target!(init: { chosen(); }, |bytes: &[u8]| -> () {
    (chosen().run)(bytes);
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let mut dice = Dice::new(seed.into());
    if chosen().shape == Shape::Records && dice.below(2) == 0 {
        let bytes = changed(&data[..size], Shape::Records, &mut dice);
        if bytes.len() <= max_size {
            data[..bytes.len()].copy_from_slice(&bytes);
            return bytes.len();
        }
    }
    fuzzer_mutate(data, size, max_size)
});
