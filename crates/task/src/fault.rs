//! A call that is made to fail on purpose, for tests of what happens then. Only in builds with debug assertions.
//!
//! With [`CALL`] set to N, the Nth call that this process has laid into scripts gets a number that no kernel knows: the
//! task executes it, and the kernel refuses. Calls whose answer nobody looks at are not counted. So for N = 1, 2, 3, ...
//! every call of a plan fails once, until N is beyond the last and nothing fails.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::script::Want;

/// The variable.
pub const CALL: &str = "YENDOR_FAULT_CALL";

/// A number that is no system call's.
const NONE: u64 = 0xfff;

/// The number to lay down instead of a call's own.
pub(crate) fn number(own: u64, want: Want) -> u64 {
    if !cfg!(debug_assertions) || want == Want::Anything {
        return own;
    }
    static CHOSEN: OnceLock<Option<u64>> = OnceLock::new();
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let chosen = CHOSEN.get_or_init(|| std::env::var(CALL).ok()?.parse().ok());
    match chosen {
        Some(chosen) if COUNT.fetch_add(1, Relaxed) + 1 == *chosen => NONE,
        _ => own,
    }
}
