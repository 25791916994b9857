//! On which memory nodes new pages are put: of a mapping (mbind(2)) or, where it has none, of a thread (set_mempolicy(2)).
//! *Read from:* get_mempolicy in the task, with `MPOL_F_ADDR` for every mapping.
//! *Made again by:* mbind before the mapping is filled; set_mempolicy.
//! *Lost:* home nodes (set_mempolicy_home_node(2), which nothing shows), the node that a page lies on, and of shared memory
//! what was set for a part of it by a process that has no mapping of it any more.

use serde::{Deserialize, Serialize};
use yendor_image::{Addr, Bytes};
use yendor_proc::smaps::Smap;
use yendor_task::script::{Done, bytes, out};
use yendor_task::{Nr, Script, args};

use crate::process::{Inquiry, Question, half_at};

/// A policy other than the default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// `MPOL_*`, with its flags `MPOL_F_STATIC_NODES` and `MPOL_F_RELATIVE_NODES`.
    pub mode: u32,
    /// The mask of its nodes, lowest first.
    pub nodes: Bytes,
}

/// As many nodes as any kernel knows.
const NODES: usize = 1024;
const MPOL_F_ADDR: u32 = 2;

/// Asks for the thread's.
pub fn ask(inquiry: &mut Inquiry) -> Question {
    inquiry.ask(Nr::GET_MEMPOLICY, args![out(8), out(NODES / 8), NODES, 0, 0])
}

/// The thread's; of a kernel without NUMA none.
#[must_use]
pub fn collect(inquiry: &Inquiry, asked: Question) -> Option<Record> {
    let mode = inquiry.bytes(asked).map_or(0, |bytes| half_at(bytes, 0));
    record(mode, inquiry.second(asked))
}

/// Asks for the mode of every mapping's: hardly any has one, and then [`look`] asks for its nodes.
pub fn ask_mappings(inquiry: &mut Inquiry, mappings: &[Smap]) -> Vec<(Addr, Question)> {
    let ask = |at: u64| (Addr(at), inquiry.ask(Nr::GET_MEMPOLICY, args![out(8), 0, 0, at, MPOL_F_ADDR]));
    mappings.iter().map(|smap| smap.map.start).map(ask).collect()
}

/// Where a mapping has one.
pub fn set(inquiry: &Inquiry, asked: &[(Addr, Question)]) -> Vec<Addr> {
    let is_set = |q: Question| inquiry.bytes(q).is_ok_and(|bytes| half_at(bytes, 0) != 0);
    asked.iter().filter(|(_, q)| is_set(*q)).map(|(at, _)| *at).collect()
}

/// Asks for all of the policies at these addresses; [`looked`] takes the answers.
#[must_use]
pub fn look(places: &[Addr]) -> Script {
    let mut script = Script::new();
    for at in places {
        script.call(Nr::GET_MEMPOLICY, args![out(8), out(NODES / 8), NODES, at.0, MPOL_F_ADDR]);
    }
    script
}

/// What [`look`] found.
#[must_use]
pub fn looked(places: &[Addr], done: &[Done]) -> Vec<(Addr, Record)> {
    let one = |done: &Done| {
        let [mode, nodes] = &done.out[..] else { return None };
        record(half_at(mode, 0), nodes)
    };
    places.iter().zip(done).filter_map(|(at, done)| Some((*at, one(done)?))).collect()
}

fn record(mode: u32, nodes: &[u8]) -> Option<Record> {
    (mode != 0).then(|| Record { mode, nodes: Bytes(nodes.to_vec()) })
}

impl Record {
    /// The mask for a call, and how many bits the call is told that it has: one more than it has.
    fn mask(&self) -> (yendor_task::Arg, usize) {
        (bytes(self.nodes.0.clone()), self.nodes.0.len() * 8 + 1)
    }

    /// Gives it to the thread.
    pub fn rebuild(&self, script: &mut Script) {
        let (mask, bits) = self.mask();
        script.call(Nr::SET_MEMPOLICY, args![self.mode, mask, bits]);
    }

    /// Gives it to a mapping.
    pub fn bind(&self, start: Addr, len: u64, script: &mut Script) {
        let (mask, bits) = self.mask();
        script.call(Nr::MBIND, args![start.0, len, self.mode, mask, bits, 0]);
    }
}
