//! The encoding of `records.cbor`: CBOR (RFC 8949) with one spelling for each value, checked before it is decoded.
//!
//! The check walks the heads only. It bounds depth, count and every claimed length by the bytes that are really there, so
//! that the decoder behind it cannot be led to allocate for what does not exist.

use crate::{Error, Limits, RECORDS_FILE, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{self, Write};

/// Encodes `value`; refuses what [`decode`] would refuse: maps without a known length, tags, too much of anything.
///
/// Equal values give equal bytes as long as maps with computed keys are ordered ones (`BTreeMap`).
pub fn encode<T: Serialize + ?Sized>(value: &T, limits: &Limits) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    ciborium::into_writer(value, &mut out).map_err(|error| match error {
        ciborium::ser::Error::Io(source) => Error::io(RECORDS_FILE, "encode", source),
        ciborium::ser::Error::Value(what) => Error::format(RECORDS_FILE, 0, what),
    })?;
    check(&out, limits)?;
    Ok(out)
}

/// Decodes a document of one value and nothing behind it, in the spelling that [`encode`] gives that value.
///
/// The value is encoded again and compared: so a field that the type does not know, a key that occurs twice (of which serde's
/// maps keep the last) or one out of order is an error, and nothing in a document is passed over in silence. A document may lack fields that
/// the type has a value for all the same: it was written before there were any.
pub fn decode<T: Serialize + DeserializeOwned>(document: &[u8], limits: &Limits) -> Result<T> {
    let value = decode_loosely(document, limits)?;
    let mut rest = Same { left: document };
    let same = ciborium::into_writer(&value, &mut rest).is_ok() && rest.left.is_empty();
    if !same {
        let offset = document.len().saturating_sub(rest.left.len());
        let mut again = Vec::new();
        let encoded = ciborium::into_writer(&value, &mut again).is_ok();
        let [mut old, mut new] = [document, &again].map(|document| Cursor { document, offset: 0 });
        if !encoded || !lacks_only(&mut old, &mut new)? {
            return Err(wrong(offset, "not in the spelling of the format, or a field that is not known"));
        }
    }
    Ok(value)
}

/// Whether an item is another one, or that without some entries of its maps. Both have passed the walk, or were encoded here.
fn lacks_only(old: &mut Cursor<'_>, new: &mut Cursor<'_>) -> Result<bool> {
    let is_map = |at: &Cursor<'_>| at.document.get(at.offset).is_some_and(|head| head >> 5 == 5);
    let maps = is_map(old) && is_map(new);
    let (here, there) = (old.offset, new.offset);
    let (mut left, all) = (old.item()?, new.item()?);
    if !maps {
        if old.document.get(here..old.offset) != new.document.get(there..new.offset) {
            return Ok(false);
        }
        for _ in 0..left {
            if !lacks_only(old, new)? {
                return Ok(false);
            }
        }
        return Ok(true);
    }
    for _ in 0..all / 2 {
        let key = new.skip()?;
        // No item is the beginning of another.
        if left > 0 && old.document.get(old.offset..).is_some_and(|rest| rest.starts_with(key)) {
            left -= 2;
            old.offset += key.len();
            if !lacks_only(old, new)? {
                return Ok(false);
            }
        } else {
            new.skip()?;
        }
    }
    Ok(left == 0)
}

/// Takes only the bytes that it expects.
struct Same<'a> {
    left: &'a [u8],
}

impl Write for Same<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.left = self.left.strip_prefix(bytes).ok_or(io::ErrorKind::InvalidData)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn decode_loosely<T: DeserializeOwned>(document: &[u8], limits: &Limits) -> Result<T> {
    check(document, limits)?;
    // The walk has bounded the depth exactly; the decoder counts a level for some leaves too, so it gets one more.
    let depth = limits.records_depth.saturating_add(1);
    ciborium::de::from_reader_with_recursion_limit(document, depth).map_err(|error| match error {
        ciborium::de::Error::Io(_) => Error::truncated(RECORDS_FILE, wide(document.len())),
        ciborium::de::Error::Syntax(offset) => Error::format(RECORDS_FILE, wide(offset), "not CBOR"),
        ciborium::de::Error::Semantic(offset, what) => {
            // What serde says may quote a name from the image.
            let what = what.escape_debug().take(200).collect::<String>().replace("\\\"", "\"");
            Error::format(RECORDS_FILE, wide(offset.unwrap_or(0)), what)
        }
        ciborium::de::Error::RecursionLimitExceeded => too_deep(limits),
    })
}

