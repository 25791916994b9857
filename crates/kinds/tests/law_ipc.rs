//! System V IPC: every test in an ipc namespace of its own thread, so as root; without, in a user namespace (see the last).

mod law;

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

use law::{Place, directory};
use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_res_gid, set_thread_res_uid};
use yendor_image::{Addr, Reader, Writer};
use yendor_kinds::memory::vma::{self, Backing};
use yendor_kinds::namespace::ipc::{self, Mapped, Record, Scope, msg, sem};
use yendor_sys::ipc as sys;
use yendor_sys::namespace::{Namespaces, unshare};
use yendor_sys::spawn::{Spawn, spawn};

/// A namespace that dies with its last thread.
fn fresh() {
    unshare(Namespaces::NEWIPC).unwrap();
}

fn inside<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    let thread = std::thread::scope(|s| {
        s.spawn(|| {
            fresh();
            f()
        })
        .join()
    });
    thread.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn proc() -> OwnedFd {
    directory("/proc")
}

fn set(name: &str, value: &str) {
    std::fs::write(format!("/proc/sys/kernel/{name}"), value).unwrap();
}

fn collect_with(place: &Place, name: &str, mapped: &Mapped, scope: Scope) -> Result<(Record, Reader), String> {
    let at = place.0.join(name);
    let writer = Writer::create(&at).unwrap();
    let record = ipc::collect(proc().as_fd(), &writer, scope, mapped).map_err(|e| e.to_string())?;
    writer.records(&record).unwrap();
    writer.commit(std::time::SystemTime::now()).unwrap();
    let reader = Reader::open(&*at).unwrap();
    assert_eq!(reader.records::<Record>().unwrap(), record, "the image gives back what was stored");
    Ok((record, reader))
}

fn collect(place: &Place, name: &str) -> (Record, Reader) {
    collect_with(place, name, &Mapped::default(), Scope::Whole).unwrap()
}

/// Collects, rebuilds in another namespace, collects there; the rest is `look`'s.
fn law<T: Send>(look: impl FnOnce(&Record) -> T + Send) -> T {
    let place = Place::new();
    let (first, reader) = collect(&place, "first");
    inside(|| {
        ipc::rebuild(&first, proc().as_fd(), &reader).unwrap_or_else(|e| panic!("rebuild: {e}"));
        ipc::finish(&first, proc().as_fd()).unwrap();
        let (second, _) = collect(&place, "second");
        assert_eq!(second, first);
        look(&first)
    })
}

fn rights(uid: u32, mode: u16) -> sys::Rights {
    sys::Rights { uid, gid: uid, mode }
}

fn bytes_of(id: i32, size: u64) -> Vec<u8> {
    let attached = sys::Attached::new(id, size.next_multiple_of(4096), false).unwrap();
    let mut out = vec![0; usize::try_from(size.next_multiple_of(4096)).unwrap()];
    attached.read(0, &mut out);
    out
}

fn shared_memory() {
    let plain = sys::shm_create(0x1234_5678, 3 * 4096 + 1, 0o640).unwrap();
    let mut w = sys::Writable::new(plain, 4 * 4096).unwrap();
    w.write(4096, b"second page");
    // Behind the size that was asked for, but in its last page.
    w.write(4 * 4096 - 3, b"end");
    drop(w);
    let private = sys::shm_create(0, 1, 0).unwrap();
    let negative = sys::shm_create(-2, 1 << 30, 0o777).unwrap();
    let mut w = sys::Writable::new(negative, 1 << 30).unwrap();
    w.write((1 << 30) - 4096, &[7]);
    drop(w);
    sys::shm_lock(private).unwrap();
    let removed = sys::shm_create(0, 1, 0).unwrap();
    sys::shm_remove(removed).unwrap();
    // The kernel goes round its first 64 places: then ids get a sequence number.
    for _ in 0..70 {
        sys::shm_remove(sys::shm_create(0, 1, 0).unwrap()).unwrap();
    }
    let again = sys::shm_create(0, 8192, 0o4).unwrap();
    assert!(again >= 1 << 15, "{again}");
    law(|record| {
        assert_eq!(record.shm.len(), 4);
        let by = |id| record.shm.iter().find(|s| s.perm.id == id).unwrap();
        assert_eq!(by(plain).extents, [(4096, 4096), (3 * 4096, 4096)]);
        assert_eq!(by(negative).extents, [((1 << 30) - 4096, 4096)]);
        assert!(by(private).locked && by(private).perm.mode == 0 && by(private).extents.is_empty());
        let bytes = bytes_of(plain, 3 * 4096 + 1);
        assert_eq!(&bytes[4096..4107], b"second page");
        assert_eq!(&bytes[4 * 4096 - 3..], b"end");
        assert!(bytes[..4096].iter().all(|b| *b == 0));
    });
    // Holes stayed holes on both sides.
    let table = yendor_proc::sysvipc::parse_shm(&std::fs::read("/proc/sysvipc/shm").unwrap()).unwrap();
    let large = table.iter().find(|s| s.perm.id == negative).unwrap();
    assert!(large.rss + large.swap <= 2 << 20, "{large:?}");
    assert_eq!(large.attached, 0);
}

