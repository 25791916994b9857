//! `records.cbor`: any bytes are refused, or are the only spelling of a value.
#![no_main]

use libfuzzer_sys::fuzz_target;
use yendor_image::{Limits, cbor};

fuzz_target!(|document: &[u8]| {
    let limits = Limits::default();
    match cbor::decode::<ciborium::Value>(document, &limits) {
        Ok(value) => assert_eq!(
            cbor::encode(&value, &limits).expect("what was decoded"),
            document
        ),
        Err(error) => assert!(error.is_damage()),
    }
});
