//! `records.cbor` as what it stands for: any bytes are refused, or are a snapshot whose claims can be checked and planned.
#![no_main]

use libfuzzer_sys::fuzz_target;
use yendor_engine::load::check;
use yendor_image::{Kind, Limits, Manifest, cbor};
use yendor_kinds::snapshot::Snapshot;

fuzz_target!(|document: &[u8]| {
    let limits = Limits::default();
    if let Ok(snapshot) = cbor::decode::<Snapshot>(document, &limits) {
        assert_eq!(
            cbor::encode(&snapshot, &limits).expect("what was decoded"),
            document
        );
        let manifest = Manifest {
            created: 0,
            generation: 0,
            kind: Kind::Container,
            files: Vec::new(),
        };
        drop(check::check(&snapshot, &manifest));
    }
});