fn semaphores() {
    let set = sys::sem_create(0, 5, 0).unwrap();
    sys::sem_set_values(set, &[32767, 0, 1, 0, 42]).unwrap();
    let unused = sys::sem_create(7, 1, 0o666).unwrap();
    let operated = sys::sem_create(i32::MIN, 3, 0o600).unwrap();
    sys::sem_op(operated, &[(2, 5)]).unwrap();
    let full = sys::sem_create(8, 1, 0o600).unwrap();
    sys::sem_set_values(full, &[32766]).unwrap();
    sys::sem_op(full, &[(0, 1)]).unwrap();
    law(|record| {
        let by = |id| record.sem.iter().find(|s: &&sem::Record| s.perm.id == id).unwrap();
        assert_eq!(by(set).values, [32767, 0, 1, 0, 42]);
        assert!(!by(set).operated && !by(unused).operated && by(operated).operated && by(full).operated);
        assert_eq!(by(operated).values, [0, 0, 5]);
        assert_eq!(by(full).values, [32767]);
    });
}

fn queues() {
    sys::msg_create(0, 0).unwrap();
    let full = sys::msg_create(-1, 0o620).unwrap();
    let sent: [(i64, &[u8]); 4] =
        [(i64::MAX, b"last type"), (1, b""), ((1 << 31) + 5, &[0xff; 8192]), (1, b"\0second")];
    for (kind, body) in sent {
        sys::msg_send(full, kind, body).unwrap();
    }
    // Less than what is in it.
    sys::msg_set(full, rights(0, 0o620), 100).unwrap();
    let made = law(|record| {
        let queue = record.msg.iter().find(|q: &&msg::Record| q.perm.id == full).unwrap();
        assert_eq!(queue.limit, 100);
        let messages: Vec<_> = queue.messages.iter().map(|m| (m.kind, m.body.0.clone())).collect();
        assert_eq!(messages, sent.map(|(kind, body)| (kind, body.to_vec())));
        assert!(sys::msg_send(full, 1, b"full").is_err());
        record.msg.len()
    });
    assert_eq!(made, 2);
    // Peeking took nothing.
    assert_eq!(sys::msg_peek(full, 3, 100).unwrap().unwrap().1, b"\0second");
    assert_eq!(sys::msg_peek(full, 4, 100).unwrap(), None);
}

fn limits() {
    set("msgmnb", "100000");
    set("msgmax", "50000");
    set("sem", "33 44 55 66");
    set("shmmax", "18446744073692774399");
    let queue = sys::msg_create(5, 0o600).unwrap();
    sys::msg_send(queue, 1, &[1; 50000]).unwrap();
    sys::msg_send(queue, 1, &[2; 50000]).unwrap();
    let segment = sys::shm_create(0, 1 << 16, 0o600).unwrap();
    // Narrower than what is there.
    set("msgmnb", "10");
    set("shmmax", "4096");
    law(|record| {
        let limits = record.limits.as_ref().unwrap();
        assert_eq!((limits.msgmnb, limits.msgmax, limits.sem, limits.shmmax), (10, 50000, [33, 44, 55, 66], 4096));
        assert_eq!(record.msg[0].limit, 100_000);
        assert_eq!((record.shm[0].perm.id, record.shm[0].size), (segment, 1 << 16));
    });
}

