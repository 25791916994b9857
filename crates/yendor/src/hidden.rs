//! First arguments that only Yendor itself uses.

use yendor_engine::admit::{KEEPER, OUTER};
use yendor_engine::collect::peer::PEER;

/// Whether this process was started to be a container's keeper.
pub fn is_keeper() -> bool {
    std::env::args_os().nth(1).is_some_and(|first| first == KEEPER)
}

/// Whether this process was started to become one.
pub fn is_outer() -> bool {
    std::env::args_os().nth(1).is_some_and(|first| first == OUTER)
}

/// Whether this process was started for tasks to look at.
pub fn is_peer() -> bool {
    std::env::args_os().nth(1).is_some_and(|first| first == PEER)
}
