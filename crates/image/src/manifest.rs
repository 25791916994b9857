//! `manifest.json`: which files an image has, how large they are, and their digests; sealed by a digest of its own.

use crate::block;
use crate::crypt;
use crate::upgrade::Version;
use crate::{Digest, Error, FORMAT_FILE, Limits, MANIFEST_FILE, RECORDS_FILE, Result, SIGNATURE_FILE, is_file_name};
use serde::{Deserialize, Serialize};

/// What an image was taken from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A whole container.
    #[default]
    Container,
    /// A process tree that was named by pid.
    Tree,
}

/// How the files of an image are encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// Each is a file of the age format, whose recipients have X25519 keys.
    AgeX25519,
}

/// That an image is encrypted, and who can open it according to its writer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Encryption {
    /// How.
    pub method: Method,
    /// Public keys (`age1...`), as the writer was given them. The files themselves do not tell.
    pub recipients: Vec<String>,
}

/// How a file is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Codec {
    /// By lz4.
    Lz4,
    /// By zstd.
    Zstd,
}

impl Codec {
    /// Its name, as a manifest spells it.
    pub fn name(self) -> &'static str {
        match self {
            Codec::Lz4 => "lz4",
            Codec::Zstd => "zstd",
        }
    }

    fn ending(self) -> &'static str {
        match self {
            Codec::Lz4 => ".lz4",
            Codec::Zstd => ".zst",
        }
    }
}

/// That a file is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Compressed {
    /// How.
    pub codec: Codec,
    /// Size in bytes of what is in it.
    pub content: u64,
}

/// The table of contents of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// When the image was written: seconds since 1970-01-01T00:00:00Z.
    pub created: u64,
    /// How many checkpoints lie behind it: 1 for the first of a container, 0 for an image that was composed.
    pub generation: u64,
    /// What it was taken from.
    pub kind: Kind,
    /// How the files are encrypted; none: they are not.
    pub encryption: Option<Encryption>,
    /// All files but `format` and `manifest.json`, ascending by name.
    pub files: Vec<FileEntry>,
}

/// One file of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Name, by which records know it; see [`is_file_name`].
    pub name: String,
    /// Size in bytes, as it lies on the disk.
    pub bytes: u64,
    /// Digest of what lies on the disk.
    pub blake3: Digest,
    /// Size in bytes of what is in it, where that is encrypted.
    pub content: Option<u64>,
    /// How what is in it is compressed; none: it is not.
    pub compressed: Option<Compressed>,
}

impl FileEntry {
    /// Size in bytes of what is in it.
    pub fn content_bytes(&self) -> u64 {
        self.compressed.map_or(self.decrypted_bytes(), |compressed| compressed.content)
    }

    /// Size in bytes once it is decrypted, and still compressed.
    pub fn decrypted_bytes(&self) -> u64 {
        self.content.unwrap_or(self.bytes)
    }
}

impl Manifest {
    /// The name that a file has in the directory.
    pub fn stored_name(&self, entry: &FileEntry) -> String {
        let codec = entry.compressed.map(|compressed| compressed.codec);
        stored_name(&entry.name, codec, self.encryption.is_some())
    }

    /// Whether what is in a file is not what lies on the disk: it is encrypted, or compressed, or both.
    pub fn is_wrapped(&self, entry: &FileEntry) -> bool {
        self.encryption.is_some() || entry.compressed.is_some()
    }

    /// Size of what is in all files together in bytes.
    pub fn content_bytes(&self) -> u64 {
        self.files.iter().fold(0, |sum, entry| sum.saturating_add(entry.content_bytes()))
    }

    /// The entry of the file `name`.
    pub fn file(&self, name: &str) -> Option<&FileEntry> {
        let at = self.files.binary_search_by(|entry| entry.name.as_str().cmp(name)).ok()?;
        self.files.get(at)
    }

    /// Size of all files together in bytes, without `format` and `manifest.json`.
    pub fn bytes(&self) -> u64 {
        self.files.iter().fold(0, |sum, entry| sum.saturating_add(entry.bytes))
    }

    /// The digest that seals the manifest in an image of `version`, and with it every file: the image's name by content.
    pub fn seal(&self, version: Version) -> Result<Digest> {
        Ok(seal_of(version, &self.body()?))
    }