fn creators() {
    let as_user = |uid: u32, gid: u32| {
        set_thread_res_gid(None, Gid::from_raw(gid), None).unwrap();
        set_thread_res_uid(None, Uid::from_raw(uid), None).unwrap();
    };
    as_user(1234, 4321);
    let segment = sys::shm_create(1, 5, 0o600).unwrap();
    let set = sys::sem_create(2, 1, 0o200).unwrap();
    let queue = sys::msg_create(3, 0o444).unwrap();
    set_thread_res_uid(None, Uid::ROOT, None).unwrap();
    set_thread_res_gid(None, Gid::ROOT, None).unwrap();
    sys::shm_set(segment, rights(99, 0o4)).unwrap();
    sys::sem_set(set, rights(98, 0)).unwrap();
    sys::msg_set(queue, rights(97, 0o777), 16384).unwrap();
    law(|record| {
        let perms = [&record.shm[0].perm, &record.sem[0].perm, &record.msg[0].perm];
        assert!(perms.iter().all(|p| p.creator == (1234, 4321)));
        assert_eq!(perms.map(|p| p.owner), [(99, 99), (98, 98), (97, 97)]);
        assert_eq!(perms.map(|p| p.mode), [0o4, 0, 0o777]);
        assert!(rustix::process::geteuid().is_root() && rustix::process::getegid().is_root());
    });
}

fn refusals() {
    let place = Place::new();
    let refusal = |name: &str, mapped: &Mapped| collect_with(&place, name, mapped, Scope::Whole).unwrap_err();
    let id = sys::shm_create(0, 3 * 4096, 0o600).unwrap();
    let attached = sys::Attached::new(id, 3 * 4096, true).unwrap();
    assert!(refusal("outside", &Mapped::default()).contains("attached 1 times outside of the tree"));
    let area = own_area(attached.address());
    let mut mapped = Mapped::default();
    mapped.add(std::slice::from_ref(&area)).unwrap();
    let (record, _) = collect_with(&place, "mapped", &mapped, Scope::Used(&[], &[])).unwrap();
    assert_eq!((record.shm.len(), record.limits), (1, None));
    let mut twice = mapped.clone();
    twice.add(std::slice::from_ref(&area)).unwrap();
    assert!(refusal("twice", &twice).contains("of another ipc namespace"));
    let mut tail = Mapped::default();
    let cut = vma::Record { end: Addr(area.end.0 - 4096), ..area.clone() };
    tail.add(&[cut]).unwrap();
    assert!(refusal("tail", &tail).contains("a part of an attachment was unmapped"));
    let second = vma::Record { backing: Backing::Sysv { id, offset: 4096, read_only: false }, ..area };
    let error = Mapped::default().add(&[second]).unwrap_err().to_string();
    assert!(error.contains("the part before it was unmapped"), "{error}");
    drop(attached);
    assert!(refusal("gone", &mapped).contains("of another ipc namespace"));
    set("shm_rmid_forced", "1");
    assert!(refusal("forced", &Mapped::default()).contains("shm_rmid_forced"));
    // It is still there: a checkpoint destroys nothing.
    set("shm_rmid_forced", "0");
    sys::shm_remove(id).unwrap();
    assert!(refusal("unknown", &mapped).contains("of another ipc namespace"));
}

