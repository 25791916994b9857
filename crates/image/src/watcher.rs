//! Somebody who wants to see how far long work is.

use std::fmt;
use std::sync::Arc;

/// Is told of every piece of work that is done. Clones tell the same one; the default is nobody.
#[derive(Clone, Default)]
pub struct Watcher(Option<Arc<dyn Fn(u64) + Send + Sync>>);

impl Watcher {
    /// `told` gets the number of bytes that have been done since it was told last, 0 for mere patience. It must be quick.
    pub fn new(told: impl Fn(u64) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(told)))
    }

    /// Tells.
    pub fn tell(&self, bytes: u64) {
        if let Some(told) = &self.0 {
            told(bytes);
        }
    }
}

impl fmt::Debug for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Watcher").field(&self.0.is_some()).finish()
    }
}
