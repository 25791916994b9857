//! Contexts of asynchronous I/O (io_setup(2)) in which nothing is in flight, with the completions that nobody has read.
//! *Read from:* the ring, which is mapped. Whether a request is not done yet by having the task submit as many empty ones as there
//! is room for, on every processor. The script takes them back if it finds nothing else where they must be; else we do, from outside.
//! *Made again by:* io_setup with as many requests as make a ring of that size, mremap to its address, as many empty requests as bring
//! it to the same position; what nobody has read is written over the last of them.
//! *Lost:* with how many requests io_setup was asked, as the kernel rounds up and shows only the ring (/proc/sys/fs/aio-nr); in the
//! program that goes on, the position of a ring, which has come round further by what was taken back, and that nobody had chosen the
//! thread's processors: sched_setaffinity puts its mask back as one that was chosen, and a cpuset that grows later does not widen it. If
//! Yendor is killed while the task submits, or before it has taken back from outside (requests in flight, more than 256 completions
//! unread, room for more than 4096), up to a ring of empty completions stays in it, whose data is 0x79656e646f72a10a, and the thread may
//! stay on one processor. Requests that do not end within seconds refuse the checkpoint.

use serde::{Deserialize, Serialize};
use yendor_proc::smaps::Smap;
use yendor_sys::vm;
use yendor_task::script::{Done, Memory, Output, Want, bytes, cstr, out};
use yendor_task::{Nr, Script, args};

use super::vma::{self, Backing};
use crate::process::{half_at, word_at, words};
use crate::{Cause, Result};

/// A context; its address is its id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The mapping of its ring.
    pub area: vma::Record,
    /// The slot of the oldest completion that nobody has read.
    pub head: u32,
    /// Those, oldest first.
    pub unread: Vec<Event>,
}

/// A completion (struct `io_event`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Event {
    /// What its request carried.
    pub data: u64,
    /// Where its request lay.
    pub object: u64,
    /// What the request returned.
    pub result: i64,
    /// Its second result.
    pub second: i64,
}

/// What a task must be able to call to be asked.
pub const CALLS: [Nr; 9] = [
    Nr::SCHED_GETAFFINITY,
    Nr::SCHED_SETAFFINITY,
    Nr::MEMFD_CREATE,
    Nr::IO_GETEVENTS,
    Nr::IO_SUBMIT,
    Nr::FUTEX,
    Nr::FUTEX_WAITV,
    Nr::PROCESS_VM_WRITEV,
    Nr::CLOSE,
];

const PAGE: u64 = 4096;
/// Bytes of the ring's head (struct `aio_ring`) and of a slot.
const HEADER: usize = 32;
const SLOT: u64 = 32;
const HEAD_AT: u64 = 8;
const TAIL_AT: u64 = 12;
const MAGIC: u32 = 0xa10a_10a1;
/// What our own requests carry: "yendor" and a number that nobody else has thought of.
const MARK: u64 = u64::from_be_bytes(*b"yendor\xa1\x0a");
/// A ring of more bytes is none: the kernel takes no more than 2^24 requests, and no system allows near as many.
const MOST_BYTES: u64 = 1 << 28;
/// How many completions a script can put back, and how many of ours it can look at.
const MOST_IN_SCRIPT: usize = 256;
const MOST_LOOKED_AT: u32 = 4096;
/// How many slots of two words the task looks at with one call (`FUTEX_WAITV_MAX` is 128).
const LOOK: u32 = 64;
/// How many requests of ours are made with one call.
const CHUNK: u32 = 32;
const MASK: usize = 128;

/// Whether a mapping is the ring of a context, or was.
#[must_use]
pub fn is_ring(smap: &Smap) -> bool {
    smap.map.name == b"/[aio]" && smap.map.deleted && smap.map.perms.shared
}

/// A ring as it was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ring {
    at: u64,
    slots: u32,
    head: u32,
    tail: u32,
}

/// A range of a task's memory: where, and how many bytes.
type Piece = (u64, usize);