fn host() {
    let place = Place::new();
    let me = rustix::process::getpid().as_raw_nonzero().get();
    let used =
        |name: &str, pids: &[i32]| collect_with(&place, name, &Mapped::default(), Scope::Used(pids, &[])).unwrap().0;
    sys::shm_create(0, 1, 0).unwrap();
    let set = sys::sem_create(0, 2, 0o600).unwrap();
    sys::sem_create(0, 2, 0o600).unwrap();
    sys::sem_op(set, &[(1, 1)]).unwrap();
    let queue = sys::msg_create(0, 0o600).unwrap();
    sys::msg_create(0, 0o600).unwrap();
    sys::msg_send(queue, 1, b"").unwrap();
    let record = used("own", &[me]);
    assert_eq!((record.shm.len(), record.sem.len(), record.msg.len(), record.limits), (1, 1, 1, None));
    assert_eq!((record.sem[0].perm.id, record.msg[0].perm.id), (set, queue));
    assert!(used("other", &[1]).is_empty());
}

/// The area at an address of this process, as a checkpoint sees it.
fn own_area(at: u64) -> vma::Record {
    let smaps = yendor_proc::smaps::parse(&std::fs::read("/proc/self/smaps").unwrap()).unwrap();
    let smap = smaps.iter().find(|s| s.map.start == at).unwrap();
    vma::collect(smap, &mut |s| panic!("taken for a file: {s:?}")).unwrap().unwrap()
}

fn attachments() {
    let id = sys::shm_create(0x77, 5000, 0o600).unwrap();
    let attached = sys::Attached::new(id, 8192, false).unwrap();
    let area = own_area(attached.address());
    assert_eq!(id, 0, "the first segment has an inode that looks like none");
    assert_eq!(area.backing, Backing::Sysv { id, offset: 0, read_only: true });
    assert_eq!((area.len(), area.protection, area.shared), (8192, 1, true));
    let area = vma::Record { start: Addr(0x1000_0000), end: Addr(0x1000_2000), ..area };
    let second = vma::Record {
        start: area.end,
        end: Addr(0x1000_3000),
        protection: 0,
        backing: Backing::Sysv { id, offset: 0x2000, read_only: true },
        ..area.clone()
    };
    let mut script = yendor_task::Script::new();
    for area in [&area, &second] {
        area.map(None, false, &mut script);
    }
    for area in [&area, &second] {
        area.protect(false, &mut script);
    }
    let wanted = "shmat(0, 0x10000000, 4096) = 0x10000000\n\
        mprotect(0x10002000, 4096, 0)\n\
        mprotect(0x10000000, 8192, 1)\n\
        mprotect(0x10002000, 4096, 0)\n";
    assert_eq!(script.to_string(), wanted);
}

/// One that was removed while attached goes when the tasks are done with it.
fn removed_segments() {
    let place = Place::new();
    let id = sys::shm_create(9, 4096, 0o600).unwrap();
    let attached = sys::Attached::new(id, 4096, true).unwrap();
    sys::shm_remove(id).unwrap();
    set("shm_rmid_forced", "1");
    let mut mapped = Mapped::default();
    mapped.add(&[own_area(attached.address())]).unwrap();
    let (first, reader) = collect_with(&place, "first", &mapped, Scope::Whole).unwrap();
    assert!(first.shm[0].removed && first.limits.as_ref().unwrap().shm_rmid_forced);
    inside(|| {
        ipc::rebuild(&first, proc().as_fd(), &reader).unwrap();
        let attached = sys::Attached::new(id, 4096, true).unwrap();
        ipc::finish(&first, proc().as_fd()).unwrap();
        let mut mapped = Mapped::default();
        mapped.add(&[own_area(attached.address())]).unwrap();
        let (second, _) = collect_with(&place, "second", &mapped, Scope::Whole).unwrap();
        assert_eq!(second, first);
        drop(attached);
        assert_eq!(collect(&place, "third").0.shm, []);
    });
}

