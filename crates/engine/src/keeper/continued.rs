//! What goes on in a restored container from where the image has it: that it is that image, its names, its clocks, what its root has mounted.

use std::os::fd::AsFd;

use yendor_image::{Digest, Reader};
use yendor_kinds::file::timerfd::Clocks;
use yendor_kinds::namespace::clock;
use yendor_kinds::namespace::mount::own;
use yendor_kinds::snapshot::Snapshot;
use yendor_kinds::{Cause, Named};

use crate::collect::namespace;
use crate::contain::Contained;
use crate::error::{At, Result, Step, With};
use crate::request::{Enforce, Request};
use crate::state;
use crate::wire::Startup;

/// The caller chose the container's surroundings for an image that it looked at: it must be that one still.
pub(super) fn check_seal(reader: &Reader, wanted: Option<Digest>) -> std::result::Result<(), Cause> {
    let Some(wanted) = wanted else { return Ok(()) };
    if reader.seal()? == wanted { Ok(()) } else { Err(Cause::corrupt("it was changed while it was being restored")) }
}

/// The names that the image's tasks knew, unless the caller wants another.
pub(super) fn set_names(startup: &Startup, snapshot: &Snapshot) -> std::result::Result<(), Cause> {
    let container = &snapshot.container;
    if startup.request.hostname.is_none() {
        let name = &container.hostname;
        rustix::system::sethostname(&name.0).named("sethostname", || name.to_string())?;
    }
    let name = &container.domainname;
    rustix::system::setdomainname(&name.0).named("setdomainname", || name.to_string())?;
    Ok(())
}

/// Mounts what the image's root had mounted in its container, as the root of this one, on what is mounted here: the volumes and file systems of
/// the request.
pub(super) fn mount_own(
    contained: &mut Contained,
    snapshot: &Snapshot,
    request: &Request,
    reader: &Reader,
) -> Result<()> {
    let record = &snapshot.container.mounts;
    if record.is_empty() {
        return Ok(());
    }
    if request.policy.enforce == Enforce::Early {
        let what = "--enforce early for an image whose root has mounted something in its container";
        return Err(Cause::unsupported(what)).at(Step::Confine);
    }
    request.may_mount().at(Step::Confine).kind("namespace", "mnt")?;
    let me = rustix::process::getpid().as_raw_nonzero().get();
    (contained.again.before, _) = namespace::mounts(contained.host_proc.as_fd(), me).at(Step::Rebuild)?;
    let begun = own::begin(record, contained.host_proc.as_fd(), reader);
    contained.begun = Some(begun.at(Step::Rebuild).kind("namespace", "mnt")?);
    Ok(())
}

/// The container's clocks go on from where they stood. How far they are ahead of ours, and of the machine's.
pub(super) fn continue_clocks(
    contained: &mut Contained,
    (monotonic, boottime): (u64, u64),
) -> std::result::Result<(Clocks, Clocks), Cause> {
    use rustix::time::{ClockId, Timespec, clock_gettime};
    let own = clock::own(contained.host_proc.as_fd())?;
    let distance = |saved: u64, clock| -> i128 {
        let now = clock_gettime(clock);
        i128::from(saved) - (i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec))
    };
    let time = |ns: i128| Timespec {
        tv_sec: i64::try_from(ns.div_euclid(1_000_000_000)).unwrap_or(0),
        tv_nsec: i64::try_from(ns.rem_euclid(1_000_000_000)).unwrap_or(0),
    };
    let (monotonic, boottime) = (distance(monotonic, ClockId::Monotonic), distance(boottime, ClockId::Boottime));
    let absolute = (monotonic + i128::from(own.monotonic), boottime + i128::from(own.boottime));
    contained.set_time_offsets(time(absolute.0), time(absolute.1));
    let ahead = |(monotonic, boottime): (i128, i128)| {
        let one = |ns: i128| i64::try_from(ns).unwrap_or(0);
        Clocks { monotonic: one(monotonic), boottime: one(boottime) }
    };
    Ok((ahead((monotonic, boottime)), ahead(absolute)))
}

/// Start time of this process, before its children live in another time namespace.
pub(super) fn own_start(contained: &Contained) -> std::result::Result<(u64, i64), Cause> {
    let proc = contained.host_proc.as_fd();
    let text = yendor_task::tree::read_proc(proc, "self/stat")?;
    Ok((state::on_machine(yendor_proc::stat::parse(&text)?.starttime, proc), state::ahead(proc)))
}
