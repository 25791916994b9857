//! Bytes as the kernel gave them: paths, names, arguments. They need not be UTF-8.

use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde::ser::{SerializeMap, Serializer};
use serde::{Deserialize, Serialize};
use std::fmt::{self, Write};
use std::ops::Deref;

/// A byte string; in CBOR a byte string, in JSON a string when it is UTF-8, else `{"hex": "..."}`.
///
/// `Display` shows printable text as it is and escapes everything else, so that a name from an image cannot steer a
/// terminal; `\` is doubled, so that two different values never look the same.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(pub Vec<u8>);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for character in chunk.valid().chars() {
                match character {
                    '\'' | '"' => f.write_char(character)?,
                    _ => write!(f, "{}", character.escape_debug())?,
                }
            }
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b\"{}\"", self.0.escape_ascii())
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl From<&[u8]> for Bytes {
    fn from(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }
}

impl From<&str> for Bytes {
    fn from(text: &str) -> Self {
        Self(text.as_bytes().to_vec())
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if !serializer.is_human_readable() {
            return serializer.serialize_bytes(&self.0);
        }
        match std::str::from_utf8(&self.0) {
            Ok(text) => serializer.serialize_str(text),
            Err(_) => {
                let mut map = serializer.serialize_map(Some(1))?;
                map.serialize_entry("hex", &to_hex(&self.0))?;
                map.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            // serde's buffer for tagged enumerations calls itself human-readable, whatever it was filled from: the
            // visitor takes byte strings too.
            deserializer.deserialize_any(BytesVisitor)
        } else {
            deserializer.deserialize_byte_buf(BytesVisitor)
        }
    }
}

struct BytesVisitor;

impl<'de> Visitor<'de> for BytesVisitor {
    type Value = Bytes;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a byte string")
    }

    fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Bytes, E> {
        Ok(Bytes(bytes.to_vec()))
    }

    fn visit_byte_buf<E: de::Error>(self, bytes: Vec<u8>) -> Result<Bytes, E> {
        Ok(Bytes(bytes))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Bytes, E> {
        Ok(Bytes::from(text))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Bytes, A::Error> {
        let Some((key, value)) = map.next_entry::<String, String>()? else {
            return Err(de::Error::missing_field("hex"));
        };
        if key != "hex" || map.next_key::<String>()?.is_some() {
            return Err(de::Error::custom("expected exactly one field, hex"));
        }
        from_hex(&value).map(Bytes).ok_or_else(|| de::Error::custom("expected pairs of lower-case hexadecimal digits"))
    }
}

/// Lower-case hexadecimal digits, two for each byte.
pub(crate) fn to_hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().saturating_mul(2));
    for byte in bytes {
        text.extend([byte >> 4, byte & 15].iter().filter_map(|&nibble| char::from_digit(u32::from(nibble), 16)));
    }
    text
}

/// The inverse of [`to_hex`]; upper-case digits are refused, so that a value has one spelling.
pub(crate) fn from_hex(text: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    pairs.iter().map(|&[high, low]| Some(nibble(high)? << 4 | nibble(low)?)).collect()
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cbor(value: &Bytes) -> Vec<u8> {
        let mut out = Vec::new();
        ciborium::into_writer(value, &mut out).unwrap();
        out
    }

    #[test]
    fn cbor_is_a_byte_string_and_takes_nothing_else() {
        assert_eq!(cbor(&Bytes::from("ab")), [0x42, b'a', b'b']);
        assert_eq!(ciborium::from_reader::<Bytes, _>(&[0x42, 0xff, 0][..]).unwrap().0, [0xff, 0]);
        assert!(ciborium::from_reader::<Bytes, _>(&[0x62, b'a', b'b'][..]).is_err());
    }

    #[test]
    fn json_is_text_when_it_can_be_and_comes_back() {
        for (bytes, json) in [(&b"a\"\n"[..], r#""a\"\n""#), (b"\xff\x00", r#"{"hex":"ff00"}"#), (b"", r#""""#)] {
            let value = Bytes::from(bytes);
            assert_eq!(serde_json::to_string(&value).unwrap(), json);
            assert_eq!(serde_json::from_str::<Bytes>(json).unwrap(), value);
        }
        for bad in [r#"{"hex":"f"}"#, r#"{"hex":"FF"}"#, r#"{"hex":"ff","x":"y"}"#, r#"{"x":"ff"}"#, "{}", "[1]", "1"] {
            assert!(serde_json::from_str::<Bytes>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn bytes_survive_an_internally_tagged_enumeration() {
        #[derive(Serialize, Deserialize, PartialEq, Debug)]
        #[serde(tag = "type")]
        enum Object {
            Named { name: Bytes },
        }
        let object = Object::Named { name: Bytes(vec![0xff, 0xfe]) };
        let mut out = Vec::new();
        ciborium::into_writer(&object, &mut out).unwrap();
        assert_eq!(ciborium::from_reader::<Object, _>(&out[..]).unwrap(), object);
    }

    #[test]
    fn display_never_emits_what_steers_a_terminal() {
        let name = Bytes(b"it's \"\xc3\xa9\" \x1b[31m\\ \xe2\x80\xae\xff".to_vec());
        assert_eq!(name.to_string(), "it's \"\u{e9}\" \\u{1b}[31m\\\\ \\u{202e}\\xff");
    }
}
