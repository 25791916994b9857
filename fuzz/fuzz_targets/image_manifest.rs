//! `format` and `manifest.json`: as they come, and with a right seal, which a fuzzer would never guess.
#![no_main]

use libfuzzer_sys::fuzz_target;
use yendor_image::upgrade::Version;
use yendor_image::{Limits, Manifest, manifest};

fuzz_target!(|bytes: &[u8]| {
    if let Err(error) = Version::parse(bytes) {
        assert!(error.is_damage());
    }
    for document in [bytes.to_vec(), manifest::seal(Version::V1, bytes)] {
        match Manifest::decode(&document, Version::V1, &Limits::default()) {
            Ok(manifest) => {
                assert_eq!(
                    manifest.encode(Version::V1).expect("what was decoded"),
                    document
                );
                assert!(
                    manifest
                        .files
                        .iter()
                        .all(|entry| yendor_image::is_file_name(&entry.name))
                );
            }
            Err(error) => assert!(error.is_damage()),
        }
    }
});
