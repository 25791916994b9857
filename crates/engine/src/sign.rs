//! Who made an image: a signature of its manifest, which holds the digest of every other file (minisign's format, ed25519).
//!
//! A signature gives an image no right. It lets a caller, or the host's policy, refuse what others made.

use std::io;
use std::sync::Arc;

use ct_codecs::{Base64, Decoder};
use serde::{Deserialize, Serialize};
use yendor_kinds::Cause;

/// Bytes of a secret key before its checksum: three algorithms, what a password would be stretched with, its number, the key.
const KEY: usize = 3 * 2 + 32 + 2 * 8 + 8 + 64;

/// A secret key. It never prints itself.
#[derive(Clone)]
pub struct Signer(Arc<minisign::SecretKey>);

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Signer")
    }
}

impl Signer {
    /// From the text of a secret key file without a password (`minisign -G -W`).
    ///
    /// # Errors
    /// Why not; nothing of the key is quoted.
    pub fn parse(text: &str) -> std::result::Result<Signer, &'static str> {
        let sealed = minisign::SecretKeyBox::from_string(text).ok();
        let key = sealed.and_then(|sealed| sealed.into_unencrypted_secret_key().ok()).or_else(|| unchecked(text));
        key.map(|key| Signer(Arc::new(key))).ok_or(
            "not a minisign secret key without a password (nobody can be asked for one here): minisign -G -W makes one",
        )
    }

    /// The signature of some bytes, as minisign writes it.
    ///
    /// # Errors
    /// The key cannot sign.
    pub fn sign(&self, bytes: &[u8]) -> io::Result<Vec<u8>> {
        let made = minisign::sign(None, &self.0, bytes, Some("yendor image"), Some("signature of an image of yendor"));
        made.map(|signature| signature.into_string().into_bytes()).map_err(|_| io::Error::other("the key cannot sign"))
    }
}

/// A key as `minisign -G -W` writes it: zeros in the place of the checksum that the library wants to see there.
fn unchecked(text: &str) -> Option<minisign::SecretKey> {
    let bytes = Base64::decode_to_vec(text.lines().nth(1)?, None).ok()?;
    let (key, checksum) = bytes.split_at_checked(KEY)?;
    let is_open = key.starts_with(b"Ed\0\0") && checksum == [0; 32];
    is_open.then(|| minisign::SecretKey::from_bytes(&bytes).ok()).flatten()
}

/// Whose signature an image must have.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trust {
    /// Public keys that the caller names: one of them. Empty: any image.
    pub caller: Vec<String>,
    /// Public keys that the host's policy names: one of them. Empty: any image.
    pub host: Vec<String>,
    /// Where it names them: file, line and column.
    pub place: String,
}

impl Trust {
    /// Compares. In the loader.
    ///
    /// # Errors
    /// A denial that says who wants which signature.
    pub fn check(&self, document: &[u8], signature: Option<&[u8]>) -> std::result::Result<(), Cause> {
        let by = |keys: &[String]| keys.iter().any(|key| is_by(key, document, signature));
        let host = format!("host policy {}: signed-by", self.place);
        let lists = [
            (&self.caller, "--verify", "another image, or another key"),
            (&self.host, host.as_str(), "an image that one of these keys has signed"),
        ];
        for (keys, who, hint) in lists {
            if !keys.is_empty() && !by(keys) {
                let found =
                    if signature.is_some() { "its signature is by none of" } else { "it is not signed by one of" };
                let what = format!("{who}: {found} {}", keys.join(", "));
                return Err(Cause::Denied { what, hint: hint.into() });
            }
        }
        Ok(())
    }
}

fn is_by(key: &str, document: &[u8], signature: Option<&[u8]>) -> bool {
    let signature = signature.and_then(|s| std::str::from_utf8(s).ok());
    let Some(Ok(signature)) = signature.map(minisign_verify::Signature::decode) else { return false };
    public_key(key).is_some_and(|key| key.verify(document, &signature, false).is_ok())
}

