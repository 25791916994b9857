//! POSIX message queues: each test in an ipc namespace of its own thread, as root.

mod law;

use std::os::fd::{AsFd, OwnedFd};

use law::{collect, collect_from};
use rustix::fs::{Mode, OFlags};
use yendor_kinds::file::Record;
use yendor_kinds::file::external::Filled;
use yendor_sys::mqueue;
use yendor_sys::namespace::{Namespaces, unshare};

fn inside<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    let fresh = || {
        unshare(Namespaces::NEWIPC).unwrap();
        f()
    };
    std::thread::scope(|s| s.spawn(fresh).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn queue(name: &str, unlinked: bool) -> OwnedFd {
    let fd = mqueue::create(name.as_bytes(), 10, 64).unwrap();
    rustix::fs::fchown(&fd, Some(rustix::fs::Uid::from_raw(7)), Some(rustix::fs::Gid::from_raw(8))).unwrap();
    rustix::fs::fchmod(&fd, Mode::from_raw_mode(0o4621)).unwrap();
    for (priority, text) in [(0, &b""[..]), (32767, &[0xff; 64]), (1, b"one"), (1, b"two")] {
        mqueue::send(fd.as_fd(), priority, text).unwrap();
    }
    if unlinked {
        mqueue::unlink(name.as_bytes()).unwrap();
    }
    fd
}

/// What is collected here is rebuilt elsewhere, and collected there.
fn law(image: &law::Image) {
    let entries = inside(|| {
        let made = image.rebuild();
        collect(&made.iter().map(AsFd::as_fd).collect::<Vec<_>>()).entries.clone()
    });
    assert_eq!(entries, image.entries);
}

#[test]
fn queues_come_back() {
    if !law::root("an ipc namespace of its own") {
        return;
    }
    inside(|| {
        let named = queue("law", false);
        let again = rustix::io::fcntl_dupfd_cloexec(&named, 3).unwrap();
        let unlinked = queue("law-too", true);
        let image = collect(&[named.as_fd(), unlinked.as_fd(), again.as_fd()]);
        assert_eq!(image.entries.len(), 2, "{:?}", image.entries);
        for (entry, gone) in image.entries.iter().zip([false, true]) {
            let Record::Mqueue(record) = &entry.record else { panic!("{entry:?}") };
            let content = record.content.as_ref().unwrap();
            assert_eq!((content.mode, content.owner, content.unlinked), (0o4621, (7, 8), gone));
            let priorities: Vec<u32> = content.messages.iter().map(|m| m.priority).collect();
            assert_eq!(priorities, [32767, 1, 1, 0]);
        }
        law(&image);
        // Nothing has changed.
        assert_eq!(collect(&[named.as_fd(), unlinked.as_fd()]).entries, image.entries);
    });
}

#[test]
fn two_without_a_name_and_one_with_it() {
    if !law::root("an ipc namespace of its own") {
        return;
    }
    inside(|| {
        let all = [queue("same", true), queue("same", true), queue("same", false)];
        let image = collect(&all.each_ref().map(AsFd::as_fd));
        inside(|| {
            // The one with the name last: then the name is free, and taken by nobody who has none.
            let made = image.rebuild();
            assert_eq!(made.len(), 3);
        });
    });
}

#[test]
fn what_is_no_queue_is_refused() {
    if !law::root("an ipc namespace of its own") {
        return;
    }
    inside(|| {
        let mut image = collect(&[queue("bad", true).as_fd()]);
        let mut refused = |change: &dyn Fn(&mut yendor_kinds::file::mqueue::Record)| {
            let before = image.entries.clone();
            if let Record::Mqueue(record) = &mut image.entries[0].record {
                change(record);
            }
            let said = inside(|| image.try_rebuild(Filled::default()).unwrap_err().to_string());
            image.entries = before;
            said
        };
        assert!(refused(&|r| r.content = None).contains("is no message queue"));
        assert!(refused(&|r| r.queue = yendor_image::FileId(9)).contains("no file has the id"));
        let content = |r: &mut yendor_kinds::file::mqueue::Record,
                       f: &dyn Fn(&mut yendor_kinds::file::mqueue::Queue)| {
            r.content.iter_mut().for_each(f);
        };
        assert!(refused(&|r| content(r, &|q| q.name.0 = b"../etc/x".to_vec())).contains("without a name"));
        assert!(refused(&|r| content(r, &|q| q.name.0 = b"a\0b".to_vec())).contains("mq_open"));
        assert!(refused(&|r| content(r, &|q| q.most = u32::MAX)).contains("mq_open"));
        assert!(refused(&|r| content(r, &|q| (q.size, q.messages) = (0, Vec::new()))).contains("mq_open"));
        assert!(refused(&|r| content(r, &|q| q.messages[0].priority = u32::MAX)).contains("mq_timedsend"));
        assert!(refused(&|r| content(r, &|q| q.size = 10)).contains("more than fits"));
    });
}

#[test]
fn a_path_to_a_queue_is_refused() {
    if !law::root("an ipc namespace of its own") {
        return;
    }
    inside(|| {
        let fd = queue("path", true);
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd));
        let only = rustix::fs::open(path.as_str(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let said = collect_from(&[only.as_fd()], true).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(said.contains("a POSIX message queue (mq_open)"), "{said}");
    });
}