fn damaged() {
    let place = Place::new();
    let id = sys::shm_create(9, 4096, 0o600).unwrap();
    sys::Writable::new(id, 4096).unwrap().write(0, b"x");
    let (good, reader) = collect(&place, "good");
    let refused = |change: &dyn Fn(&mut Record)| {
        let mut bad = good.clone();
        change(&mut bad);
        let rebuilt = || ipc::rebuild(&bad, proc().as_fd(), &reader).unwrap_err().to_string();
        let text = std::thread::scope(|s| {
            s.spawn(|| {
                fresh();
                rebuilt()
            })
            .join()
        })
        .unwrap();
        assert!(!text.is_empty());
        text
    };
    assert!(refused(&|r| r.shm[0].extents = vec![(4096, 4096)]).contains("outside of its blob or itself"));
    assert!(refused(&|r| r.shm[0].extents = vec![(0, u64::MAX)]).contains("outside of its blob or itself"));
    assert!(refused(&|r| r.shm[0].extents = vec![(0, 1)]).contains("outside of its blob or itself"));
    assert!(refused(&|r| r.shm[0].extents = vec![(0, 4096), (0, 4096)]).contains("outside of its blob or itself"));
    assert!(refused(&|r| r.shm[0].perm.id = -1).contains("with the mode"));
    assert!(refused(&|r| r.shm[0].perm.mode = 0o1777).contains("with the mode"));
    assert!(refused(&|r| r.shm[0].perm.id = 1).contains("shm-1"));
    assert!(refused(&|r| r.shm[0].perm.creator.0 = u32::MAX).contains("nobody made"));
    assert!(refused(&|r| r.shm[0].size = u64::MAX).contains("shm"));
    let twin = |r: &mut Record| {
        let mut twin = r.shm[0].clone();
        twin.perm.key = 0;
        r.shm.push(twin);
    };
    assert!(refused(&twin).contains("two System V objects in the place of shm"));
}

/// In this thread's own namespace, where that is possible; else the test is [`in_user_namespaces`]'s.
fn run(test: fn()) {
    if rustix::process::geteuid().is_root() {
        inside(test);
    }
}

const INSIDE: &str = "YENDOR_LAW_IPC_IDS";

#[test]
fn shared_memory_comes_back() {
    run(shared_memory);
}

#[test]
fn semaphores_come_back() {
    run(semaphores);
}

#[test]
fn queues_come_back() {
    run(queues);
}

#[test]
fn limits_come_back() {
    run(limits);
}

#[test]
fn creators_come_back() {
    // A user namespace with one id knows no other creators.
    if std::env::var(INSIDE).as_deref() != Ok("1") {
        run(creators);
    }
}

#[test]
fn what_cannot_be_had_is_refused() {
    run(refusals);
}

#[test]
fn of_the_host_only_what_is_used_is_taken() {
    run(host);
}

#[test]
fn attachments_become_scripts() {
    run(attachments);
}

#[test]
fn removed_segments_come_back_until_they_are_detached() {
    run(removed_segments);
}

#[test]
fn damaged_records_are_refused() {
    run(damaged);
}

/// All of the above by the root of a user namespace only: of one id, as every user may have it; as root of many, too.
#[test]
fn in_user_namespaces() {
    if std::env::var_os(INSIDE).is_some() {
        return;
    }
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    run_inside("1", &format!("0 {} 1", uid.as_raw()), &format!("0 {} 1", gid.as_raw()));
    if uid.is_root() {
        run_inside("65536", "0 0 65536", "0 0 65536");
    }
}

fn run_inside(ids: &str, uids: &str, gids: &str) {
    let text = |s: &str| CString::new(s).unwrap();
    let program = text(std::env::current_exe().unwrap().to_str().unwrap());
    let place = Place::new();
    let mut environment = vec![text(&format!("{INSIDE}={ids}")), text(&format!("TMPDIR={}", place.0.display()))];
    environment.push(text("RUST_BACKTRACE=0"));
    let child = spawn(&Spawn {
        program: &program,
        arguments: &[program.clone(), text("-q")],
        environment: &environment,
        user_namespace: true,
        ids: Some((0, 0)),
        descriptors: &[],
    })
    .unwrap();
    let write = |name: &str, value: &str| std::fs::write(format!("/proc/{}/{name}", child.pid()), value).unwrap();
    write("setgroups", "deny");
    write("uid_map", uids);
    write("gid_map", gids);
    let (pid, _pidfd) = child.release().unwrap();
    let (_, end) = yendor_sys::wait::wait(Some(pid), true).unwrap().unwrap();
    assert!(matches!(end, yendor_sys::wait::Event::Exited(0)), "with {ids} ids: {end:?}");
}
