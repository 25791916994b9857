//! Contexts of asynchronous I/O: nothing may be in flight when they are recorded.

use std::time::{Duration, Instant};

use yendor_kinds::memory::aio::{self, Asked, Cpus, Record, Ring};
use yendor_kinds::process::Restricted;
use yendor_kinds::{Cause, Result};
use yendor_proc::smaps::Smap;
use yendor_sys::SysError;
use yendor_task::live::Borrowed;
use yendor_task::{RunError, Script};

use super::watch::Watch;

/// How long requests may take to end while their task is stopped.
const PATIENCE: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(10);

/// Whether the leader of a process may be asked, if it has contexts.
///
/// # Errors
/// Its filter may forbid what it must call.
pub fn permitted(watch: &Watch, restricted: &[Restricted], smaps: &[Smap]) -> Result<()> {
    let has = smaps.iter().any(aio::is_ring);
    if has && !restricted.first().is_some_and(|restricted| watch.may(restricted, &aio::CALLS)) {
        let what = "asynchronous I/O (io_setup), of which its seccomp filter may not let it tell whether it has ended";
        return Err(Cause::unsupported(what));
    }
    Ok(())
}

/// The contexts of a borrowed process. `tid`: its leader, as the tracer sees it; `own`: its id as it knows it.
///
/// # Errors
/// Requests that do not end are refused.
pub fn look(borrowed: &mut Borrowed<'_>, smaps: &[Smap], (tid, own): (i32, i32)) -> Result<Vec<Record>> {
    let rings: Vec<&Smap> = smaps.iter().filter(|smap| aio::is_ring(smap)).collect();
    if rings.is_empty() {
        return Ok(Vec::new());
    }
    let starts: Vec<u64> = rings.iter().map(|smap| smap.map.start).collect();
    let told = borrowed.run(0, &aio::ask(&starts))?;
    let alive: Vec<&Smap> =
        rings.into_iter().zip(&told).filter(|(_, done)| aio::is_alive(done)).map(|(s, _)| s).collect();
    if alive.is_empty() {
        return Ok(Vec::new());
    }
    let cpus = cpus()?;
    let answers = borrowed.run(0, &aio::prepare())?;
    let asked = Asked::new(&answers).ok_or_else(|| Cause::unsupported("a kernel that tells no CPU affinity"))?;
    let until = Instant::now() + PATIENCE;
    let all =
        alive.iter().map(|smap| one(borrowed, smap, (&asked, &cpus), (tid, own), until)).collect::<Result<Vec<_>>>();
    let mut end = Script::new();
    asked.end(&mut end);
    borrowed.run(0, &end)?;
    Ok(all?.into_iter().flatten().collect())
}

fn one(
    borrowed: &mut Borrowed<'_>,
    smap: &Smap,
    (asked, cpus): (&Asked, &Cpus),
    (tid, own): (i32, i32),
    until: Instant,
) -> Result<Option<Record>> {
    let (at, len) = (smap.map.start, smap.map.len());
    loop {
        // What another Yendor may have left when it was killed would be taken for requests of this attempt.
        aio::mend(tid, at, len)?;
        let ring = Ring::read(tid, at, len)?;
        let unread = ring.events(tid)?;
        let counted = borrowed.run(0, &ring.count(&unread, asked, cpus, own));
        let mended = aio::mend(tid, at, len)?;
        match counted {
            Ok(_) => return Record::collect(smap, &ring, mended.unread),
            // What was in flight has ended since.
            Err(RunError::Call { .. }) if mended.in_flight(&ring, cpus) == 0 => {
                return Record::collect(smap, &ring, mended.unread);
            }
            Err(RunError::Call { .. }) if Instant::now() < until => std::thread::sleep(PAUSE),
            Err(RunError::Call { .. }) => {
                let count = mended.in_flight(&ring, cpus);
                let what = format!("asynchronous I/O (io_setup) with {count} requests that do not end");
                return Err(Cause::unsupported(format!("mapping {at:x}-{:x}: {what}", smap.map.end)));
            }
            Err(e) => return Err(e.into()),
        }
    }
}

fn cpus() -> Result<Cpus> {
    const PATH: &str = "/sys/devices/system/cpu/possible";
    let text = std::fs::read_to_string(PATH).map_err(|e| SysError::io("open", PATH, &e))?;
    Cpus::parse(&text).ok_or_else(|| Cause::corrupt(format!("{PATH}: {text:?}")))
}