/// Checks that `document` is exactly one CBOR item in the narrow encoding of the format, within `limits`.
pub fn check(document: &[u8], limits: &Limits) -> Result<()> {
    let bytes = wide(document.len());
    if bytes > limits.records_bytes {
        return Err(Error::TooLarge { file: RECORDS_FILE.to_owned(), bytes, limit: limits.records_bytes });
    }
    let mut cursor = Cursor { document, offset: 0 };
    // One entry for each open array or map: how many items are still to come in it.
    let mut open: Vec<u64> = Vec::new();
    let mut items: u64 = 0;
    loop {
        items = items.saturating_add(1);
        if items > limits.records_items {
            let file = format!("{RECORDS_FILE}: items");
            return Err(Error::TooLarge { file, bytes: items, limit: limits.records_items });
        }
        let inside = cursor.item()?;
        if inside > 0 {
            if open.len() >= limits.records_depth {
                return Err(too_deep(limits));
            }
            open.push(inside);
        } else {
            close(&mut open);
        }
        if open.is_empty() {
            break;
        }
    }
    if cursor.offset < document.len() {
        return Err(Error::format(RECORDS_FILE, wide(cursor.offset), "bytes behind the end of the document"));
    }
    Ok(())
}

/// One item is complete: counts it in its container, which may be complete with it, and so on.
fn close(open: &mut Vec<u64>) {
    while let Some(left) = open.pop() {
        let left = left.saturating_sub(1);
        if left > 0 {
            open.push(left);
            return;
        }
    }
}

struct Cursor<'a> {
    document: &'a [u8],
    offset: usize,
}

impl<'a> Cursor<'a> {
    /// Steps over a whole item, and says which bytes it is.
    fn skip(&mut self) -> Result<&'a [u8]> {
        let start = self.offset;
        let mut items = 1u64;
        while items > 0 {
            items = (items - 1).saturating_add(self.item()?);
        }
        Ok(self.document.get(start..self.offset).unwrap_or_default())
    }

    /// Steps over one head and its string, if it is one; says how many items lie inside.
    fn item(&mut self) -> Result<u64> {
        let start = self.offset;
        let first = self.byte()?;
        let (major, info) = (first >> 5, first & 31);
        if major == 7 {
            return self.simple(start, info).map(|()| 0);
        }
        let argument = self.argument(start, info)?;
        match major {
            0 | 1 => Ok(0),
            2 | 3 => {
                let length = self.claim(start, argument)?;
                self.offset = self.offset.saturating_add(length);
                Ok(0)
            }
            4 => self.claim(start, argument).map(wide),
            5 => {
                let inside = argument.checked_mul(2).ok_or_else(|| wrong(start, "claims more than there is"))?;
                self.claim(start, inside).map(wide)
            }
            _ => Err(wrong(start, "tags are not part of the format")),
        }
    }

    /// The number in a head, which must be in its shortest form.
    fn argument(&mut self, start: usize, info: u8) -> Result<u64> {
        let (value, least) = match info {
            0..=23 => (u64::from(info), 0),
            24 => (u64::from(self.byte()?), 24),
            25 => (u64::from(u16::from_be_bytes(self.array()?)), 1 << 8),
            26 => (u64::from(u32::from_be_bytes(self.array()?)), 1 << 16),
            27 => (u64::from_be_bytes(self.array()?), 1 << 32),
            31 => return Err(wrong(start, "indefinite length")),
            _ => return Err(wrong(start, "reserved head")),
        };
        if value < least {
            return Err(wrong(start, "number is not in its shortest form"));
        }
        Ok(value)
    }

    fn simple(&mut self, start: usize, info: u8) -> Result<()> {
        match info {
            20..=22 => Ok(()),
            25 => self.array::<2>().map(drop),
            26 => self.array::<4>().map(drop),
            27 => self.array::<8>().map(drop),
            _ => Err(wrong(start, "simple value is not part of the format")),
        }
    }

    /// Each element takes a byte at least: a claim of more than the bytes that are left is false.
    fn claim(&self, start: usize, count: u64) -> Result<usize> {
        let left = self.document.len().saturating_sub(self.offset);
        match usize::try_from(count) {
            Ok(count) if count <= left => Ok(count),
            _ => Err(wrong(start, "claims more than there is")),
        }
    }

    fn byte(&mut self) -> Result<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let chunk = self.document.get(self.offset..).and_then(|rest| rest.first_chunk::<N>());
        let chunk = chunk.ok_or_else(|| Error::truncated(RECORDS_FILE, wide(self.document.len())))?;
        self.offset = self.offset.saturating_add(N);
        Ok(*chunk)
    }
}

