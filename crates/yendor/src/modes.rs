//! What a terminal was told to be while programs drew on it: who ends without a word leaves it so, and it is put back.

use std::os::fd::BorrowedFd;

use rustix::termios::isatty;

/// Private modes of DEC and xterm that are put back, and whether a terminal has them on by itself. Those of another screen come last.
const KNOWN: [(u16, bool); 17] = [
    (1, false),
    (5, false),
    (7, true),
    (9, false),
    (25, true),
    (1000, false),
    (1001, false),
    (1002, false),
    (1003, false),
    (1004, false),
    (1005, false),
    (1006, false),
    (1015, false),
    (2004, false),
    (47, false),
    (1047, false),
    (1049, false),
];

/// The modes that are not as a terminal has them by itself, as the bytes say that went to it.
#[derive(Debug, Default)]
pub struct Modes {
    changed: Vec<u16>,
    keypad: bool,
    at: At,
    numbers: Vec<u16>,
}

/// Within which sequence.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum At {
    #[default]
    Text,
    Escape,
    Control,
    Private,
}

/// More numbers than this has no sequence that anybody writes.
const MOST: usize = 32;

impl Modes {
    /// Bytes that a terminal gets.
    pub fn see(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.at = self.next(*byte);
        }
    }

    fn next(&mut self, byte: u8) -> At {
        const ESCAPE: u8 = 0x1b;
        match (self.at, byte) {
            (_, ESCAPE) => return At::Escape,
            (At::Escape, b'[') => {
                self.numbers = vec![0];
                return At::Control;
            }
            (At::Escape, b'=' | b'>') => self.keypad = byte == b'=',
            // All at once.
            (At::Escape, b'c') => *self = Modes::default(),
            (At::Control, b'?') => return At::Private,
            (At::Private, b'0'..=b'9') => {
                if let Some(number) = self.numbers.last_mut() {
                    *number = number.saturating_mul(10).saturating_add(u16::from(byte - b'0'));
                }
                return At::Private;
            }
            (At::Private, b';') if self.numbers.len() < MOST => {
                self.numbers.push(0);
                return At::Private;
            }
            (At::Private, b'h' | b'l') => self.set(byte == b'h'),
            _ => {}
        }
        At::Text
    }

    fn set(&mut self, on: bool) {
        for number in std::mem::take(&mut self.numbers) {
            let Some((_, usual)) = KNOWN.iter().find(|(known, _)| *known == number) else { continue };
            self.changed.retain(|one| *one != number);
            if on != *usual {
                self.changed.push(number);
            }
        }
    }

    /// What puts all of them back; nothing, where there is nothing to do.
    fn undo(&self) -> String {
        let mut out = String::new();
        for (number, usual) in KNOWN.iter().filter(|(known, _)| self.changed.contains(known)) {
            out.push_str(&format!("\x1b[?{number}{}", if *usual { 'h' } else { 'l' }));
        }
        if self.keypad {
            out.push_str("\x1b>");
        }
        // Colours, too.
        if out.is_empty() { out } else { format!("\x1b[0m{out}") }
    }

    /// Puts a terminal back, if it is one.
    pub fn leave(self, terminal: BorrowedFd<'_>) {
        if isatty(terminal) {
            // A terminal that has gone away needs nothing.
            let _ = rustix::io::write(terminal, self.undo().as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn undo(said: &[&str]) -> String {
        let mut modes = Modes::default();
        said.iter().for_each(|bytes| modes.see(bytes.as_bytes()));
        modes.undo()
    }

    #[test]
    fn what_was_changed_is_put_back() {
        assert_eq!(undo(&["a\x1b[31mb\x1b[2J\x1b[?12h\x1b]0;x\x07"]), "");
        assert_eq!(undo(&["\x1b[?1049h\x1b[?25l text"]), "\x1b[0m\x1b[?25h\x1b[?1049l");
        assert_eq!(undo(&["\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"]), "");
        // In pieces, and several at once.
        assert_eq!(undo(&["\x1b", "[?10", "00;2004", "h\x1b=x"]), "\x1b[0m\x1b[?1000l\x1b[?2004l\x1b>");
        assert_eq!(undo(&["\x1b[?1049h\x1b[?1049h\x1bc"]), "");
    }

    #[test]
    fn what_is_no_sequence_is_none() {
        for bytes in
            ["[?1049h", "\x1b?1049h", "\x1b[1049h", "\x1b[?1049", "\x1b[?99999999999h", "\x1b[?h", "\x1b[?1049\x1b[h"]
        {
            assert_eq!(undo(&[bytes]), "", "{bytes:?}");
        }
        assert_eq!(undo(&[&format!("\x1b[?{}1049h", "1;".repeat(100))]), "");
    }
}