impl Ring {
    /// The ring at the beginning of a mapping of `len` bytes.
    ///
    /// # Errors
    /// The kernel's; one that is not as io_setup(2) made it is refused.
    pub fn read(tid: i32, at: u64, len: u64) -> Result<Ring> {
        let mut header = [0; HEADER];
        vm::read_exact(tid, at, &mut header)?;
        let [slots, head, tail, magic] = [4, 8, 12, 16].map(|offset| half_at(&header, offset));
        let whole =
            len.is_multiple_of(PAGE) && len <= MOST_BYTES && u64::from(slots).checked_add(1) == Some(len / SLOT);
        if !whole || magic != MAGIC || half_at(&header, 20) != 1 || half_at(&header, 24) != 0 || slots < 2 {
            let what = "asynchronous I/O (io_setup) with a ring that is not as the kernel made it";
            return Err(Cause::unsupported(format!("mapping {at:x}-{:x}: {what}", at.saturating_add(len))));
        }
        Ok(Ring { at, slots, head: head % slots, tail: tail % slots })
    }

    fn unread(&self) -> u32 {
        (self.tail + self.slots - self.head) % self.slots
    }

    /// Where `count` slots from slot `from` on lie.
    fn pieces(&self, from: u32, count: u32) -> impl Iterator<Item = Piece> {
        let before_end = count.min(self.slots - from % self.slots);
        let place = |slot: u32, count: u32| {
            (self.at + SLOT + SLOT * u64::from(slot), usize::try_from(SLOT * u64::from(count)).unwrap_or(0))
        };
        let all = [place(from % self.slots, before_end), place(0, count - before_end)];
        all.into_iter().filter(|(_, len)| *len > 0)
    }

    /// The completions that nobody has read.
    ///
    /// # Errors
    /// The kernel's.
    pub fn events(&self, tid: i32) -> Result<Vec<Event>> {
        let mut all = Vec::new();
        for (at, len) in self.pieces(self.head, self.unread()) {
            let mut bytes = vec![0; len];
            vm::read_exact(tid, at, &mut bytes)?;
            all.extend(bytes.chunks_exact(32).map(Event::read));
        }
        Ok(all)
    }

    /// How many requests of ours there must be room for if no other is in flight. The kernel hands room out to processors in portions:
    /// what is less than one is handed to nobody (`req_batch` in fs/aio.c).
    fn room(&self, possible: u32) -> u32 {
        let all = self.slots - 1;
        let portion = (all / possible.max(1).saturating_mul(4)).max(1);
        (all - all % portion).saturating_sub(self.unread())
    }

    /// The position after `count` more completions.
    fn after(&self, count: u32) -> u32 {
        (self.tail + count) % self.slots
    }

    /// Where the slots lie that the requests of ours fill if no other is in flight, in parts that one call can look at.
    fn ours(&self, room: u32) -> impl Iterator<Item = Vec<u64>> {
        let slot = move |i: u32| self.at + SLOT + SLOT * u64::from(self.after(i));
        (0..room.div_ceil(LOOK)).map(move |part| (part * LOOK..room.min((part + 1) * LOOK)).map(slot).collect())
    }

