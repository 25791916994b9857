//! Namespaces inside a container: each test in a thread of its own, as root.

mod law;

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use law::{Place, directory};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive, mount_change,
    mount_remount, unmount,
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use yendor_image::{Bytes, NsId, Reader, Writer};
use yendor_kinds::file::timerfd::Clocks;
use yendor_kinds::namespace::ipc::Mapped;
use yendor_kinds::namespace::mount as kind;
use yendor_kinds::namespace::nested::{Content, Kind, Record, own};
use yendor_kinds::namespace::network::loopback_up;
use yendor_kinds::namespace::{clock, links, sysctl, user};
use yendor_sys::ipc as sys;
use yendor_sys::namespace::{Namespaces, unshare};
use yendor_sys::sandbox;

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
    let blobs = (&writer, NsId(3));
    let (places, root) = (kind::Places::default(), directory("/"));
    let home = kind::Home { lines: Vec::new(), root: &root, pids: Vec::new(), whose: kind::Whose::Nested };
    let mapped = (None, &Mapped::default());
    let record = Record::collect((kind, namespace), None, proc().as_fd(), blobs, mapped, (&places, &home));
    let record = record.map_err(|e| e.to_string())?;
    writer.records(&record).unwrap();
    writer.commit(std::time::SystemTime::now()).unwrap();
    let reader = Reader::open(&*at).unwrap();
    assert_eq!(reader.records::<Record>().unwrap(), record, "the image gives back what was stored");
    Ok((record, reader))
}

/// collect(rebuild(collect(x))) == collect(x).
fn law(kind: Kind, namespace: &OwnedFd) -> Content {
    let place = Place::new();
    let (first, reader) = collect(&place, "first", kind, namespace).unwrap_or_else(|e| panic!("first: {e}"));
    assert_eq!(first.kind(), kind);
    let again = first.rebuild(NsId(3), None, proc().as_fd(), &reader).unwrap_or_else(|e| panic!("rebuild: {e}"));
    let inode = |fd: &OwnedFd| rustix::fs::fstat(fd).unwrap().st_ino;
    assert_ne!(inode(&again), inode(namespace));
    if matches!(&first.content, Content::Net { links, .. } if !links.is_empty()) {
        let there = move_into_link_name_space;
        let rest = || there(again.as_fd(), Some(LinkNameSpaceType::Network)).map(|()| at_rest()).unwrap();
        std::thread::scope(|s| s.spawn(rest).join()).unwrap();
    }
    first.finish(&again, proc().as_fd()).unwrap();
    let (second, _) = collect(&place, "second", kind, &again).unwrap_or_else(|e| panic!("second: {e}"));
    assert_eq!(second, first);
    first.content
}

#[test]
fn names_come_back() {
    if !law::root("namespaces of its own") {
        return;
    }
    let longest = [0xfe_u8; 64];
    for (host, domain) in [(&b""[..], &longest[..]), (&longest[..], b""), (b"no\xff de", b"\n")] {
        let namespace = made(Kind::Uts, Namespaces::NEWUTS, || {
            rustix::system::sethostname(host).unwrap();
            rustix::system::setdomainname(domain).unwrap();
        });
        let [hostname, domainname] = [host, domain].map(|name| Bytes(name.to_vec()));
        assert_eq!(law(Kind::Uts, &namespace), Content::Uts { hostname, domainname });
    }
}

#[test]
fn system_v_objects_come_back() {
    if !law::root("namespaces of its own") {
        return;
    }
    let namespace = made(Kind::Ipc, Namespaces::NEWIPC, || {
        let id = sys::shm_create(7, 8192 + 1, 0o640).unwrap();
        sys::Writable::new(id, 3 * 4096).unwrap().write(4096, b"inside");
        std::fs::write("/proc/sys/kernel/shmmni", "17").unwrap();
        std::fs::write("/proc/sys/fs/mqueue/queues_max", "3").unwrap();
    });
    let Content::Ipc { objects, settings } = law(Kind::Ipc, &namespace) else { panic!("another kind") };
    assert_eq!((objects.shm.len(), objects.shm[0].extents.as_slice()), (1, &[(4096, 4096)][..]));
    assert_eq!(objects.limits.map(|limits| limits.shmmni), Some(17));
    assert_eq!(settings.len(), 1, "{settings:?}");
}