/// The id of the key that a signature claims to be by, as minisign prints it: 16 hexadecimal digits.
pub(crate) fn key_id(signature: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(signature).ok()?;
    minisign_verify::Signature::decode(text).ok()?;
    let letters = text.lines().nth(1)?.as_bytes();
    // Two bytes of algorithm, eight of the id, in base64: the first 16 letters are 12 bytes.
    let value = |letter: &u8| match letter {
        b'A'..=b'Z' => Some(letter - b'A'),
        b'a'..=b'z' => Some(letter - b'a' + 26),
        b'0'..=b'9' => Some(letter - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let bits =
        letters.get(..16)?.iter().try_fold(0_u128, |bits, letter| Some(bits << 6 | u128::from(value(letter)?)))?;
    // The 16 letters hold bytes 0 to 11; those of the id are 2 to 9, the lowest first.
    let id = bits >> 16 & u128::from(u64::MAX);
    u64::try_from(id).ok().map(|id| format!("{:016X}", id.swap_bytes()))
}

/// The key in the text of a public key file, or in its second line alone.
fn public_key(text: &str) -> Option<minisign_verify::PublicKey> {
    let line = text.lines().map(str::trim).rfind(|line| !line.is_empty())?;
    minisign_verify::PublicKey::from_base64(line).ok()
}

/// The one line that is a public key, from the text of its file or from itself.
#[must_use]
pub fn key_line(text: &str) -> Option<String> {
    public_key(text)?;
    text.lines().map(str::trim).rfind(|line| !line.is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Signer, String) {
        let pair = minisign::KeyPair::generate_unencrypted_keypair().expect("keys");
        let public = pair.pk.to_box().expect("box").into_string();
        let secret = pair.sk.to_box(None).expect("box").into_string();
        (Signer::parse(&secret).expect("signer"), key_line(&public).expect("a key"))
    }

    /// `minisign -G -W` of version 0.11, made for this test.
    #[test]
    fn a_key_as_the_tool_writes_it() {
        let secret = "untrusted comment: minisign encrypted secret key\n\
            RWQAAEIyAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAEYu6vXCUUFwpW9Y2TEYLWnFochiC4VfgtWZZKVGyiOScixFYMquH1brUET+1e6TS5tVfwCcJTrb+K5EeV9dYCuQKGNKLJGW7AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n";
        let key = "RWQRi7q9cJRQXLrUET+1e6TS5tVfwCcJTrb+K5EeV9dYCuQKGNKLJGW7";
        let signature = Signer::parse(secret).expect("a key").sign(b"manifest").expect("sign");
        let trust = Trust { caller: vec![key.to_owned()], ..Trust::default() };
        assert!(trust.check(b"manifest", Some(&signature)).is_ok());
        // With a checksum that is not its own; of which the end is missing; with a password.
        for (from, to) in [("AAAAAA=", "AAAABA="), ("AAAA=", "="), ("RWQAAEIy", "RWRTY0Iy")] {
            let other = secret.replacen(from, to, 1);
            assert!(other != secret && Signer::parse(&other).is_err(), "{other}");
        }
    }

    #[test]
    fn a_signature_is_somebodys_and_of_something() {
        let ((signer, key), (_, other)) = (pair(), pair());
        let signature = signer.sign(b"manifest").expect("sign");
        let trust = |caller: &[&String], host: &[&String]| Trust {
            caller: caller.iter().map(|k| (*k).clone()).collect(),
            host: host.iter().map(|k| (*k).clone()).collect(),
            place: String::new(),
        };
        let ok = |t: Trust, bytes: &[u8], signature: Option<&[u8]>| t.check(bytes, signature).is_ok();
        assert!(ok(trust(&[], &[]), b"manifest", None));
        assert!(ok(trust(&[&key], &[]), b"manifest", Some(&signature)));
        assert!(ok(trust(&[&other, &key], &[&key]), b"manifest", Some(&signature)));
        assert!(!ok(trust(&[&key], &[]), b"manifesT", Some(&signature)));
        assert!(!ok(trust(&[&key], &[]), b"manifest", None));
        assert!(!ok(trust(&[&other], &[]), b"manifest", Some(&signature)));
        // Both lists have a say.
        assert!(!ok(trust(&[&key], &[&other]), b"manifest", Some(&signature)));
        for end in 0..signature.len() {
            // The last byte is a line feed that nobody needs.
            assert!(end + 1 >= signature.len() || !ok(trust(&[&key], &[]), b"manifest", signature.get(..end)), "{end}");
        }
        assert!(!format!("{signer:?}").contains(&key) && format!("{signer:?}") == "Signer");
    }

    #[test]
    fn what_is_no_key_is_none() {
        assert!(Signer::parse("untrusted comment: x\nAAAA\n").is_err());
        assert_eq!((key_line(""), key_line("RWQ"), key_line("x\ny")), (None, None, None));
    }
}
