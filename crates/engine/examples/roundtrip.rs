//! Development aid: checkpoint a process by pid and restore it in a new pid namespace.
#![allow(missing_docs)]
use std::os::fd::AsFd;
use std::time::{Instant, SystemTime};
use yendor_engine::collect::collect;
use yendor_engine::rebuild::{Materials, rebuild};
use yendor_image::{Bytes, Reader, Writer};
use yendor_kinds::file::{Gather, Workshop, external::Filled};
use yendor_kinds::snapshot::{Container, Root, Snapshot};
use yendor_task::tree::FrozenTree;

fn main() {
    let mut args = std::env::args().skip(1);
    let pid: i32 = args.next().unwrap().parse().unwrap();
    let dir = std::path::PathBuf::from(args.next().unwrap());
    let open = |p: &str| std::fs::File::open(p).unwrap();
    let t = Instant::now();
    {
        let proc = open("/proc");
        let writer = Writer::create(&dir).unwrap();
        let tree = FrozenTree::freeze(proc.as_fd(), &[pid], pid).unwrap();
        eprintln!("frozen {:?}", t.elapsed());
        let mut gather = Gather::new(&writer, proc.into(), open("/").into());
        let container = Container {
            hostname: Bytes(b"x".to_vec()),
            domainname: Bytes(vec![]),
            clocks: (0, 0),
            root: Root::Caller,
            own_network: false,
            layers: vec![],
        };
        let snapshot = collect(&tree, &mut gather, &writer, container).unwrap_or_else(|e| {
            eprintln!("{e}");
            std::process::exit(3)
        });
        drop(gather);
        eprintln!("collected {:?}", t.elapsed());
        writer.records(&snapshot).unwrap();
        writer.commit(SystemTime::now()).unwrap();
        eprintln!("stored {:?}", t.elapsed());
        if args.next().as_deref() == Some("--leave") {
            return;
        }
        tree.kill().unwrap();
    }
    let t = Instant::now();
    let reader = Reader::open(&dir).unwrap();
    let snapshot: Snapshot = reader.records().unwrap();
    #[allow(unsafe_code)] // SAFETY: only later children are affected.
    unsafe {
        rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWPID).unwrap()
    };
    let workshop =
        Workshop::new(Some(&reader), open("/").into(), open("/proc").into(), Filled::default(), &snapshot.files)
            .unwrap();
    let m = Materials {
        snapshot: &snapshot,
        reader: Some(&reader),
        workshop,
        proc: open("/proc").into(),
        late_mounts: vec![],
        seal: Box::new(|| Ok(())),
    };
    let built = rebuild(m).unwrap_or_else(|e| {
        eprintln!("{e}");
        std::process::exit(1)
    });
    eprintln!("rebuilt {:?}", t.elapsed());
    let running = built.thaw().unwrap();
    eprintln!("thawed {:?} init {} main {}", t.elapsed(), running.init, running.main);
    println!("status {:?}", running.wait());
}