    /// The task submits as many requests as there is room for. If nothing but those has ended since the ring was read, it takes them
    /// back at once, and the script ends well. If not, it ends at a call that fails: then, and where there is much to be put
    /// back, [`mend`] takes them back. Both leave the ring to be read for what is unread.
    #[must_use]
    pub fn count(&self, unread: &[Event], asked: &Asked, cpus: &Cpus, pid: i32) -> Script {
        const FUTEX_WAIT_PRIVATE: u32 = 128;
        const ETIMEDOUT: i64 = -110;
        let mut script = Script::new();
        for cpu in 0..cpus.end {
            let mut mask = [0u8; MASK];
            let Some(byte) = usize::try_from(cpu / 8).ok().and_then(|i| mask.get_mut(i)) else { break };
            *byte = 1 << (cpu % 8);
            script.call_wanting(Nr::SCHED_SETAFFINITY, args![0, MASK, bytes(mask)], Want::Anything);
            // The first may get all that is in no processor's portion, the others no more than two portions.
            let most = if cpu == 0 { self.slots } else { self.slots / 2 + 1 };
            for n in chunks(most, 1024) {
                script.call_wanting(Nr::IO_SUBMIT, args![self.at, n, requests(n, asked.file)], Want::Anything);
            }
        }
        script.call(Nr::SCHED_SETAFFINITY, args![0, asked.affinity.len(), bytes(&asked.affinity[..])]);
        // The one call that tells by its result whether a word is what it must be.
        let room = self.room(cpus.possible);
        let tail = self.after(room);
        let all_there = Want::Exactly(ETIMEDOUT.cast_unsigned());
        let at_once = bytes(words(&[0, 0]));
        script.call_wanting(Nr::FUTEX, args![self.at + TAIL_AT, FUTEX_WAIT_PRIVATE, tail, at_once], all_there);
        if unread.len() <= MOST_IN_SCRIPT && room <= MOST_LOOKED_AT {
            // The tail is there too if requests were in flight and have ended meanwhile: their completions are in other slots than ours.
            for slots in self.ours(room) {
                let waiters = waiters(&slots);
                let count = slots.len() * 2;
                let at_once = bytes(words(&[0, 0]));
                script.call_wanting(Nr::FUTEX_WAITV, args![bytes(waiters), count, 0, at_once, 0], all_there);
            }
            let (data, pieces) = Ring { tail, ..*self }.put_back(unread);
            let local = Memory {
                bytes: words(&[0, data.len() as u64]),
                pointers: vec![(0, Memory { bytes: data.clone(), ..Memory::default() })],
                ..Memory::default()
            };
            let remote: Vec<u64> = pieces.iter().flat_map(|(at, len)| [*at, *len as u64]).collect();
            let all = Want::Exactly(data.len() as u64);
            let remote = (bytes(words(&remote)), pieces.len());
            script.call_wanting(Nr::PROCESS_VM_WRITEV, args![pid, local, 1, remote.0, remote.1, 0], all);
        }
        script
    }

    /// What has to be written where, so that these completions are the last before the tail and the only ones that nobody has
    /// read. The head is the last of it.
    fn put_back(&self, unread: &[Event]) -> (Vec<u8>, Vec<Piece>) {
        let count = u32::try_from(unread.len()).unwrap_or(0);
        let head = (self.tail + self.slots - count) % self.slots;
        let mut data: Vec<u8> = unread.iter().flat_map(Event::bytes).collect();
        let mut pieces: Vec<Piece> = self.pieces(head, count).collect();
        data.extend_from_slice(&head.to_ne_bytes());
        pieces.push((self.at + HEAD_AT, 4));
        (data, pieces)
    }

    fn write(&self, tid: i32, unread: &[Event]) -> Result<()> {
        let (data, pieces) = self.put_back(unread);
        Ok(vm::write_ranges(tid, &pieces, &data)?)
    }
}

/// What is in a ring once no request of ours is in it any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mended {
    /// The completions that nobody has read.
    pub unread: Vec<Event>,
    /// How many requests of ours were among them.
    ours: usize,
}

impl Mended {
    fn new(all: &[Event]) -> Mended {
        let unread: Vec<Event> = all.iter().filter(|event| !event.is_ours()).copied().collect();
        Mended { ours: all.len() - unread.len(), unread }
    }

    /// How many requests are in flight, if the script had ended at a call that failed. `ring`: as it was before; what has ended since
    /// had taken room from ours.
    #[must_use]
    pub fn in_flight(&self, ring: &Ring, cpus: &Cpus) -> u32 {
        let ended = self.unread.len().saturating_sub(ring.unread() as usize);
        ring.room(cpus.possible).saturating_sub(u32::try_from(self.ours + ended).unwrap_or(u32::MAX))
    }
}

/// Takes back what [`Ring::count`] has left in the ring of a mapping, and reads what else is there.
///
/// # Errors
/// The kernel's.
pub fn mend(tid: i32, at: u64, len: u64) -> Result<Mended> {
    let ring = Ring::read(tid, at, len)?;
    let mended = Mended::new(&ring.events(tid)?);
    if mended.ours > 0 {
        ring.write(tid, &mended.unread)?;
    }
    Ok(mended)
}

impl Event {
    fn read(bytes: &[u8]) -> Event {
        let [data, object, result, second] = [0, 8, 16, 24].map(|offset| word_at(bytes, offset));
        Event { data, object, result: result.cast_signed(), second: second.cast_signed() }
    }

    fn bytes(&self) -> Vec<u8> {
        words(&[self.data, self.object, self.result.cast_unsigned(), self.second.cast_unsigned()])
    }

