//! The pieces that all parsers share: lines, blanks, numbers, octal escapes, `Key:` tables.

use crate::{Dev, ParseError};

pub(crate) type Result<T> = std::result::Result<T, ParseError>;

/// What is left of one line, and where it stood.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Line<'a> {
    file: &'static str,
    number: usize,
    rest: &'a [u8],
}

/// The lines of a whole file. The kernel ends every line, so a missing end is a cut.
pub(crate) fn lines<'a>(file: &'static str, text: &'a [u8]) -> Result<Vec<Line<'a>>> {
    Ok(each_line(file, text)?.collect())
}

/// The same one after the other, for a long file.
pub(crate) fn each_line<'a>(file: &'static str, text: &'a [u8]) -> Result<impl Iterator<Item = Line<'a>>> {
    let lines = |body: Option<&'a [u8]>| {
        let mut left = body;
        let lines = std::iter::from_fn(move || {
            let text = left?;
            let (line, rest) = match memchr::memchr(b'\n', text) {
                Some(at) => (text.get(..at)?, text.get(at.checked_add(1)?..)),
                None => (text, None),
            };
            left = rest;
            Some(line)
        });
        lines.zip(1..).map(move |(rest, number)| Line { file, number, rest })
    };
    if text.is_empty() {
        return Ok(lines(None));
    }
    let Some(body) = text.strip_suffix(b"\n") else {
        let last = text.iter().filter(|b| **b == b'\n').count();
        return Err(ParseError { file, line: last.saturating_add(1), what: "end of line: the text is cut off" });
    };
    Ok(lines(Some(body)))
}

/// A file that is one line, whatever bytes are in it.
pub(crate) fn only_line<'a>(file: &'static str, text: &'a [u8]) -> Result<Line<'a>> {
    let line = Line { file, number: 1, rest: text.strip_suffix(b"\n").unwrap_or(text) };
    if text.ends_with(b"\n") { Ok(line) } else { Err(line.bad("end of line: the text is cut off")) }
}

/// The parts before and after the first `sep`.
pub(crate) fn split_once(bytes: &[u8], sep: u8) -> Option<(&[u8], &[u8])> {
    let at = bytes.iter().position(|b| *b == sep)?;
    Some((bytes.get(..at)?, bytes.get(at.checked_add(1)?..)?))
}

/// A whole number in digits of `radix`, all of `bytes`; a leading `-` where `T` has negative values.
pub(crate) fn number<T: TryFrom<i128>>(bytes: &[u8], radix: u32) -> Option<T> {
    let (negative, digits) = match bytes.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, bytes),
    };
    if digits.is_empty() {
        return None;
    }
    let mut value: u64 = 0;
    for digit in digits {
        let digit = char::from(*digit).to_digit(radix)?;
        value = value.checked_mul(u64::from(radix))?.checked_add(u64::from(digit))?;
    }
    let value = i128::from(value);
    T::try_from(if negative { value.checked_neg()? } else { value }).ok()
}

/// Undoes `\ooo`, the kernel's `mangle_path`. Anything else after a backslash stands for itself.
pub(crate) fn unescape_octal(bytes: &[u8]) -> Vec<u8> {
    unescape_if(bytes, |_| true)
}

/// Undoes `\012` and no other escape, for files where only the newline is mangled.
pub(crate) fn unescape_newline(bytes: &[u8]) -> Vec<u8> {
    unescape_if(bytes, |b| b == b'\n')
}

