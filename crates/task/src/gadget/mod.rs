//! The machine code that executes scripts, one file per architecture. Position independent; knows nothing but calls.

#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(target_arch = "x86_64")]
pub use x86_64::{CODE, ENTER, FLAGS, INIT, TILE_SHAPE, TILES, WAIT};

/// Offsets in a slot of the arena; the machine code agrees with them.
pub mod slot {
    /// `u32`: counts the scripts that were started here.
    pub const GO: usize = 0;
    /// `u32`: 1 when the script has ended.
    pub const DONE: usize = 4;
    /// `i32`: pid 1's slot: the wait status of the main task.
    pub const STATUS: usize = 8;
    /// `u32`: pid 1's slot: 1 when `STATUS` holds.
    pub const ENDED: usize = 12;
    /// Two `struct futex_waitv`: for `GO` and for the tracer's life.
    pub const WAITERS: usize = 16;
    /// The records.
    pub const RECORDS: usize = 64;
}

/// A record: number, six arguments, returned value, lowest good value, and how far above it is still good.
pub mod record {
    /// Bytes of one record.
    pub const SIZE: usize = 80;
    /// The returned value.
    pub const RETURNED: usize = 56;
    /// The number that ends a script.
    pub const END: u64 = u64::MAX;
}
