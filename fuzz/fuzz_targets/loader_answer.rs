//! What a loader sends that an image has taken over: any bytes are refused, or are what a loader could have sent.
#![no_main]

use libfuzzer_sys::fuzz_target;
use yendor_engine::load::{Glance, Loaded, decode};

fuzz_target!(|bytes: &[u8]| {
    drop(decode::<Loaded>(bytes));
    drop(decode::<(Glance, yendor_image::Digest)>(bytes));
    drop(decode::<yendor_image::Manifest>(bytes));
});