fn unescape_if(bytes: &[u8], wanted: impl Fn(u8) -> bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((first, tail)) = rest.split_first() {
        let octal = (*first == b'\\').then(|| tail.split_at_checked(3)).flatten();
        let decoded = octal.and_then(|(digits, after)| Some((number::<u8>(digits, 8)?, after)));
        match decoded {
            Some((byte, after)) if wanted(byte) => {
                out.push(byte);
                rest = after;
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

fn blank(byte: u8) -> bool {
    byte == b' ' || byte == b'\t'
}

impl<'a> Line<'a> {
    pub(crate) fn bad(&self, what: &'static str) -> ParseError {
        ParseError { file: self.file, line: self.number, what }
    }

    /// All bytes that were not yet taken.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Drops the first `count` bytes.
    pub(crate) fn advance(&mut self, count: usize) {
        self.rest = self.rest.get(count..).unwrap_or_default();
    }

    pub(crate) fn skip_blanks(&mut self) {
        while let Some((first, tail)) = self.rest.split_first()
            && blank(*first)
        {
            self.rest = tail;
        }
    }

    /// The next word, if there is one.
    pub(crate) fn word(&mut self) -> Option<&'a [u8]> {
        self.skip_blanks();
        let end = self.rest.iter().position(|b| blank(*b)).unwrap_or(self.rest.len());
        let (word, tail) = self.rest.split_at_checked(end)?;
        self.rest = tail;
        (!word.is_empty()).then_some(word)
    }

    /// The next word, which must be there.
    pub(crate) fn token(&mut self, what: &'static str) -> Result<&'a [u8]> {
        self.word().ok_or_else(|| self.bad(what))
    }

    /// Bytes up to `sep`, which is dropped. No blanks are skipped: the part may be empty.
    pub(crate) fn until(&mut self, sep: u8, what: &'static str) -> Result<&'a [u8]> {
        let (head, tail) = split_once(self.rest, sep).ok_or_else(|| self.bad(what))?;
        self.rest = tail;
        Ok(head)
    }

    /// Blanks, then exactly these bytes.
    pub(crate) fn tag(&mut self, tag: &'static str) -> Result<()> {
        self.skip_blanks();
        self.rest = self.rest.strip_prefix(tag.as_bytes()).ok_or_else(|| self.bad(tag))?;
        Ok(())
    }

    /// Whether the line starts with these bytes.
    pub(crate) fn starts(&self, tag: &str) -> bool {
        self.rest.starts_with(tag.as_bytes())
    }

    pub(crate) fn dec<T: TryFrom<i128>>(&mut self, what: &'static str) -> Result<T> {
        self.radix(10, what)
    }

    pub(crate) fn hex<T: TryFrom<i128>>(&mut self, what: &'static str) -> Result<T> {
        self.radix(16, what)
    }

    pub(crate) fn oct<T: TryFrom<i128>>(&mut self, what: &'static str) -> Result<T> {
        self.radix(8, what)
    }

    /// A hexadecimal number written with `0x`.
    pub(crate) fn hex0x<T: TryFrom<i128>>(&mut self, what: &'static str) -> Result<T> {
        self.tag("0x").map_err(|_| self.bad(what))?;
        self.hex(what)
    }

    fn radix<T: TryFrom<i128>>(&mut self, radix: u32, what: &'static str) -> Result<T> {
        number(self.token(what)?, radix).ok_or_else(|| self.bad(what))
    }

    /// A number that ends at `sep`.
    pub(crate) fn number_until<T: TryFrom<i128>>(&mut self, sep: u8, radix: u32, what: &'static str) -> Result<T> {
        self.skip_blanks();
        let digits = self.until(sep, what)?;
        number(digits, radix).ok_or_else(|| self.bad(what))
    }

    /// Decimal numbers to the end of the line.
    pub(crate) fn list<T: TryFrom<i128>>(&mut self, what: &'static str) -> Result<Vec<T>> {
        let mut out = Vec::new();
        while let Some(word) = self.word() {
            out.push(number(word, 10).ok_or_else(|| self.bad(what))?);
        }
        Ok(out)
    }

    /// `major:minor`, the next word.
    pub(crate) fn dev(&mut self, radix: u32) -> Result<Dev> {
        let word = self.token("device")?;
        let (major, minor) = split_once(word, b':').ok_or_else(|| self.bad("device"))?;
        let part = |digits| number(digits, radix).ok_or_else(|| self.bad("device"));
        Ok(Dev { major: part(major)?, minor: part(minor)? })
    }

    /// The words that nobody took.
    pub(crate) fn leftover(mut self) -> Vec<Vec<u8>> {
        let mut out = Vec::new();
        while let Some(word) = self.word() {
            out.push(word.to_vec());
        }
        out
    }

    /// `Key:value`: the key, and a line that holds the value.
    pub(crate) fn key(&self) -> Option<(&'a str, Line<'a>)> {
        let (key, value) = split_once(self.rest, b':')?;
        Some((std::str::from_utf8(key).ok()?, Line { rest: value, ..*self }))
    }

    /// Whether it may be `Key:value`.
    pub(crate) fn has_key(&self) -> bool {
        self.rest.contains(&b':')
    }

    /// The value, if this is the key.
    pub(crate) fn after(&self, key: &str) -> Option<Line<'a>> {
        let rest = self.rest.strip_prefix(key.as_bytes())?.strip_prefix(b":")?;
        Some(Line { rest, ..*self })
    }
}

/// A struct made from a file of `Key: value` lines. `required` keys must be there, `optional` ones become `Option`;
/// an unknown key, a second line for a key, or a line with more than its value ends whole in `leftover`.
macro_rules! keyed {
    (
        $(#[$meta:meta])* $name:ident
        required { $( $(#[$rmeta:meta])* $rfield:ident: $rty:ty = $rkey:literal via $rparse:expr, )* }
        optional { $( $(#[$ometa:meta])* $ofield:ident: $oty:ty = $okey:literal via $oparse:expr, )* }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $name {
            $( $(#[$rmeta])* pub $rfield: $rty, )*
            $( $(#[$ometa])* pub $ofield: Option<$oty>, )*
            /// Lines that are not known, as printed.
            pub leftover: Vec<Vec<u8>>,
        }

        impl $name {
            /// `end` is where a missing key is reported.
            fn from_lines<'a>(
                lines: impl Iterator<Item = crate::field::Line<'a>>,
                end: crate::field::Line<'a>,
            ) -> crate::field::Result<Self> {
                $( let mut $rfield: Option<$rty> = None; )*
                $( let mut $ofield: Option<$oty> = None; )*
                let mut leftover = Vec::new();
                for line in lines {
                    let known = match line.key() {
                        $( Some(($rkey, mut value)) if $rfield.is_none() => {
                            $rfield = Some($rparse(&mut value, $rkey)?);
                            value.word().is_none()
                        } )*
                        $( Some(($okey, mut value)) if $ofield.is_none() => {
                            $ofield = Some($oparse(&mut value, $okey)?);
                            value.word().is_none()
                        } )*
                        _ => false,
                    };
                    if !known {
                        leftover.push(line.rest().to_vec());
                    }
                }
                Ok(Self {
                    $( $rfield: $rfield.ok_or_else(|| end.bad($rkey))?, )*
                    $( $ofield, )*
                    leftover,
                })
            }
        }
    };
}
pub(crate) use keyed;

/// A number of KiB.
pub(crate) fn kib(line: &mut Line<'_>, what: &'static str) -> Result<u64> {
    let value = line.dec(what)?;
    line.tag("kB").map_err(|_| line.bad(what))?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::{lines, number, unescape_newline, unescape_octal};

    #[test]
    fn numbers_are_strict() {
        assert_eq!(number::<u64>(b"18446744073709551615", 10), Some(u64::MAX));
        assert_eq!(number::<u64>(b"18446744073709551616", 10), None);
        assert_eq!(number::<i64>(b"-9223372036854775808", 10), Some(i64::MIN));
        assert_eq!(number::<i64>(b"9223372036854775808", 10), None);
        assert_eq!(number::<u32>(b"ffffffff", 16), Some(u32::MAX));
        for bad in [&b""[..], b"-", b"+1", b" 1", b"1 ", b"--1", b"0x1", b"1\xff"] {
            assert_eq!(number::<i64>(bad, 10), None, "{bad:?}");
        }
        assert_eq!(number::<u64>(b"-1", 10), None);
    }

    #[test]
    fn escapes() {
        assert_eq!(unescape_octal(b"a\\040b\\134c\\012"), b"a b\\c\n");
        assert_eq!(unescape_octal(b"\\777\\08\\"), b"\\777\\08\\");
        assert_eq!(unescape_octal(b"\\13401"), b"\\01");
        assert_eq!(unescape_octal(b"\\-12"), b"\\-12");
        assert_eq!(unescape_newline(b"a\\040b\\012c"), b"a\\040b\nc");
    }

    #[test]
    fn a_cut_line_is_an_error() {
        assert_eq!(lines("x", b"").unwrap().len(), 0);
        assert_eq!(lines("x", b"a\n\nb\n").unwrap().len(), 3);
        let error = lines("x", b"a\nb").unwrap_err();
        assert_eq!(error.to_string(), "x: line 2: bad or missing end of line: the text is cut off");
    }
}