/// What is collected of who lives there is what was made, below zero too, whatever the clocks around are ahead.
#[test]
fn clocks_come_back() {
    if !law::root("namespaces of its own") {
        return;
    }
    let me = i32::try_from(std::process::id()).unwrap();
    let text = std::fs::read("/proc/self/timens_offsets").unwrap();
    let own = yendor_proc::timens_offsets::parse(&text).unwrap();
    let [monotonic, boottime] =
        [own.monotonic, own.boottime].map(|own| own.seconds * 1_000_000_000 + i64::from(own.nanoseconds));
    for record in [
        clock::Record { monotonic: 1, boottime: -1 },
        clock::Record { monotonic: -1_000_000_001, boottime: 4_000_000_000_999_999_999 },
    ] {
        let home = Clocks { monotonic, boottime };
        let there = clock::rebuild(record, None, proc().as_fd(), home).unwrap();
        let path = format!("--time=/proc/{me}/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&there));
        let mut nsenter = std::process::Command::new("nsenter");
        let mut resident = nsenter.args([&path, "cat"]).stdin(std::process::Stdio::piped()).spawn().unwrap();
        let inode = rustix::fs::fstat(&there).unwrap().st_ino;
        let is_there = || rustix::fs::stat(format!("/proc/{}/ns/time", resident.id())).unwrap().st_ino == inode;
        while !is_there() {
            std::thread::yield_now();
        }
        let collected = clock::collect(proc().as_fd(), i32::try_from(resident.id()).unwrap(), me).unwrap();
        drop(resident.stdin.take());
        assert!(resident.wait().unwrap().success());
        assert_eq!(collected, record);
    }
    let long_ago = clock::Record { monotonic: i64::MIN, boottime: 0 };
    let said = clock::rebuild(long_ago, None, proc().as_fd(), Clocks::default()).unwrap_err().to_string();
    assert!(said.contains("timens_offsets"), "{said}");
}

/// Mounts beside those of a home whose mounts are private.
fn mounts_law(fill: impl Fn() + Send + Sync) -> Result<kind::Record, String> {
    let inside = || {
        let alone = Namespaces::FS | Namespaces::NEWNS;
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        unshare(alone).unwrap();
        mount_change("/", private).unwrap();
        let lines = || {
            let text = yendor_task::tree::read_proc(proc().as_fd(), "thread-self/mountinfo").unwrap();
            yendor_proc::mountinfo::parse(&text).unwrap()
        };
        // What covers another mount goes: a container has no such. What may be below this pid namespace's /proc is another's.
        while unmount("/proc", UnmountFlags::DETACH).is_ok() {}
        mount("proc", "/proc", "proc", MountFlags::empty(), None).unwrap();
        for (n, line) in lines().iter().enumerate().rev() {
            if lines()[..n].iter().any(|other| other.mount_point == line.mount_point) {
                unmount(&*line.mount_point, UnmountFlags::DETACH).unwrap();
            }
        }
        let namespace = made(Kind::Mount, alone, &fill);
        let (place, root) = (Place::new(), directory("/"));
        let pids = rustix::fs::stat("/proc/self/ns/pid").unwrap().st_ino;
        let home = kind::Home { lines: lines(), root: &root, pids: vec![(pids, None)], whose: kind::Whose::Nested };
        let collect = |name: &str, namespace: &OwnedFd| {
            let at = place.0.join(name);
            let writer = Writer::create(&at).unwrap();
            let there = kind::Place::look(NsId(3), namespace, proc()).unwrap();
            let places = kind::Places(vec![there].into());
            let record = kind::collect(namespace, &places.0[0], &places, &home, (&writer, NsId(3)));
            let record = record.map_err(|e| e.to_string())?;
            writer.records(&record).unwrap();
            writer.commit(std::time::SystemTime::now()).unwrap();
            Ok::<_, String>((record, Reader::open(&*at).unwrap()))
        };
        let (first, reader) = collect("first", &namespace)?;
        let again = kind::rebuild(&first, None, proc().as_fd(), &reader).map_err(|e| e.to_string())?;
        // The kernel lists them by their numbers.
        let sorted = |record: &kind::Record| {
            let mut mounts: Vec<_> = record.mounts.iter().map(|mount| format!("{mount:?}")).collect();
            mounts.sort();
            mounts
        };
        assert_eq!(sorted(&collect("second", &again.namespace)?.0), sorted(&first));
        Ok(first)
    };
    std::thread::scope(|s| s.spawn(inside).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

#[test]
fn mounts_come_back() {
    if !law::root("namespaces of its own") {
        return;
    }
    let tmpfs = |at: &str| mount("none", at, "tmpfs", MountFlags::NOSUID, Some(c"size=64k,mode=711")).unwrap();
    let changed = mounts_law(|| {
        tmpfs("/mnt");
        std::fs::create_dir(Path::new("/mnt").join(std::ffi::OsStr::from_bytes(b"no\xff de \\"))).unwrap();
        std::fs::create_dir_all("/mnt/d/e").unwrap();
        std::fs::write("/mnt/d/file", "kept").unwrap();
        mount_bind("/mnt/d", "/mnt/d/e").unwrap();
        mount_remount("/mnt/d/e", MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOATIME, "").unwrap();
        mount_change("/mnt/d/e", MountPropagationFlags::SHARED).unwrap();
        mount_bind("/etc/passwd", "/mnt/d/file").unwrap();
        mount_change("/mnt/d/file", MountPropagationFlags::UNBINDABLE).unwrap();
        mount("none", "/mnt/d/e", "devpts", MountFlags::empty(), Some(c"newinstance,mode=620")).unwrap();
    });
    let changed = changed.unwrap();
    let of = |record: &kind::Record, point: &str| {
        let all = record.mounts.iter().rev().find(|mount| mount.point.0 == point.as_bytes());
        all.map(|mount| mount.what.clone()).unwrap()
    };
    assert!(matches!(of(&changed, "/mnt/d/file"), kind::What::Outside(path) if path.0.ends_with(b"etc/passwd")));
    assert!(matches!(of(&changed, "/mnt"), kind::What::New(kind::System { content: Some(_), .. })));
    // A root of its own, which is a directory of a tmpfs of which nothing else is to be seen.
    let turned = mounts_law(|| {
        tmpfs("/mnt");
        std::fs::create_dir_all("/mnt/new/root/usr").unwrap();
        mount_bind("/mnt/new/root", "/mnt/new/root").unwrap();
        mount_bind_recursive("/usr", "/mnt/new/root/usr").unwrap();
        std::env::set_current_dir("/mnt/new/root").unwrap();
        rustix::process::pivot_root(".", ".").unwrap();
        unmount(".", UnmountFlags::DETACH).unwrap();
        std::env::set_current_dir("/").unwrap();
        std::fs::create_dir("/proc").unwrap();
        mount("proc", "/proc", "proc", MountFlags::empty(), None).unwrap();
    });
    let turned = turned.unwrap();
    assert!(matches!(of(&turned, "/"), kind::What::New(kind::System { root, .. }) if root.0 == b"new/root"));
    assert!(matches!(of(&turned, "/usr"), kind::What::Outside(path) if path.0 == b"/usr"));
    let unlimited = mounts_law(|| {
        mount("none", "/mnt", "ramfs", MountFlags::NODEV, Some(c"mode=700")).unwrap();
        std::fs::create_dir_all("/mnt/d").unwrap();
        std::fs::write("/mnt/d/file", "kept").unwrap();
    });
    let system = of(&unlimited.unwrap(), "/mnt");
    let kind::What::New(kind::System { fs_type: kind::Type::Ramfs, content: Some(content), .. }) = system else {
        panic!("{system:?}")
    };
    assert_eq!(content.entries.len(), 3, "{content:?}");
    let lower = Some(c"lowerdir=/usr:/etc");
    let refused = mounts_law(|| mount("none", "/mnt", "overlay", MountFlags::empty(), lower).unwrap()).unwrap_err();
    assert!(refused.contains("/mnt: a mount (overlay)"), "{refused}");
}

#[test]
fn networks_come_back() {
    if !law::root("namespaces of its own") {
        return;
    }
    let set = |name: &str, value: &str| std::fs::write(format!("/proc/sys/net/{name}"), value).unwrap();
    let namespace = made(Kind::Net, Namespaces::NEWNET, || {
        loopback_up().unwrap();
        set("ipv4/ip_default_ttl", "255");
        set("ipv4/conf/lo/rp_filter", "2");
    });
    let Content::Net { loopback, links, settings } = law(Kind::Net, &namespace) else { panic!("another kind") };
    assert!(
        loopback && links.is_empty() && settings.iter().any(|one| one.name.0 == b"net/ipv4/ip_default_ttl"),
        "{settings:?}"
    );
    let namespace = made(Kind::Net, Namespaces::NEWNET, || {});
    let empty = Content::Net { loopback: false, links: links::Record::default(), settings: Vec::new() };
    assert_eq!(law(Kind::Net, &namespace), empty);
}

#[test]
fn a_setting_of_another_kind_is_refused() {
    if !law::root("namespaces of its own") {
        return;
    }
    let place = Place::new();
    let namespace = made(Kind::Uts, Namespaces::NEWUTS, || {});
    let (_, reader) = collect(&place, "any", Kind::Uts, &namespace).unwrap();
    for name in ["user/max_user_namespaces", "fs/mqueue/msg_max", "kernel/core_pattern"] {
        let setting = sysctl::Record { name: Bytes(name.as_bytes().to_vec()), value: Bytes(b"1".to_vec()) };
        let content = Content::Net { loopback: false, links: links::Record::default(), settings: vec![setting] };
        let record = Record { owner: None, content };
        let said = record.rebuild(NsId(0), None, proc().as_fd(), &reader).unwrap_err().to_string();
        assert!(said.contains("no setting"), "{said}");
    }
}

/// Waits for what the kernel gives devices later: until no IPv6 address is tentative, and nothing has changed for two seconds.
fn at_rest() {
    let (begun, pause) = (std::time::Instant::now(), std::time::Duration::from_millis(100));
    let is_tentative = |line: &str| {
        let flags = line.split_whitespace().nth(4).and_then(|flags| u32::from_str_radix(flags, 16).ok());
        flags.is_some_and(|flags| flags & 0x40 != 0)
    };
    // A name need not be UTF-8.
    let read = |name| std::fs::read(format!("/proc/thread-self/net/{name}")).unwrap();
    let look = || ["if_inet6", "ipv6_route"].map(|name| String::from_utf8_lossy(&read(name)).into_owned());
    let (mut seen, mut quiet) = (look(), 0);
    while quiet < 20 {
        assert!(begun.elapsed().as_secs() < 60, "{seen:?}");
        std::thread::sleep(pause);
        let now = look();
        let names = |text: &[String; 2]| text.iter().map(|text| text.lines().count()).collect::<Vec<_>>();
        let same = names(&now) == names(&seen) && !now[0].lines().any(is_tentative);
        (seen, quiet) = (now, if same { quiet + 1 } else { 0 });
    }
}

#[test]
fn devices_addresses_and_routes_come_back() {
    use links::{Kind as Is, Link, Message};
    use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, recv, send, socket};
    if !law::root("namespaces of its own") {
        return;
    }
    let link = |index, name: &[u8], kind, last: u8, flags| Link {
        index,
        name: Bytes(name.to_vec()),
        kind,
        address: Bytes(vec![2, 0xff, 0, 0, 0, last]),
        mtu: 1400 + u32::from(last),
        queue: 500 + u32::from(last),
        flags,
        settings: Vec::new(),
        port: None,
    };
    let message = |header: &[u8], attributes: &[(u16, &[u8])]| Message {
        header: Bytes(header.to_vec()),
        attributes: attributes.iter().map(|(number, value)| (*number, Bytes(value.to_vec()))).collect(),
    };
    // Family, prefix, flags, scope, index.
    let address = |index: u32, prefix, own: &[u8]| {
        let family = if own.len() == 4 { 2 } else { 10 };
        let both = if family == 2 { vec![(1, own), (2, own)] } else { vec![(1, own)] };
        message(&[&[family, prefix, 0, 0][..], &index.to_ne_bytes()].concat(), &both)
    };
    let six = |last: u8| [&[0xfd, 0xff][..], &[0; 13], &[last]].concat();
    let route = |to: &[u8], prefix, attributes: &[(u16, &[u8])]| {
        let family = if to.len() == 4 { 2 } else { 10 };
        message(&[family, prefix, 0, 0, 254, 4, 0, 1, 0, 0, 0, 0], &[&[(1, to)][..], attributes].concat())
    };
    let number = |n: u32| n.to_ne_bytes();
    let port = |of, place, settings| yendor_kinds::namespace::bridge::Port { of, place, settings };
    let mut record = links::Record {
        links: vec![
            link(77, b"d\xff.0", Is::Veth(78), 9, 1 | 0x1000),
            link(78, b"end", Is::Veth(77), 9, 1 | 0x80 | 0x200),
            link(6, b"down", Is::Veth(5), 2, 0x1000),
            link(5, b"up", Is::Veth(6), 7, 1),
            link(9, b"left", Is::Veth(8), 3, 1 | 0x1000),
            link(8, b"right", Is::Veth(9), 4, 1 | 0x1000),
            link(21, b"above", Is::Macvlan { on: 77, mode: 4 }, 6, 1 | 0x1000),
            // Hello time and ageing, as the least of its ports; another one without any.
            Link {
                settings: vec![(2, Bytes(number(300).to_vec())), (4, Bytes(number(1234).to_vec()))],
                address: Bytes(Vec::new()),
                mtu: 1411,
                ..link(40, b"bridge", Is::Bridge, 1, 1 | 0x1000)
            },
            link(41, b"alone", Is::Bridge, 60, 0x1000),
            // The second port first: isolated, and it does not learn.
            Link {
                port: Some(port(
                    40,
                    2,
                    vec![(8, Bytes(vec![0])), (33, Bytes(vec![1])), (3, Bytes(number(77).to_vec()))],
                )),
                ..link(50, b"port", Is::Veth(51), 11, 1 | 0x1000)
            },
            link(51, b"beyond", Is::Veth(50), 30, 1 | 0x1000),
            Link { port: Some(port(40, 1, Vec::new())), ..link(52, b"other", Is::Veth(53), 40, 1 | 0x1000) },
            link(53, b"further", Is::Veth(52), 41, 1 | 0x1000),
        ],
        addresses: vec![
            address(1, 32, &[10, 9, 8, 7]),
            address(1, 128, &six(9)),
            address(77, 24, &[192, 0, 2, 1]),
            address(77, 24, &[192, 0, 2, 2]),
            address(9, 64, &six(1)),
        ],
        routes: vec![
            route(&[198, 51, 100, 0], 24, &[(5, &[192, 0, 2, 254]), (6, &number(7)), (7, &[192, 0, 2, 2])]),
            route(&[203, 0, 113, 0], 24, &[(4, &number(77))]),
            route(&six(0), 120, &[(4, &number(9)), (6, &number(3))]),
        ],
    };
    // Not every kernel has these.
    let left = record.links[4].clone();
    let more = [
        link(30, b"dummy", Is::Dummy, 11, 1 | 0x80),
        link(20, b"left.4094", Is::Vlan { on: 9, id: 4094, protocol: 0x0081 }, 2, 1 | 0x1000),
    ];
    for one in more {
        let right = record.links[5].clone();
        let alone = links::Record { links: vec![left.clone(), right, one.clone()], ..links::Record::default() };
        made(Kind::Net, Namespaces::NEWNET, || {
            if links::rebuild(&alone).is_ok() {
                record.links.push(one);
            } else {
                let _ = writeln!(std::io::stderr(), "skipped: this kernel has no {:?}", one.kind);
            }
        });
    }
    let namespace = made(Kind::Net, Namespaces::NEWNET, || {
        loopback_up().unwrap();
        links::rebuild(&record).unwrap_or_else(|e| panic!("{e}"));
        std::fs::write("/proc/sys/net/ipv4/conf/left/rp_filter", "2").unwrap();
        at_rest();
    });
    let Content::Net { links: found, settings, .. } = law(Kind::Net, &namespace) else { panic!("another kind") };
    let names = |links: &[Link]| {
        let mut names: Vec<_> = links.iter().map(|link| (link.index, link.kind, link.mtu, link.flags & 1)).collect();
        names.sort_by_key(|link| link.0);
        names
    };
    assert_eq!(names(&found.links), names(&record.links));
    assert_eq!(found.routes.len(), 3, "{:?}", found.routes);
    assert!(found.addresses.len() >= 5, "{:?}", found.addresses);
    assert!(settings.iter().any(|one| one.name.0 == b"net/ipv4/conf/left/rp_filter"), "{settings:?}");
    let of = |index| found.links.iter().find(|link| link.index == index).unwrap();
    assert_eq!((of(40).address.0.len(), of(41).address.0.last()), (0, Some(&60)));
    let has = |index: u32, settings: &[(u16, Bytes)], number| {
        let value = settings.iter().find(|(n, _)| *n == number).map(|(_, value)| value.0.clone());
        value.unwrap_or_else(|| panic!("no {number} of {index}"))
    };
    assert_eq!([2, 4].map(|n| has(40, &of(40).settings, n)), [number(300).to_vec(), number(1234).to_vec()]);
    let ports = [50, 52].map(|index| of(index).port.clone().unwrap());
    assert_eq!(ports.each_ref().map(|port| (port.of, port.place)), [(40, 2), (40, 1)]);
    assert_eq!([8, 33, 3].map(|n| has(50, &ports[0].settings, n)[0]), [0, 1, 77]);
    // What it does not know refuses: another name.
    let pair = links::Record { links: record.links[4..6].to_vec(), ..links::Record::default() };
    let namespace = made(Kind::Net, Namespaces::NEWNET, || {
        links::rebuild(&pair).unwrap();
        let about = [&[0; 4][..], &9_u32.to_ne_bytes(), &[0; 8]].concat();
        let request = [&[40, 0, 0, 0, 16, 0, 5, 0][..], &[0; 8], &about, &[6, 0, 20, 0], b"x\0\0\0"].concat();
        let socket = socket(AddressFamily::NETLINK, SocketType::RAW, None).unwrap();
        send(&socket, &request, SendFlags::empty()).unwrap();
        recv(&socket, &mut [0; 512], RecvFlags::empty()).unwrap();
        at_rest();
    });
    let said = collect(&Place::new(), "named", Kind::Net, &namespace).unwrap_err();
    assert!(said.contains("a network device that the container has made itself (left"), "{said}");
}

/// Makes it, has a child enter it, and reads it.
fn users_law(record: &user::Record) -> Result<(), String> {
    users_law_in(None, record).map(drop)
}

fn users_law_in(above: Option<(&OwnedFd, &user::Record)>, record: &user::Record) -> Result<OwnedFd, String> {
    let proc = proc();
    let users = user::rebuild(record, above, proc.as_fd()).map_err(|e| e.to_string())?;
    let (hear, tell) = std::io::pipe().unwrap();
    let child = sandbox::fork(&[users.as_fd(), tell.as_fd()], || {
        let inside = move_into_link_name_space(users.as_fd(), Some(LinkNameSpaceType::User)).is_ok();
        let told = rustix::io::write(&tell, &[u8::from(inside)]).is_ok();
        std::thread::sleep(std::time::Duration::from_secs(if told { 60 } else { 0 }));
        0
    })
    .unwrap();
    assert_eq!((rustix::io::read(&hear, &mut [0]), inside(&child)), (Ok(1), true));
    assert_eq!(user::collect(&users, proc.as_fd(), Some(child.pid())).unwrap(), *record);
    assert_eq!(user::collect(&users, proc.as_fd(), None).unwrap(), *record, "nobody lives there");
    // What is made below belongs to it.
    let below = user::rebuild_below(&users, proc.as_fd(), ("net", Namespaces::NEWNET)).unwrap();
    let inode = |fd: &OwnedFd| rustix::fs::fstat(fd).unwrap().st_ino;
    assert_eq!(inode(&yendor_sys::namespace::owner(&below).unwrap()), inode(&users));
    if let Some((above, _)) = above {
        assert_eq!(inode(&yendor_sys::namespace::owner(&users).unwrap()), inode(above));
    }
    Ok(users)
}

/// It is there as soon as it has said so; what it has said the maps tell.
fn inside(child: &sandbox::Copy) -> bool {
    std::fs::read(format!("/proc/{}/uid_map", child.pid())).is_ok()
}

fn range((inside, outside, count): (u32, u32, u32)) -> user::Range {
    user::Range { inside, outside, count }
}

#[test]
fn user_namespaces_come_back() {
    if !law::root("namespaces of its own") {
        return;
    }
    let limit = |name: &str, value: &str| sysctl::Record {
        name: Bytes(name.as_bytes().to_vec()),
        value: Bytes(value.as_bytes().to_vec()),
    };
    let none = user::Record { maker: 0, uids: Vec::new(), gids: Vec::new(), setgroups: true, settings: Vec::new() };
    users_law(&none).unwrap();
    users_law(&user::Record { maker: 4_294_967_294, setgroups: false, ..none.clone() }).unwrap();
    users_law(&user::Record {
        maker: 1000,
        uids: [(0, 1000, 1), (7, 0, 1), (4_294_967_000, 100_000, 290)].map(range).to_vec(),
        gids: (0..340).map(|n| range((n * 3, n * 5, 1))).collect(),
        setgroups: true,
        settings: vec![limit("user/max_net_namespaces", "1"), limit("user/max_user_namespaces", "0")],
    })
    .unwrap();
    // What cannot be.
    let refused = |record: user::Record| users_law(&record).unwrap_err();
    let uids =
        |all: &[(u32, u32, u32)]| user::Record { uids: all.iter().copied().map(range).collect(), ..none.clone() };
    for bad in [(0, 0, 0), (u32::MAX, 0, 1), (0, 7, u32::MAX)] {
        assert!(refused(uids(&[bad])).contains("cannot be"), "{bad:?}");
    }
    assert!(refused(uids(&[(0, 0, 2), (1, 7, 1)])).contains("EINVAL"));
    assert!(refused(user::Record { maker: u32::MAX, ..none.clone() }).contains("cannot be"));
    let other = vec![limit("net/ipv4/ip_forward", "1")];
    assert!(refused(user::Record { settings: other, ..none.clone() }).contains("no setting of a user namespace"));
}

#[test]
fn users_in_users_come_back() {
    if !law::root("namespaces of its own") {
        return;
    }
    let all = |uids: &[(u32, u32, u32)], maker| user::Record {
        maker,
        uids: uids.iter().copied().map(range).collect(),
        gids: vec![range((77, 5, 2))],
        setgroups: true,
        settings: Vec::new(),
    };
    // As the container sees them: 1000 is 3 and 2000 is 4_000_000_000 in the first, and so on.
    let first = all(&[(3, 1000, 1), (4_000_000_000, 2000, 1000)], 0);
    let outer = users_law_in(None, &first).unwrap();
    let second = all(&[(0, 2500, 100), (500, 1000, 1)], 1000);
    let inner = users_law_in(Some((&outer, &first)), &second).unwrap();
    users_law_in(Some((&inner, &second)), &all(&[(9, 1000, 1), (8, 2599, 1)], 2500)).unwrap();
    let empty = user::Record { uids: Vec::new(), gids: Vec::new(), ..all(&[], 2000) };
    users_law_in(Some((&outer, &first)), &empty).unwrap();
    for (bad, maker) in [((0, 1000, 2), 1000), ((0, 999, 1), 1000), ((0, 2999, 2), 1000), ((0, 1000, 1), 0)] {
        let said = users_law_in(Some((&outer, &first)), &all(&[bad], maker)).unwrap_err();
        assert!(said.contains("the one around it does not have"), "{bad:?} by {maker}: {said}");
    }
}

/// Sockets of two networks, with the same abstract name and port, and one by a path that leads from one into the other.
#[test]
fn sockets_come_back_where_they_were() {
    use std::net::TcpListener;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
    use yendor_kinds::file::{Gather, Workshop, external::Filled};
    use yendor_kinds::namespace::networks::Networks;
    if !law::root("namespaces of its own") {
        return;
    }
    let network = || made(Kind::Net, Namespaces::NEWNET, || loopback_up().unwrap());
    let (home, there, place) = (network(), network(), Place::new());
    let inside = || {
        let net = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(home.as_fd(), net).unwrap();
        let networks = |other: &OwnedFd| Networks::new([(NsId(7), other)].into_iter(), proc().as_fd()).unwrap();
        let path = place.0.join("socket");
        let name = SocketAddr::from_abstract_name(b"na\xff\0me").unwrap();
        let door = UnixListener::bind(&path).unwrap();
        let (port, local) =
            (TcpListener::bind("127.0.0.1:0").unwrap(), UnixListener::bind_addr(&name).map(OwnedFd::from).unwrap());
        let at = port.local_addr().unwrap();
        let theirs = networks(&there).within(Some(NsId(7)), || {
            let fds: [OwnedFd; 3] = [
                TcpListener::bind(at).unwrap().into(),
                UnixListener::bind_addr(&name).unwrap().into(),
                UnixStream::connect(&path).unwrap().into(),
            ];
            Ok(fds)
        });
        let mut fds = vec![port.into(), local];
        fds.push(door.accept().unwrap().0.into());
        fds.extend(theirs.unwrap());
        fds.push(door.into());
        let collect = |name: &str, fds: &[OwnedFd], there: &OwnedFd| {
            let writer = Writer::create(&place.0.join(name)).unwrap();
            let mut gather = Gather::new(&writer, proc(), directory("/"));
            gather.networks = networks(there);
            gather.network = Some(yendor_sys::sock::namespace_cookie(fds[0].as_fd()).unwrap());
            for fd in fds {
                gather.own(law::twin(fd)).unwrap();
            }
            gather.finish().unwrap();
            std::mem::take(&mut gather.entries)
        };
        let first = collect("first", &fds, &there);
        let are_there: Vec<_> = first.iter().map(|entry| entry.network.is_some()).collect();
        assert_eq!(are_there, [false, false, true, true, true, true, false]);
        drop(fds);
        let rebuild = |other: &OwnedFd| {
            let mut workshop = Workshop::new(None, directory("/"), proc(), Filled::default(), &first).unwrap();
            workshop.maker = yendor_kinds::file::unix::Maker::Ourselves;
            workshop.networks = networks(other);
            let made = first.iter().map(|entry| workshop.fd(entry.id).map(law::twin)).collect::<Result<Vec<_>, _>>()?;
            workshop.finish()?;
            Ok::<_, yendor_kinds::Cause>(made)
        };
        let (again, here) = (network(), own(proc().as_fd(), Kind::Net).unwrap());
        let made = rebuild(&again).unwrap();
        let inode = |fd: &OwnedFd| rustix::fs::fstat(fd).unwrap().st_ino;
        assert_eq!(inode(&own(proc().as_fd(), Kind::Net).unwrap()), inode(&here), "back at home");
        assert_eq!(collect("second", &made, &again), first);
    };
    std::thread::scope(|s| s.spawn(inside).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}
