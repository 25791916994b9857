//! Images that say what nobody ever wrote: a good one is taken apart, changed, and put together with right digests.

use ciborium::Value;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// An image in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Forge {
    /// All files but `format`, `manifest.json` and `records.cbor`.
    pub files: BTreeMap<String, Vec<u8>>,
    /// The records.
    pub records: Value,
    /// `container` or `tree`.
    pub kind: String,
}

impl Forge {
    /// Takes an image apart.
    pub fn open(image: &Path) -> Self {
        let read = |name: &str| fs::read(image.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        let manifest: serde_json::Value = serde_json::from_slice(&read("manifest.json")).expect("a manifest");
        let names = manifest["files"].as_array().expect("files").iter();
        let mut files: BTreeMap<String, Vec<u8>> =
            names.map(|f| f["name"].as_str().expect("a name").to_owned()).map(|n| (n.clone(), read(&n))).collect();
        let records = files.remove("records.cbor").expect("records");
        let records = ciborium::from_reader(records.as_slice()).expect("CBOR");
        Self { files, records, kind: manifest["kind"].as_str().expect("a kind").to_owned() }
    }

    /// The value at a path like `processes/0/state/alive`. Panics where there is none: a test that changes nothing is none.
    #[track_caller]
    pub fn at(&mut self, path: &str) -> &mut Value {
        let mut here = &mut self.records;
        for step in path.split('/') {
            here = find(here, step).unwrap_or_else(|| panic!("no {step} of {path} in the records"));
        }
        here
    }

    /// Whether there is a value at a path.
    pub fn has(&self, path: &str) -> bool {
        let mut here = &self.records;
        path.split('/').all(|step| match found(here, step) {
            Some(next) => {
                here = next;
                true
            }
            None => false,
        })
    }

    /// Replaces the value at a path.
    #[track_caller]
    pub fn set(&mut self, path: &str, value: impl Into<Value>) {
        *self.at(path) = value.into();
    }

    /// The list at a path.
    #[track_caller]
    pub fn list(&mut self, path: &str) -> &mut Vec<Value> {
        match self.at(path) {
            Value::Array(list) => list,
            other => panic!("{path} is no list: {other:?}"),
        }
    }

    /// Puts it together; the directory must not exist.
    pub fn write(&self, image: &Path) {
        let mut records = Vec::new();
        ciborium::into_writer(&self.records, &mut records).expect("encode");
        self.write_with(image, &records);
    }

    /// The same with these bytes for records.
    pub fn write_with(&self, image: &Path, records: &[u8]) {
        fs::DirBuilder::new().mode(0o700).create(image).expect("mkdir");
        let put = |name: &str, content: &[u8]| {
            let mut options = fs::OpenOptions::new();
            let mut file = options.write(true).create_new(true).mode(0o600).open(image.join(name)).expect("create");
            std::io::Write::write_all(&mut file, content).expect("write");
        };
        put("format", FORMAT);
        let mut entries: Vec<(&str, &[u8])> = self.files.iter().map(|(n, c)| (n.as_str(), c.as_slice())).collect();
        entries.push(("records.cbor", records));
        entries.sort_unstable();
        put("manifest.json", &self.manifest(&entries));
        for (name, content) in entries {
            put(name, content);
        }
    }

    /// `docs/format.md`, by hand.
    fn manifest(&self, entries: &[(&str, &[u8])]) -> Vec<u8> {
        let listed = |(name, content): &(&str, &[u8])| {
            ((*name).to_owned(), content.len() as u64, blake3::hash(content).to_hex().to_string())
        };
        manifest(&self.kind, &entries.iter().map(listed).collect::<Vec<_>>())
    }

    /// Lists more files in the manifest of an image that was written: their names, sizes, and digests in hexadecimal digits.
    pub fn list_also(image: &Path, more: &[(String, u64, String)]) {
        let path = image.join("manifest.json");
        let before: serde_json::Value = serde_json::from_slice(&fs::read(&path).expect("read")).expect("a manifest");
        let listed = |file: &serde_json::Value| {
            let text = |name: &str| file[name].as_str().expect("text").to_owned();
            (text("name"), file["bytes"].as_u64().expect("a size"), text("blake3"))
        };
        let mut files: Vec<_> = before["files"].as_array().expect("files").iter().map(listed).collect();
        files.extend(more.iter().cloned());
        files.sort_unstable();
        fs::write(path, manifest(before["kind"].as_str().expect("a kind"), &files)).expect("write");
    }
}

fn manifest(kind: &str, entries: &[(String, u64, String)]) -> Vec<u8> {
    let file = |(name, bytes, digest): &(String, u64, String)| {
        format!(
            "    {{\n      \"name\": \"{name}\",\n      \"bytes\": {bytes},\n      \"blake3\": \"{digest}\"\n    }}"
        )
    };
    let files = entries.iter().map(file).collect::<Vec<_>>().join(",\n");
    let body =
        format!("{{\n  \"created\": 1,\n  \"generation\": 1,\n  \"kind\": \"{kind}\",\n  \"files\": [\n{files}\n  ]");
    seal(&body)
}

/// The file `format`.
pub const FORMAT: &[u8] = b"yendor image 1\n";

/// A manifest's bytes with a right seal, whatever they say.
pub fn seal(body: &str) -> Vec<u8> {
    let seal = blake3::Hasher::new().update(FORMAT).update(body.as_bytes()).finalize().to_hex();
    format!("{body},\n  \"blake3\": \"{seal}\"\n}}\n").into_bytes()
}

fn find<'v>(value: &'v mut Value, step: &str) -> Option<&'v mut Value> {
    match value {
        Value::Array(list) => list.get_mut(step.parse::<usize>().ok()?),
        Value::Map(map) => map.iter_mut().find(|(k, _)| k.as_text() == Some(step)).map(|(_, v)| v),
        _ => None,
    }
}

fn found<'v>(value: &'v Value, step: &str) -> Option<&'v Value> {
    match value {
        Value::Array(list) => list.get(step.parse::<usize>().ok()?),
        Value::Map(map) => map.iter().find(|(k, _)| k.as_text() == Some(step)).map(|(_, v)| v),
        _ => None,
    }
}