    fn is_ours(&self) -> bool {
        self.data == MARK && (self.result, self.second) == (0, 0)
    }
}

/// The processors that may ever be there: how many, and one past the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cpus {
    possible: u32,
    end: u32,
}

impl Cpus {
    /// From a list such as `0-3,8` (/sys/devices/system/cpu/possible).
    #[must_use]
    pub fn parse(list: &str) -> Option<Cpus> {
        let mut cpus = Cpus { possible: 0, end: 0 };
        for range in list.trim().split(',') {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last) = (first.parse::<u32>().ok()?, last.parse::<u32>().ok()?);
            let count = last.checked_sub(first)?.checked_add(1)?;
            cpus = Cpus { possible: cpus.possible.checked_add(count)?, end: cpus.end.max(last.checked_add(1)?) };
        }
        Some(cpus)
    }
}

/// What is asked before all else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// The thread's processors.
    affinity: Output,
    /// Its descriptor of an empty file.
    pub file: i32,
}

/// Which of these rings belong to a context still; [`is_alive`] takes the answers. A child has its parent's rings, and no context.
#[must_use]
pub fn ask(rings: &[u64]) -> Script {
    let mut script = Script::new();
    for at in rings {
        script.call_wanting(Nr::IO_GETEVENTS, args![*at, 0, 0, 0, 0], Want::Anything);
    }
    script
}

/// What the kernel has said of a ring.
#[must_use]
pub fn is_alive(done: &Done) -> bool {
    done.returned == 0
}

/// What it takes to ask whether requests are in flight; [`Asked::new`] takes the answers.
#[must_use]
pub fn prepare() -> Script {
    const MFD_CLOEXEC: u32 = 1;
    let mut script = Script::new();
    script.call(Nr::SCHED_GETAFFINITY, args![0, MASK, out(MASK)]);
    script.call(Nr::MEMFD_CREATE, args![cstr(b"yendor-scratch"), MFD_CLOEXEC]);
    script
}

impl Asked {
    /// From the answers to [`prepare`].
    #[must_use]
    pub fn new(done: &[Done]) -> Option<Asked> {
        let [affinity, file] = done else { return None };
        let len = usize::try_from(affinity.returned).ok()?;
        let affinity = affinity.out.first()?.get(..len)?.into();
        Some(Asked { affinity, file: i32::try_from(file.returned).ok()? })
    }

    /// The task has no use for them any more.
    pub fn end(&self, script: &mut Script) {
        script.call(Nr::CLOSE, args![self.file]);
        script.call(Nr::SCHED_SETAFFINITY, args![0, self.affinity.len(), bytes(&self.affinity[..])]);
    }

    /// The task stays on one of its processors: what the kernel keeps for one cannot be had from another.
    pub fn stay(&self, script: &mut Script) {
        let Some((at, byte)) = self.affinity.iter().enumerate().find(|(_, byte)| **byte != 0) else { return };
        let mut one = vec![0; self.affinity.len()];
        one[at] = 1 << byte.trailing_zeros();
        script.call(Nr::SCHED_SETAFFINITY, args![0, one.len(), bytes(one)]);
    }
}

/// `total` in parts of `most`.
fn chunks(total: u32, most: u32) -> impl Iterator<Item = u32> {
    (0..total.div_ceil(most)).map(move |i| most.min(total - i * most))
}

/// What futex_waitv(2) takes to look whether each of these slots is of a request of ours (struct `futex_waitv`): 32 bits at a time.
fn waiters(slots: &[u64]) -> Vec<u8> {
    /// `FUTEX2_SIZE_U32`, `FUTEX2_PRIVATE`.
    const WORD: u64 = 2 | 128;
    let half = |at: u64, value: u64| [value & u64::from(u32::MAX), at, WORD];
    let both = |at: &u64| [half(*at, MARK), half(*at + 4, MARK >> 32)];
    words(slots.iter().flat_map(both).collect::<Vec<_>>().as_flattened())
}

/// Requests to read nothing from a file, `count` times the same: each is done when the call returns (struct `iocb`).
fn requests(count: u32, file: i32) -> Memory {
    let count = usize::try_from(count).unwrap_or(0);
    let mut bytes = vec![0; count * 8];
    let mut request = words(&[MARK, 0, 0, 0, 0, 0, 0, 0]);
    request[20..24].copy_from_slice(&file.to_ne_bytes());
    bytes.extend(request);
    let inner = (0..count).map(|i| (i * 8, count * 8)).collect();
    Memory { bytes, inner, ..Memory::default() }
}

