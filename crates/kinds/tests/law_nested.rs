//! Namespaces inside a container: each test in a thread of its own, as root.

mod law;

use std::os::fd::{AsFd, OwnedFd};

use law::{Place, directory};
use yendor_image::{Bytes, NsId, Reader, Writer};
use yendor_kinds::namespace::ipc::Mapped;
use yendor_kinds::namespace::nested::{Kind, Record, own};
use yendor_kinds::namespace::network::loopback_up;
use yendor_sys::ipc as sys;
use yendor_sys::namespace::{Namespaces, unshare};

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn proc() -> OwnedFd {
    directory("/proc")
}

/// A namespace that a thread has made and filled, and left behind.
fn made(kind: Kind, flag: Namespaces, fill: impl FnOnce() + Send) -> OwnedFd {
    let inside = || {
        unshare(flag).unwrap();
        fill();
        own(proc().as_fd(), kind).unwrap()
    };
    std::thread::scope(|s| s.spawn(inside).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn collect(place: &Place, name: &str, kind: Kind, namespace: &OwnedFd) -> Result<(Record, Reader), String> {
    let at = place.0.join(name);
    let writer = Writer::create(&at).unwrap();
    let record = Record::collect((kind, namespace), proc().as_fd(), (&writer, NsId(3)), &Mapped::default());
    let record = record.map_err(|e| e.to_string())?;
    writer.records(&record).unwrap();
    writer.commit(std::time::SystemTime::now()).unwrap();
    let reader = Reader::open(&*at).unwrap();
    assert_eq!(reader.records::<Record>().unwrap(), record, "the image gives back what was stored");
    Ok((record, reader))
}

/// collect(rebuild(collect(x))) == collect(x).
fn law(kind: Kind, namespace: &OwnedFd) -> Record {
    let place = Place::new();
    let (first, reader) = collect(&place, "first", kind, namespace).unwrap();
    assert_eq!(first.kind(), kind);
    let again = first.rebuild(NsId(3), proc().as_fd(), &reader).unwrap_or_else(|e| panic!("rebuild: {e}"));
    let inode = |fd: &OwnedFd| rustix::fs::fstat(fd).unwrap().st_ino;
    assert_ne!(inode(&again), inode(namespace));
    first.finish(&again, proc().as_fd()).unwrap();
    let (second, _) = collect(&place, "second", kind, &again).unwrap();
    assert_eq!(second, first);
    first
}

#[test]
fn names_come_back() {
    if !is_root() {
        return;
    }
    let longest = [0xfe_u8; 64];
    for (host, domain) in [(&b""[..], &longest[..]), (&longest[..], b""), (b"no\xff de", b"\n")] {
        let namespace = made(Kind::Uts, Namespaces::NEWUTS, || {
            rustix::system::sethostname(host).unwrap();
            rustix::system::setdomainname(domain).unwrap();
        });
        let [hostname, domainname] = [host, domain].map(|name| Bytes(name.to_vec()));
        assert_eq!(law(Kind::Uts, &namespace), Record::Uts { hostname, domainname });
    }
}

#[test]
fn system_v_objects_come_back() {
    if !is_root() {
        return;
    }
    let namespace = made(Kind::Ipc, Namespaces::NEWIPC, || {
        let id = sys::shm_create(7, 8192 + 1, 0o640).unwrap();
        sys::Writable::new(id, 3 * 4096).unwrap().write(4096, b"inside");
        std::fs::write("/proc/sys/kernel/shmmni", "17").unwrap();
        std::fs::write("/proc/sys/fs/mqueue/queues_max", "3").unwrap();
    });
    let Record::Ipc { objects, settings } = law(Kind::Ipc, &namespace) else { panic!("another kind") };
    assert_eq!((objects.shm.len(), objects.shm[0].extents.as_slice()), (1, &[(4096, 4096)][..]));
    assert_eq!(objects.limits.map(|limits| limits.shmmni), Some(17));
    assert_eq!(settings.len(), 1, "{settings:?}");
}

#[test]
fn networks_come_back() {
    if !is_root() {
        return;
    }
    let set = |name: &str, value: &str| std::fs::write(format!("/proc/sys/net/{name}"), value).unwrap();
    let namespace = made(Kind::Net, Namespaces::NEWNET, || {
        loopback_up().unwrap();
        set("ipv4/ip_default_ttl", "255");
        set("ipv4/conf/lo/rp_filter", "2");
    });
    let Record::Net { loopback, settings } = law(Kind::Net, &namespace) else { panic!("another kind") };
    assert!(loopback && settings.iter().any(|one| one.name.0 == b"net/ipv4/ip_default_ttl"), "{settings:?}");
    let namespace = made(Kind::Net, Namespaces::NEWNET, || {});
    assert_eq!(law(Kind::Net, &namespace), Record::Net { loopback: false, settings: Vec::new() });
}

#[test]
fn a_setting_of_another_kind_is_refused() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let namespace = made(Kind::Uts, Namespaces::NEWUTS, || {});
    let (_, reader) = collect(&place, "any", Kind::Uts, &namespace).unwrap();
    for name in ["user/max_user_namespaces", "fs/mqueue/msg_max", "kernel/core_pattern"] {
        let setting = yendor_kinds::namespace::sysctl::Record {
            name: Bytes(name.as_bytes().to_vec()),
            value: Bytes(b"1".to_vec()),
        };
        let record = Record::Net { loopback: false, settings: vec![setting] };
        let said = record.rebuild(NsId(0), proc().as_fd(), &reader).unwrap_err().to_string();
        assert!(said.contains("no setting"), "{said}");
    }
}