    /// The bytes of `manifest.json` in an image of `version`.
    pub fn encode(&self, version: Version) -> Result<Vec<u8>> {
        Ok(seal(version, &self.body()?))
    }

    /// Reads the bytes of `manifest.json` of an image of `version`: seal first, then everything else.
    pub fn decode(document: &[u8], version: Version, limits: &Limits) -> Result<Manifest> {
        let length = wide(document.len());
        if length > limits.manifest_bytes {
            let file = MANIFEST_FILE.to_owned();
            return Err(Error::TooLarge { file, bytes: length, limit: limits.manifest_bytes });
        }
        let body = unseal(version, document)?;
        let read: Document = serde_json::from_slice(&[body, BODY_END].concat()).map_err(|error| {
            let offset = offset_of(body, error.line(), error.column());
            Error::format(MANIFEST_FILE, offset, error.to_string().escape_debug().take(200).collect::<String>())
        })?;
        let manifest = Manifest::from(read);
        manifest.check(limits)?;
        let spelled = manifest.body()?;
        if spelled != body {
            let same = spelled.iter().zip(body).take_while(|(a, b)| a == b).count();
            return Err(Error::format(MANIFEST_FILE, wide(same), "not in the spelling of the format"));
        }
        Ok(manifest)
    }

    pub(crate) fn check(&self, limits: &Limits) -> Result<()> {
        let wrong = |what: String| Err(Error::format(MANIFEST_FILE, 0, what));
        let count = wide(self.files.len());
        if count > limits.files {
            let file = format!("{MANIFEST_FILE}: files");
            return Err(Error::TooLarge { file, bytes: count, limit: limits.files });
        }
        let mut before = "";
        for entry in &self.files {
            let name = entry.name.as_str();
            if !is_file_name(name)
                || !is_file_name(&self.stored_name(entry))
                || [FORMAT_FILE, MANIFEST_FILE, SIGNATURE_FILE].contains(&name)
            {
                return wrong(format!("{name:.80?} is not a name for a file of an image"));
            }
            if name <= before {
                return wrong(format!("{name:?} is not in ascending order"));
            }
            before = name;
            self.check_content(entry)?;
        }
        self.check_recipients()?;
        match self.file(RECORDS_FILE) {
            Some(_) => Ok(()),
            None => wrong(format!("{RECORDS_FILE} is not listed")),
        }
    }

    fn check_content(&self, entry: &FileEntry) -> Result<()> {
        let encrypted = match (&self.encryption, entry.content) {
            (None, None) => true,
            (Some(_), Some(content)) => content < entry.bytes,
            _ => false,
        };
        let compressed = entry.compressed.is_none_or(|compressed| {
            // The records are read by who decodes nothing.
            entry.name != RECORDS_FILE && block::can_be(entry.decrypted_bytes(), compressed.content)
        });
        let name = &entry.name;
        if encrypted && compressed {
            Ok(())
        } else {
            Err(Error::format(MANIFEST_FILE, 0, format!("{name:?}: content cannot be so large")))
        }
    }

    fn check_recipients(&self) -> Result<()> {
        let Some(Encryption { method: Method::AgeX25519, recipients }) = &self.encryption else { return Ok(()) };
        let twice = |(at, one): (usize, &String)| recipients.iter().take(at).any(|other| other == one);
        let known = recipients.iter().all(|recipient| crypt::is_recipient(recipient));
        if !(1..=crypt::MOST_RECIPIENTS).contains(&recipients.len())
            || !known
            || recipients.iter().enumerate().any(twice)
        {
            return Err(Error::format(MANIFEST_FILE, 0, "its recipients cannot be"));
        }
        Ok(())
    }

    /// Everything that the seal covers, without the `}` that closes the document.
    fn body(&self) -> Result<Vec<u8>> {
        let document = Document::from(self.clone());
        let mut body =
            serde_json::to_vec_pretty(&document).map_err(|error| Error::format(MANIFEST_FILE, 0, error.to_string()))?;
        body.truncate(body.len().saturating_sub(BODY_END.len()));
        Ok(body)
    }
}

/// `manifest.json` as it is spelled: what is absent is not there. [`Manifest`] travels in encodings that cannot leave out.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    created: u64,
    generation: u64,
    kind: Kind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    encryption: Option<Encryption>,
    files: Vec<DocumentFile>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DocumentFile {
    name: String,
    bytes: u64,
    blake3: Digest,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    content: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    compressed: Option<Compressed>,
}

