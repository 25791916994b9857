//! signalfd(2).
//! *Read from:* fdinfo. What it would deliver are the pending signals of whoever reads it.
//! *Made again by:* signalfd4.
//! *Lost:* nothing.

use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};
use yendor_proc::fdinfo::Detail;

use super::{Entry, FileKind, Gather, Seen, Workshop};
use crate::{Cause, Result};

/// A signalfd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The signals that it takes; bit 0 is signal 1.
    pub mask: u64,
}

impl FileKind for Record {
    const NAME: &'static str = "signalfd";

    fn claims(seen: &Seen) -> bool {
        matches!(seen.info.detail, Detail::Signalfd { .. })
    }

    fn collect(seen: &Seen, _gather: &mut Gather<'_>) -> Result<Self> {
        match seen.info.detail {
            Detail::Signalfd { mask } => Ok(Record { mask }),
            _ => Err(Cause::unsupported(format!("{}: no signalfd", seen.link))),
        }
    }

    fn rebuild(&self, _entry: &Entry, _workshop: &mut Workshop<'_>) -> Result<OwnedFd> {
        let Record { mask } = self;
        Ok(yendor_sys::event::signalfd(*mask)?)
    }
}
