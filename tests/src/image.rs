//! Images that are wrong on purpose: their records changed, all digests right.

use std::fs;
use std::path::Path;

use ciborium::Value;

/// Copies an image, as its owner.
pub fn copy_image(from: &Path, to: &Path) {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
    let own = |path: &Path, like: &fs::Metadata| {
        chown(path, Some(like.uid()), Some(like.gid())).expect("chown as its owner");
    };
    fs::create_dir(to).expect("make a directory of our own");
    fs::set_permissions(to, PermissionsExt::from_mode(0o700)).expect("chmod of our own");
    for entry in fs::read_dir(from).expect("an image").flatten() {
        let copy = to.join(entry.file_name());
        fs::copy(entry.path(), &copy).expect("copy a file of an image");
        own(&copy, &entry.metadata().expect("a file of an image"));
    }
    own(to, &fs::metadata(from).expect("an image"));
}

/// Changes the records of an image and makes size, digest and seal right again (docs/format.md).
pub fn forge(image: &Path, change: impl FnOnce(&mut Value)) {
    let path = image.join("records.cbor");
    let text = fs::read(&path).expect("records");
    let mut records: Value = ciborium::from_reader(text.as_slice()).expect("CBOR");
    change(&mut records);
    let mut text = Vec::new();
    ciborium::into_writer(&records, &mut text).expect("CBOR");
    fs::write(&path, &text).expect("write records");
    let path = image.join("manifest.json");
    let manifest = fs::read_to_string(&path).expect("manifest");
    let mut lines: Vec<String> = manifest.lines().map(str::to_owned).collect();
    let at = lines.iter().position(|line| line.contains("\"records.cbor\"")).expect("records are listed");
    lines[at + 1] = format!("      \"bytes\": {},", text.len());
    lines[at + 2] = format!("      \"blake3\": \"{}\"", blake3::hash(&text).to_hex());
    let seal = lines.iter().rposition(|line| line.starts_with("  \"blake3\"")).expect("a seal");
    let body = lines[..seal].join("\n");
    let body = body.strip_suffix(',').expect("a comma before the seal");
    let mut hasher = blake3::Hasher::new();
    hasher.update(&fs::read(image.join("format")).expect("format")).update(body.as_bytes());
    let sealed = format!("{body},\n  \"blake3\": \"{}\"\n}}\n", hasher.finalize().to_hex());
    fs::write(&path, sealed).expect("write the manifest");
}

/// The value at a path of field names and indices. Panics when there is none.
pub fn at<'v>(mut value: &'v mut Value, path: &[&str]) -> &'v mut Value {
    for step in path {
        value = match value {
            Value::Map(fields) => {
                let found = fields.iter_mut().find(|(name, _)| name.as_text() == Some(step));
                &mut found.unwrap_or_else(|| panic!("no field {step}")).1
            }
            Value::Array(items) => {
                let index: usize = step.parse().unwrap_or_else(|_| panic!("{step} is no index"));
                items.get_mut(index).unwrap_or_else(|| panic!("no item {step}"))
            }
            other => panic!("nothing in {other:?} at {step}"),
        };
    }
    value
}