impl From<Manifest> for Document {
    fn from(Manifest { created, generation, kind, encryption, files }: Manifest) -> Document {
        let file = |FileEntry { name, bytes, blake3, content, compressed }| DocumentFile {
            name,
            bytes,
            blake3,
            content,
            compressed,
        };
        Document { created, generation, kind, encryption, files: files.into_iter().map(file).collect() }
    }
}

impl From<Document> for Manifest {
    fn from(Document { created, generation, kind, encryption, files }: Document) -> Manifest {
        let file = |DocumentFile { name, bytes, blake3, content, compressed }| FileEntry {
            name,
            bytes,
            blake3,
            content,
            compressed,
        };
        Manifest { created, generation, kind, encryption, files: files.into_iter().map(file).collect() }
    }
}

/// The name that a file has in the directory of an image.
pub(crate) fn stored_name(name: &str, codec: Option<Codec>, encrypted: bool) -> String {
    [name, codec.map_or("", Codec::ending), if encrypted { ".age" } else { "" }].concat()
}

const BODY_END: &[u8] = b"\n}";
const SEAL_BEGIN: &[u8] = b",\n  \"blake3\": \"";
const SEAL_END: &[u8] = b"\"\n}\n";
const SEAL_BYTES: usize = SEAL_BEGIN.len() + 64 + SEAL_END.len();

/// Puts the seal behind `body`, the manifest's bytes up to the comma before it. Public for tests and fuzzers, which
/// must get past the seal.
pub fn seal(version: Version, body: &[u8]) -> Vec<u8> {
    let digest = seal_of(version, body).to_string();
    [body, SEAL_BEGIN, digest.as_bytes(), SEAL_END].concat()
}

fn seal_of(version: Version, body: &[u8]) -> Digest {
    blake3::Hasher::new().update(version.line()).update(body).finalize().into()
}

/// The part of `document` that the seal covers, when the seal is right.
fn unseal(version: Version, document: &[u8]) -> Result<&[u8]> {
    if !document.ends_with(SEAL_END) || document.len() < SEAL_BYTES {
        return Err(Error::truncated(MANIFEST_FILE, wide(document.len())));
    }
    let (body, tail) = document.split_at(document.len().saturating_sub(SEAL_BYTES));
    let digest = tail
        .strip_prefix(SEAL_BEGIN)
        .and_then(|rest| rest.strip_suffix(SEAL_END))
        .and_then(|digits| std::str::from_utf8(digits).ok())
        .and_then(Digest::parse)
        .ok_or_else(|| Error::format(MANIFEST_FILE, wide(body.len()), "expected the seal"))?;
    if digest != seal_of(version, body) {
        return Err(Error::Digest { file: MANIFEST_FILE.to_owned(), bytes: wide(body.len()) });
    }
    Ok(body)
}

/// The offset of a line and column, which the JSON parser counts from 1.
fn offset_of(text: &[u8], line: usize, column: usize) -> u64 {
    let before = text.split_inclusive(|&byte| byte == b'\n').take(line.saturating_sub(1));
    wide(before.map(<[u8]>::len).fold(column.saturating_sub(1), usize::saturating_add))
}