const PROT_NONE: u32 = 0;
/// `MAP_PRIVATE`, `MAP_ANONYMOUS`, `MAP_NORESERVE`, `MAP_FIXED_NOREPLACE`.
const RESERVED: u32 = 0x02 | 0x20 | 0x4000 | 0x10_0000;
const MREMAP_MAYMOVE_FIXED: u32 = 3;

impl Record {
    /// Reads a context in which nothing is in flight.
    ///
    /// # Errors
    /// What [`vma::collect`] refuses.
    pub fn collect(smap: &Smap, ring: &Ring, unread: Vec<Event>) -> Result<Option<Record>> {
        let area = vma::collect(smap, &mut |_| Ok(Backing::Anonymous))?;
        Ok(area.map(|area| Record { area, head: ring.head, unread }))
    }

    fn slots(&self) -> u64 {
        (self.area.len() / SLOT).saturating_sub(1)
    }

    /// Whether there can be such a context.
    ///
    /// # Errors
    /// `Corrupt` if not.
    pub fn check(&self) -> Result<()> {
        let (start, len, slots) = (self.area.start.0, self.area.len(), self.slots());
        let aligned = start.is_multiple_of(PAGE) && len.is_multiple_of(PAGE) && len > 0;
        if !aligned || u64::from(self.head) >= slots || self.unread.len() as u64 >= slots {
            return Err(Cause::corrupt(format!("a context of asynchronous I/O at {} that cannot be", self.area.start)));
        }
        Ok(())
    }

    /// Keeps its place free.
    pub fn reserve(&self, script: &mut Script) {
        let start = self.area.start.0;
        let want = Want::Exactly(start);
        script.call_wanting(Nr::MMAP, args![start, self.area.len(), PROT_NONE, RESERVED, -1, 0], want);
    }

    /// Makes it, somewhere: its address is what the call fills in.
    #[must_use]
    pub fn make(&self) -> Script {
        // The kernel doubles what it is asked for and adds two, and fills pages.
        let pages = self.area.len() / PAGE;
        let least = if pages > 1 { 64 * (pages - 1) - 1 } else { 1 };
        let mut script = Script::new();
        script.call(Nr::IO_SETUP, args![least, out(8)]);
        script
    }

    /// Moves it to its address. `made`: where it is.
    ///
    /// # Errors
    /// A ring that is not as large as the one before is refused.
    pub fn place(&self, tid: i32, made: u64) -> Result<Script> {
        let (start, len) = (self.area.start.0, self.area.len());
        let mut slots = [0; 4];
        vm::read_exact(tid, made + 4, &mut slots)?;
        if u64::from(u32::from_ne_bytes(slots)) != self.slots() {
            let what = "asynchronous I/O (io_setup) with a ring of another size than this machine makes";
            return Err(Cause::of_machine(what, "a machine with no more processors"));
        }
        let mut script = Script::new();
        let want = Want::Exactly(start);
        script.call_wanting(Nr::MREMAP, args![made, len, len, MREMAP_MAYMOVE_FIXED, start], want);
        Ok(script)
    }

    /// Brings it to its position by requests of the task's own, piece by piece.
    pub fn advance(&self, file: i32) -> impl Iterator<Item = Script> {
        let at = self.area.start.0;
        let read = chunks(self.head, CHUNK).map(|n| (n, true));
        let unread = chunks(u32::try_from(self.unread.len()).unwrap_or(0), CHUNK).map(|n| (n, false));
        read.chain(unread).map(move |(n, read)| {
            let mut script = Script::new();
            script.call_wanting(Nr::IO_SUBMIT, args![at, n, requests(n, file)], Want::Exactly(n.into()));
            if read {
                let room = bytes(vec![0; usize::try_from(n).unwrap_or(0) * 32]);
                script.call_wanting(Nr::IO_GETEVENTS, args![at, n, n, room, 0], Want::Exactly(n.into()));
            }
            script
        })
    }

    /// Writes down what nobody has read.
    ///
    /// # Errors
    /// The kernel's.
    pub fn fill(&self, tid: i32) -> Result<()> {
        let ring = Ring::read(tid, self.area.start.0, self.area.len())?;
        ring.write(tid, &self.unread)
    }

