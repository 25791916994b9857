//! Scripts: system calls as data.

use std::fmt;

use smallvec::SmallVec;

use crate::nr::Nr;

/// Memory that a call's argument points to: bytes, and places in them that hold pointers to more memory.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Memory {
    /// What the task finds there (and what the call may overwrite).
    pub bytes: Vec<u8>,
    /// `(offset, target)`: eight bytes at `offset` become the address of `target`.
    pub pointers: Vec<(usize, Memory)>,
    /// `(offset, to)`: eight bytes at `offset` become the address of the byte `to` of these bytes.
    pub inner: Vec<(usize, usize)>,
}

/// One argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Arg {
    /// A number, or an address that the task already has.
    Value(u64),
    /// The address of scratch memory that is laid down with the script.
    Memory(Box<Memory>),
    /// The address of as many zero bytes, which are handed back after the call.
    Out(usize),
    /// The address of scratch memory that points to nothing outside of itself; its bytes are handed back after the call, too.
    Back(Box<Memory>),
}

/// What a call must return for the script to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// Anything but an error.
    Success,
    /// This value.
    Exactly(u64),
    /// Anything; the caller looks.
    Anything,
}

/// One system call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Which.
    pub nr: Nr,
    /// With what; missing arguments are 0.
    pub args: SmallVec<[Arg; 6]>,
    /// What it must return.
    pub want: Want,
}

/// What a call did: its returned value, and the memory that was to be read back, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done {
    /// As in the register: `-errno` for an error.
    pub returned: i64,
    /// The bytes of every argument made with [`out`].
    pub out: SmallVec<[Output; 1]>,
}

/// What a call has filled in.
pub type Output = SmallVec<[u8; 32]>;

/// A list of calls.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Script {
    /// In order.
    pub calls: Vec<Call>,
}

impl From<u64> for Arg {
    fn from(v: u64) -> Self {
        Arg::Value(v)
    }
}

impl From<u32> for Arg {
    fn from(v: u32) -> Self {
        Arg::Value(u64::from(v))
    }
}

impl From<i32> for Arg {
    fn from(v: i32) -> Self {
        Arg::Value(i64::from(v).cast_unsigned())
    }
}

impl From<i64> for Arg {
    fn from(v: i64) -> Self {
        Arg::Value(v.cast_unsigned())
    }
}

impl From<usize> for Arg {
    fn from(v: usize) -> Self {
        Arg::Value(v as u64)
    }
}

impl From<Memory> for Arg {
    fn from(m: Memory) -> Self {
        Arg::Memory(Box::new(m))
    }
}

/// Bytes for a call to read.
#[must_use]
pub fn bytes(b: impl Into<Vec<u8>>) -> Arg {
    Memory { bytes: b.into(), ..Memory::default() }.into()
}

/// A string for a call to read: the bytes and a zero.
#[must_use]
pub fn cstr(b: &[u8]) -> Arg {
    let mut v = b.to_vec();
    v.push(0);
    bytes(v)
}

/// Bytes for a call to read and to fill, with places in them that hold pointers to others of them: `(offset, to)`. Handed back in [`Done::out`].
#[must_use]
pub fn back(bytes: Vec<u8>, inner: Vec<(usize, usize)>) -> Arg {
    Arg::Back(Box::new(Memory { bytes, inner, ..Memory::default() }))
}

/// Room of `len` zero bytes for a call to fill; handed back in [`Done::out`].
#[must_use]
pub fn out(len: usize) -> Arg {
    Arg::Out(len)
}

impl Script {
    /// An empty script.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a call that must not fail. Its index.
    pub fn call(&mut self, nr: Nr, args: impl IntoIterator<Item = Arg>) -> usize {
        self.call_wanting(nr, args, Want::Success)
    }

    /// Adds a call. Its index.
    pub fn call_wanting(&mut self, nr: Nr, args: impl IntoIterator<Item = Arg>, want: Want) -> usize {
        self.calls.push(Call { nr, args: args.into_iter().collect(), want });
        self.calls.len() - 1
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }
}

/// `args![a, b, c]`: arguments of one call from numbers and memory.
#[macro_export]
macro_rules! args {
    ($($a:expr),* $(,)?) => { [$($crate::Arg::from($a)),*] };
}

impl fmt::Display for Arg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Arg::Value(v) if *v > 0xffff_ffff_0000_0000 => write!(f, "{}", v.cast_signed()),
            Arg::Value(v) if *v > 0xffff => write!(f, "{v:#x}"),
            Arg::Value(v) => write!(f, "{v}"),
            Arg::Out(len) => write!(f, "[{len} bytes]"),
            Arg::Memory(m)
                if m.bytes.last() == Some(&0) && m.bytes.iter().take(m.bytes.len() - 1).all(|b| *b >= b' ') =>
            {
                write!(f, "\"{}\"", m.bytes[..m.bytes.len() - 1].escape_ascii())
            }
            Arg::Memory(m) if m.bytes.len() <= 64 => {
                write!(f, "<")?;
                m.bytes.iter().try_for_each(|b| write!(f, "{b:02x}"))?;
                write!(f, ">")
            }
            Arg::Memory(m) | Arg::Back(m) => write!(f, "<{} bytes>", m.bytes.len()),
        }
    }
}

impl Call {
    /// The arguments as strace would show them.
    #[must_use]
    pub fn shown_args(&self) -> String {
        self.args.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({})", self.nr.name(), self.shown_args())?;
        match self.want {
            Want::Success => Ok(()),
            Want::Exactly(v) => write!(f, " = {}", Arg::Value(v)),
            Want::Anything => write!(f, " = ?"),
        }
    }
}

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.calls.iter().try_for_each(|c| writeln!(f, "{c}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_like_strace() {
        let mut s = Script::new();
        s.call(Nr::OPENAT, args![-100, cstr(b"/tmp/x"), 0u32]);
        s.call_wanting(Nr::MMAP, args![0x7f00_0000_0000u64, 4096u64], Want::Exactly(0x7f00_0000_0000));
        s.call_wanting(Nr::GETITIMER, args![0, out(32)], Want::Anything);
        assert_eq!(
            s.to_string(),
            "openat(-100, \"/tmp/x\", 0)\nmmap(0x7f0000000000, 4096) = 0x7f0000000000\ngetitimer(0, [32 bytes]) = ?\n"
        );
    }
}