fn wrong(offset: usize, what: &str) -> Error {
    Error::format(RECORDS_FILE, wide(offset), what)
}

fn too_deep(limits: &Limits) -> Error {
    let limit = wide(limits.records_depth);
    Error::TooLarge { file: format!("{RECORDS_FILE}: levels"), bytes: limit.saturating_add(1), limit }
}

fn wide(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ciborium::Value;

    fn refused(document: &[u8]) -> Error {
        let error = check(document, &Limits::default()).unwrap_err();
        assert!(error.is_damage(), "{error}");
        assert!(decode::<Value>(document, &Limits::default()).is_err());
        error
    }

    #[test]
    fn the_narrow_encoding_is_accepted() {
        for document in
            [&[0x00][..], &[0x18, 24], &[0x80], &[0xa0], &[0x82, 0x80, 0xa1, 0x61, b'a', 0xf6], &[0xf9, 0, 0]]
        {
            check(document, &Limits::default()).unwrap();
        }
    }

    #[test]
    fn other_spellings_are_refused_where_they_are() {
        for (document, at) in [
            (&[0x18, 23][..], 0),         // 23 in two bytes
            (&[0x81, 0x19, 0, 255], 1),   // 255 in three
            (&[0x1a, 0, 0, 255, 255], 0), // 65535 in five
            (&[0x9f, 0xff], 0),           // indefinite array
            (&[0x5f, 0x41, 0, 0xff], 0),  // indefinite bytes
            (&[0xc2, 0x41, 1], 0),        // tag
            (&[0xf7], 0),                 // undefined
            (&[0xf8, 32], 0),             // simple value
            (&[0xff], 0),                 // break
            (&[0x1c], 0),                 // reserved
            (&[0x00, 0x00], 1),           // trailing
        ] {
            let error = refused(document);
            assert!(matches!(error, Error::Format { offset, .. } if offset == at), "{document:02x?}: {error}");
        }
    }

    #[test]
    fn claims_beyond_the_document_do_not_allocate() {
        for major in [2u8, 3, 4, 5] {
            for claim in [1u64 << 32, 1 << 62, 1 << 63, u64::MAX] {
                let mut document = vec![major << 5 | 27];
                document.extend(claim.to_be_bytes());
                document.extend([0; 100]);
                assert!(matches!(refused(&document), Error::Format { offset: 0, .. }));
            }
        }
    }

    #[test]
    fn depth_and_count_are_bounded() {
        let limits = Limits { records_depth: 5, records_items: 10, ..Limits::default() };
        let nested = |levels: usize| [vec![0x81; levels], vec![0]].concat();
        assert!(decode::<Value>(&nested(5), &limits).is_ok());
        assert!(matches!(check(&nested(6), &limits), Err(Error::TooLarge { bytes: 6, limit: 5, .. })));
        let full = [vec![0x89], vec![0; 9]].concat();
        assert!(check(&full, &limits).is_ok());
        let over = [vec![0x8a], vec![0; 10]].concat();
        assert!(matches!(check(&over, &limits), Err(Error::TooLarge { bytes: 11, limit: 10, .. })));
        // Far beyond any stack.
        assert!(matches!(refused(&vec![0x81; 1 << 20]), Error::TooLarge { limit: 64, .. }));
    }

    #[test]
    fn the_deepest_document_that_passes_the_walk_is_decoded() {
        #[derive(serde::Serialize, serde::Deserialize, PartialEq, Debug)]
        enum Nest {
            End,
            Inner(Box<Nest>),
        }
        let mut nest = Nest::End;
        for _ in 0..64 {
            nest = Nest::Inner(Box::new(nest));
        }
        let document = encode(&nest, &Limits::default()).unwrap();
        assert_eq!(decode::<Nest>(&document, &Limits::default()).unwrap(), nest);
        assert!(encode(&Nest::Inner(Box::new(nest)), &Limits::default()).is_err());
    }

    #[test]
    fn the_writer_cannot_make_what_the_reader_refuses() {
        #[derive(serde::Serialize)]
        struct Flat {
            #[serde(flatten)]
            inner: std::collections::BTreeMap<String, u8>,
        }
        let flat = Flat { inner: [("a".to_owned(), 1)].into() };
        assert!(matches!(encode(&flat, &Limits::default()), Err(Error::Format { offset: 0, .. })));
        let small = Limits { records_bytes: 4, ..Limits::default() };
        assert!(matches!(encode("hello", &small), Err(Error::TooLarge { bytes: 6, limit: 4, .. })));
    }

    #[test]
    fn nothing_is_passed_over_in_silence() {
        #[derive(serde::Serialize, serde::Deserialize, Debug)]
        struct Open {
            a: u8,
            b: u8,
        }
        let limits = Limits::default();
        let entry = |key: u8, value| [0x61, key, value];
        let open = |count: u8, entries: &[[u8; 3]]| {
            decode::<Open>(&[&[0xa0 | count][..], entries.as_flattened()].concat(), &limits)
        };
        assert!(open(2, &[entry(b'a', 1), entry(b'b', 2)]).is_ok_and(|open| (open.a, open.b) == (1, 2)));
        for (count, entries) in [
            (3, vec![entry(b'a', 1), entry(b'b', 2), entry(b'c', 3)]), // unknown
            (2, vec![entry(b'b', 2), entry(b'a', 1)]),                 // order
            (3, vec![entry(b'a', 1), entry(b'a', 1), entry(b'b', 2)]), // twice
        ] {
            assert!(open(count, &entries).is_err_and(|error| error.is_damage()), "{entries:02x?}");
        }
        type Map = std::collections::BTreeMap<u8, u8>;
        assert!(decode::<Map>(&[0xa2, 1, 1, 2, 2], &limits).is_ok());
        assert!(decode::<Map>(&[0xa2, 1, 1, 1, 2], &limits).is_err());
        assert!(decode::<Map>(&[0xa2, 2, 2, 1, 1], &limits).is_err());
    }

    #[test]
    fn a_document_may_lack_what_came_later_and_no_more() {
        #[derive(serde::Serialize)]
        struct Old<'a> {
            a: u8,
            list: &'a [(u8, Inner)],
        }
        #[derive(serde::Serialize, Clone, Copy)]
        struct Inner {
            z: u8,
        }
        #[derive(serde::Serialize, serde::Deserialize, Debug)]
        struct New {
            #[serde(default)]
            first: Vec<u8>,
            a: u8,
            list: Vec<(u8, More)>,
            last: Option<u8>,
        }
        #[derive(serde::Serialize, serde::Deserialize, Debug)]
        struct More {
            z: u8,
            #[serde(default)]
            more: std::collections::BTreeMap<u8, u8>,
        }
        let limits = Limits::default();
        let old = encode(&Old { a: 1, list: &[(2, Inner { z: 3 }), (4, Inner { z: 5 })] }, &limits).unwrap();
        let new = decode::<New>(&old, &limits).unwrap();
        assert_eq!((new.first.len(), new.a, new.last), (0, 1, None));
        assert!(new.list.iter().map(|(n, more)| (*n, more.z, more.more.len())).eq([(2, 3, 0), (4, 5, 0)]));
        for cut in 0..old.len() {
            assert!(decode::<New>(&old[..cut], &limits).is_err(), "{cut}");
        }
        // One entry more: unknown, the same again, one out of order.
        for more in [&[0x61, b'x', 1][..], &[0x61, b'a', 1], &[0x65, b'f', b'i', b'r', b's', b't', 0x80]] {
            let mut document = [&old, more].concat();
            document[0] += 1;
            check(&document, &limits).unwrap();
            assert!(decode::<New>(&document, &limits).is_err_and(|error| error.is_damage()), "{more:02x?}");
        }
    }

    #[test]
    fn messages_do_not_quote_control_characters() {
        #[derive(serde::Serialize, serde::Deserialize, Debug)]
        #[serde(deny_unknown_fields)]
        struct Known {
            a: u8,
        }
        let document = [&[0xa1, 0x64][..], b"\x1b[2J", &[0]].concat();
        let error = decode::<Known>(&document, &Limits::default()).unwrap_err();
        assert!(!error.to_string().contains('\x1b') && error.to_string().contains("[2J"), "{error}");
    }
}