fn wide(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Manifest {
        let entry = |name: &str, bytes| FileEntry {
            name: name.to_owned(),
            bytes,
            blake3: Digest::of(name.as_bytes()),
            content: None,
            compressed: None,
        };
        Manifest {
            created: 1_767_225_600,
            generation: u64::MAX,
            kind: Kind::Tree,
            encryption: None,
            files: vec![entry("pages-0", 4096), entry("pages-10", 0), entry("records.cbor", 1)],
        }
    }

    fn decode(document: &[u8]) -> Result<Manifest> {
        Manifest::decode(document, Version::V1, &Limits::default())
    }

    fn reseal(from: &str, to: &str) -> Result<Manifest> {
        let body = String::from_utf8(sample().body().unwrap()).unwrap();
        assert!(body.contains(from));
        decode(&seal(Version::V1, body.replacen(from, to, 1).as_bytes()))
    }

    #[test]
    fn what_is_written_is_json_and_is_read_back() {
        let document = sample().encode(Version::V1).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&document).unwrap();
        assert_eq!(json["files"][1]["name"], "pages-10");
        assert_eq!(json["blake3"], sample().seal(Version::V1).unwrap().to_string());
        assert!(document.ends_with(b"\"\n}\n") && SEAL_BYTES == 83);
        assert_eq!(decode(&document).unwrap(), sample());
        assert_eq!(sample().file("pages-10").unwrap().bytes, 0);
        assert!(sample().file("pages-1").is_none());
    }

    #[test]
    fn no_cut_and_no_flipped_bit_passes() {
        let document = sample().encode(Version::V1).unwrap();
        for cut in 0..document.len() {
            assert!(decode(&document[..cut]).unwrap_err().is_damage());
        }
        for at in 0..document.len() * 8 {
            let mut flipped = document.clone();
            flipped[at / 8] ^= 1 << (at % 8);
            assert!(decode(&flipped).is_err_and(|error| error.is_damage()), "bit {at}");
        }
    }

    #[test]
    fn a_right_seal_does_not_make_a_wrong_manifest_right() {
        assert!(reseal("tree", "container").is_ok());
        for (from, to) in [
            ("pages-0", "../pages-0"),
            ("pages-0", "/etc/passwd"),
            ("pages-0", ".."),
            ("pages-0", "."),
            ("pages-0", ".hidden"),
            ("pages-0", ""),
            ("pages-0", "Pages"),
            ("pages-0", "a\\u0000"),
            ("pages-0", "a\\u001b[2J"),
            ("pages-0", "format"),
            ("pages-0", "manifest.json"),
            ("pages-0", "pages-10"),
            ("pages-0", "zz"),
            ("records.cbor", "records.cbo"),
            ("4096", "4096.0"),
            ("4096", "-1"),
            ("4096", "4.096e3"),
            ("4096", "18446744073709551616"),
            ("4096", "\"4096\""),
            ("  \"created\"", "\"created\""),
            ("\"created\"", "\"cre\\u0061ted\""),
            ("\"kind\": \"tree\",", "\"kind\": \"tree\", \"kind\": \"tree\","),
            ("\"kind\": \"tree\",", ""),
            ("\"kind\"", "\"more\""),
            ("tree", "forest"),
            ("{", "[{"),
        ] {
            let error = reseal(from, to).unwrap_err();
            assert!(matches!(error, Error::Format { .. }), "{from} -> {to}: {error}");
            assert!(!error.to_string().contains('\x1b'));
        }
    }

    const RECIPIENT: &str = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p";

    fn encrypted() -> Manifest {
        let mut manifest = sample();
        let recipients = vec![RECIPIENT.to_owned()];
        manifest.encryption = Some(Encryption { method: Method::AgeX25519, recipients });
        manifest.files.iter_mut().for_each(|entry| {
            entry.content = Some(entry.bytes);
            entry.bytes += 250;
        });
        manifest
    }

    #[test]
    fn encryption_is_said_of_all_or_of_none() {
        let manifest = encrypted();
        let document = manifest.encode(Version::V1).unwrap();
        assert_eq!(decode(&document).unwrap(), manifest);
        let json: serde_json::Value = serde_json::from_slice(&document).unwrap();
        assert_eq!(json["encryption"]["method"], "age-x25519");
        assert_eq!(json["files"][0]["content"], 4096);
        let first = &manifest.files[0];
        assert_eq!(
            (manifest.stored_name(first), sample().stored_name(first)),
            ("pages-0.age".into(), "pages-0".into())
        );
        type Change = fn(&mut Manifest);
        let wrong: [(&str, Change); 9] = [
            ("a file in clear", |m| m.files[1].content = None),
            ("a file in cipher", |m| m.encryption = None),
            ("more than there is", |m| m.files[0].content = Some(m.files[0].bytes)),
            ("nobody", |m| m.encryption.as_mut().unwrap().recipients.clear()),
            ("twice", |m| m.encryption.as_mut().unwrap().recipients.push(RECIPIENT.to_owned())),
            ("no key", |m| m.encryption.as_mut().unwrap().recipients.push("age1\u{1b}[2J".to_owned())),
            ("too many", |m| {
                let letters = "qpzry9x8gf2tvdw0s3jn54khce6mua7l";
                let recipients = &mut m.encryption.as_mut().unwrap().recipients;
                *recipients = (0..65)
                    .map(|at| format!("age1{}{}", &letters[at / 32..=at / 32], &letters[at % 32..=at % 32].repeat(57)))
                    .collect();
            }),
            ("a long name", |m| m.files[0].name = "a".repeat(61)),
            ("a name that only the ending makes one", |m| m.files[0].name = String::new()),
        ];
        for (what, change) in wrong {
            let mut manifest = encrypted();
            change(&mut manifest);
            let error = decode(&manifest.encode(Version::V1).unwrap()).unwrap_err();
            assert!(matches!(error, Error::Format { .. }), "{what}: {error}");
        }
        let body = String::from_utf8(sample().body().unwrap()).unwrap();
        let null = body.replacen("\"files\"", "\"encryption\": null,\n  \"files\"", 1);
        assert!(decode(&seal(Version::V1, null.as_bytes())).is_err(), "one spelling");
    }

    #[test]
    fn a_file_is_compressed_within_reason() {
        let with = |codec, (bytes, content)| {
            let mut manifest = sample();
            manifest.files[0].compressed = Some(Compressed { codec, content });
            manifest.files[0].bytes = bytes;
            manifest
        };
        for codec in [Codec::Lz4, Codec::Zstd] {
            let manifest = with(codec, (4000, 8192));
            let document = manifest.encode(Version::V1).unwrap();
            assert_eq!(decode(&document).unwrap(), manifest);
            let json: serde_json::Value = serde_json::from_slice(&document).unwrap();
            assert_eq!(json["files"][0]["compressed"]["codec"], codec.name());
            assert_eq!(json["files"][0]["compressed"]["content"], 8192);
            assert_eq!((manifest.content_bytes(), manifest.bytes()), (8193, 4001));
            assert_eq!(manifest.stored_name(&manifest.files[0]), format!("pages-0{}", codec.ending()));
            assert!(decode(&with(codec, (0, 0)).encode(Version::V1).unwrap()).is_ok());
            // No head, no frame, more blocks than there can be, and a file that is larger than what is in it for no reason.
            for sizes in [(0, 1), (24, 1), (1, 0), (49, (256 << 10) + 1), (1 << 20, u64::MAX), (1 << 20, 8192)] {
                let error = decode(&with(codec, sizes).encode(Version::V1).unwrap()).unwrap_err();
                assert!(matches!(error, Error::Format { .. }), "{sizes:?}: {error}");
            }
        }
        let mut records = with(Codec::Lz4, (4000, 8192));
        records.files[2] = FileEntry { name: RECORDS_FILE.into(), ..records.files[0].clone() };
        assert!(decode(&records.encode(Version::V1).unwrap()).is_err(), "records");
        let both = |content| {
            let mut manifest = encrypted();
            manifest.files[0].content = Some(4000);
            manifest.files[0].compressed = Some(Compressed { codec: Codec::Zstd, content });
            manifest
        };
        assert_eq!(decode(&both(8192).encode(Version::V1).unwrap()).unwrap(), both(8192));
        assert_eq!(both(1).stored_name(&both(1).files[0]), "pages-0.zst.age");
        assert!(decode(&both(u64::MAX).encode(Version::V1).unwrap()).is_err());
    }

    #[test]
    fn the_seal_is_bound_to_the_version_line() {
        let body = sample().body().unwrap();
        let other = Digest(*blake3::Hasher::new().update(b"yendor image 2\n").update(&body).finalize().as_bytes());
        assert_ne!(sample().seal(Version::V1).unwrap(), other);
    }

    #[test]
    fn limits_hold() {
        let document = sample().encode(Version::V1).unwrap();
        let files = Limits { files: 2, ..Limits::default() };
        let error = Manifest::decode(&document, Version::V1, &files).unwrap_err();
        assert!(matches!(error, Error::TooLarge { bytes: 3, limit: 2, .. }), "{error}");
        let bytes = Limits { manifest_bytes: 100, ..Limits::default() };
        assert!(matches!(Manifest::decode(&document, Version::V1, &bytes), Err(Error::TooLarge { limit: 100, .. })));
        let deep = seal(Version::V1, &vec![b'['; 100_000]);
        assert!(matches!(decode(&deep), Err(Error::Format { .. })));
    }
}
