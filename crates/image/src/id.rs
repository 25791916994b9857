//! Numbers that must not be mistaken for one another.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! number {
    ($($(#[$doc:meta])* $name:ident($int:ty);)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $int);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl From<$int> for $name {
            fn from(number: $int) -> Self {
                Self(number)
            }
        }
    )*};
}

number! {
    /// A process id as the image's own pid namespace counts.
    NsPid(i32);
    /// A thread id as the image's own pid namespace counts.
    Tid(i32);
    /// A descriptor number of a task.
    FdNum(i32);
    /// Key of an open file description in the records.
    FileId(u32);
    /// Key of an address space in the records.
    MmId(u32);
    /// Key of a shared memory object in the records.
    ShmId(u32);
    /// Key of a namespace in the records.
    NsId(u32);
}

/// A virtual address of a task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Addr(pub u64);

impl Addr {
    /// The address `bytes` further, or `None` past the end of the 64-bit address space.
    pub fn checked_add(self, bytes: u64) -> Option<Addr> {
        self.0.checked_add(bytes).map(Addr)
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl From<u64> for Addr {
    fn from(number: u64) -> Self {
        Self(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_transparent_and_addresses_print_in_hex() {
        assert_eq!(serde_json::to_string(&(NsPid(-1), FileId(7), Addr(255))).unwrap(), "[-1,7,255]");
        assert_eq!(format!("{} {} {:>3}", Addr(0x7fff_0000), FdNum(3), Tid(9)), "0x7fff0000 3   9");
        assert_eq!(Addr(u64::MAX).checked_add(1), None);
    }
}