    /// Everything that comes last.
    pub fn protect(&self, script: &mut Script) {
        self.area.protect(true, script);
    }
}

#[cfg(test)]
mod tests {
    use super::{Cpus, Event, MARK, Mended, Ring, chunks, waiters};

    const RING: Ring = Ring { at: 0x1000, slots: 127, head: 120, tail: 3 };

    #[test]
    fn a_ring_has_an_end() {
        assert_eq!(RING.unread(), 10);
        let pieces: Vec<_> = RING.pieces(120, 10).collect();
        assert_eq!(pieces, [(0x1000 + 32 + 120 * 32, 7 * 32), (0x1000 + 32, 3 * 32)]);
        assert_eq!(RING.pieces(5, 0).count(), 0);
        let event = Event { data: 1, object: 2, result: -3, second: 4 };
        let (data, pieces) = RING.put_back(&[event; 10]);
        assert_eq!(data.len(), 10 * 32 + 4);
        assert_eq!(pieces.len(), 3);
        assert_eq!(data[320..], 120_u32.to_ne_bytes());
        assert_eq!(Event::read(&data[..32]), event);
    }

    #[test]
    fn room_is_counted_in_whole_portions() {
        // Seen on a machine with two processors: 120 of 126.
        assert_eq!(Ring { head: 3, ..RING }.room(2), 120);
        assert_eq!(RING.room(2), 110);
        assert_eq!(Ring { head: 3, ..RING }.room(1000), 126);
        assert_eq!(Ring { head: 4, ..RING }.room(2), 0, "a full ring");
    }

    #[test]
    fn what_ends_while_it_is_counted_is_kept() {
        let event = |data| Event { data, object: 1, result: 0, second: 0 };
        let before = [event(5), event(6)];
        let ring = Ring { head: 1, ..RING };
        let cpus = Cpus::parse("0-1").expect("processors");
        let ours = |count: usize| vec![event(MARK); count];
        // Room for 118: three were in flight, and end before, among and after ours.
        let all = [&before[..], &[event(7)], &ours(60), &[event(8)], &ours(55), &[event(9)]].concat();
        let mended = Mended::new(&all);
        assert_eq!(mended.unread.iter().map(|event| event.data).collect::<Vec<_>>(), [5, 6, 7, 8, 9]);
        assert_eq!(mended.in_flight(&ring, &cpus), 0);
        let some = Mended::new(&[&before[..], &ours(60), &[event(8)], &ours(55)].concat());
        assert_eq!(some.in_flight(&ring, &cpus), 2);
        // One that carries the same, and has read something, is not ours.
        assert_eq!(Mended::new(&[Event { result: 1, ..event(MARK) }]).unread.len(), 1);
    }

    #[test]
    fn every_slot_of_ours_is_looked_at() {
        let parts: Vec<_> = RING.ours(126).collect();
        assert_eq!(parts.iter().map(Vec::len).collect::<Vec<_>>(), [64, 62]);
        let all = parts.concat();
        assert_eq!((all[0], all[123], all[124]), (0x1000 + 32 * 4, 0x1000 + 32 * 127, 0x1000 + 32));
        assert_eq!(RING.ours(0).count(), 0);
        let waiters = waiters(&[0x1020]);
        let words: Vec<_> =
            waiters.chunks_exact(8).map(|word| u64::from_ne_bytes(word.try_into().expect("a word"))).collect();
        assert_eq!(words, [MARK & 0xffff_ffff, 0x1020, 130, MARK >> 32, 0x1024, 130]);
    }

    #[test]
    fn processors_and_parts() {
        assert_eq!(Cpus::parse("0-1\n"), Some(Cpus { possible: 2, end: 2 }));
        assert_eq!(Cpus::parse("0,2-3,9"), Some(Cpus { possible: 4, end: 10 }));
        for wrong in ["", "x", "3-1", "0-4294967295", "1,,2"] {
            assert_eq!(Cpus::parse(wrong), None, "{wrong}");
        }
        assert_eq!(chunks(70, 32).collect::<Vec<_>>(), [32, 32, 6]);
        assert_eq!(chunks(0, 32).count(), 0);
    }
}
