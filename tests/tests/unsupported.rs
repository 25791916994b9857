//! What a program holds and no image can: each refuses the checkpoint by name, with exit code 3, and the program goes on.

use std::fs;
use std::path::Path;

use yendor_tests::{Flavour, PATIENCE, Yendor};

/// What all programs begin with. One that cannot have its object here says so and ends.
const HEAD: &str = r"
import ctypes, errno, os, signal, socket, struct, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def call(nr, *args):
    args = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    got = libc.syscall(ctypes.c_long(nr), *args)
    if got < 0: raise OSError(ctypes.get_errno(), f'system call {nr}')
    return got
def end(*_): os._exit(9)
signal.signal(signal.SIGUSR1, end)
def forever():
    while True: time.sleep(0.05)
def child(body):
    ready, done = os.pipe()
    if os.fork() == 0:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        try: body()
        except OSError as e: os.write(done, bytes([e.errno])); os._exit(0)
        os.write(done, b'\0'); os.close(done)
        forever()
    os.close(done); got = os.read(ready, 1); os.close(ready)
    if got != b'\0': os.wait(); raise OSError(got[0] if got else 0, 'a child')
def thread(body):
    done, failed = threading.Event(), []
    def all():
        try: body()
        except OSError as e: failed.append(e)
        done.set(); forever()
    threading.Thread(target=all, daemon=True).start()
    done.wait()
    if failed: raise failed[0]
def unshare(flags): call(272, flags)
def its_own_users():
    if open('/proc/self/uid_map').read().split() == ['0', '0', '4294967295']: raise OSError('users of the host')
def netlink(kind, flags, body):
    s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    s.sendall(struct.pack('=IHHII', 16 + len(body), kind, flags, 1, 0) + body)
    got = struct.unpack_from('=i', s.recv(4096), 16)[0]
    s.close()
    if got: raise OSError(-got, f'netlink {kind}')
def nft():
    s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
    ends = [struct.pack('=IHHIIBBH', 20, kind, 1, 1, 0, 0, 0, 0xa00) for kind in (16, 17)]
    s.sendall(ends[0] + struct.pack('=IHHIIBBHHH8s', 32, 0xa00, 0x405, 1, 0, 1, 0, 0, 12, 1, b'mine\0\0\0\0') + ends[1])
    got = struct.unpack_from('=i', s.recv(4096), 16)[0]
    s.close()
    if got: raise OSError(-got, 'NFT_MSG_NEWTABLE')
def hold():
";

const TAIL: &str = r"
try: kept = hold()
except OSError as e: print('cannot:', e, flush=True); sys.exit(0)
print('ready', flush=True)
forever()
";

/// A name, the body of `hold`, and what the refusal says.
type Case = (&'static str, &'static str, &'static str);

const CASES: &[Case] = &[
    (
        "a socket from another network",
        "thread(lambda: (unshare(0x40000000), globals().update(own=socket.socket(), home=os.open('/proc/self/ns/net', 0)),
            call(308, home, 0), os.close(home)))",
        "a socket of another net namespace than the container's, in which no process of the tree lives",
    ),
    (
        "a bridge with a fixed address in a child's network",
        "child(lambda: (unshare(0x40000000),
    netlink(16, 0x605, struct.pack('=4xi8xHH4sHHHH8s', 99, 8, 3, b'br9', 16, 18, 11, 1, b'bridge')),
    netlink(28, 0x605, struct.pack('=BxxxiHBBHH6sxx', 7, 99, 0x80, 2, 0, 10, 2, b'\\2abcde'))))",
        "a fixed address of a bridge that the container has made itself (02:61:62:63:64:65 of device 99)",
    ),
    (
        "larger packets in a child's network",
        "child(lambda: (unshare(0x40000000), netlink(16, 5, struct.pack('=BxHiIIHHI', 0, 0, 1, 0, 0, 8, 4, 4321))))",
        "a network device that the container has made itself (lo, of 4321 bytes",
    ),
    ("a queue in a child's namespace", "child(lambda: (unshare(0x8000000), os.close(call(240, b'q', 0o102, 0o600, 0))))", "/q: a POSIX"),
    ("a namespace that nobody lives in", "global kept\npid, kept = os.getpid(), None
thread(lambda: (unshare(0x4000000), globals().update(kept=os.open('/proc/thread-self/ns/uts', 0)),
    call(308, os.open(f'/proc/{pid}/ns/uts', 0), 0)))", "a namespace that no process of the tree lives in"),
    (
        "a mount of a child's that cannot be had",
        "child(lambda: (unshare(0x20000), call(165, b'none', b'/mnt', b'overlay', 0, b'lowerdir=/usr:/etc')))",
        "/mnt: a mount (overlay) of a nested mnt namespace whose type is not made again",
    ),
    (
        "mounts of a child's that are shared",
        "os.mkdir('/tmp/m')
child(lambda: (unshare(0x20000), call(165, b'none', b'/tmp/m', b'tmpfs', 0, 0), call(165, b'', b'/tmp/m', 0, 1 << 20, 0),
    call(165, b'/tmp/m', b'/mnt', 0, 4096, 0)))",
        "of a nested mnt namespace that shares mounts with others (MS_SHARED)",
    ),
    (
        "a thread's mount namespace",
        "thread(lambda: unshare(0x20200))",
        "a working directory of its own",
    ),
    (
        "a socket in a child's mounts",
        "os.mkdir('/tmp/m')
child(lambda: (unshare(0x20000), call(165, b'none', b'/tmp/m', b'tmpfs', 0, 0),
    globals().update(kept=socket.socket(socket.AF_UNIX)), kept.bind('/tmp/m/socket')))",
        "/tmp/m/socket: a unix socket of a nested mnt namespace",
    ),
    (
        "a directory of other mounts",
        "child(lambda: (globals().update(kept=os.open('/usr', 0)), unshare(0x20000), os.fchdir(kept), os.close(kept)))",
        "has its working directory in another mnt namespace",
    ),
    (
        "a pid namespace of users in another",
        "def enter():
    unshare(0x20000000)
    if os.fork() == 0: unshare(0x30000000); os.fork() or forever(); forever()
child(enter); time.sleep(0.5)",
        "a pid namespace of a user namespace of its own in another pid namespace",
    ),
    (
        "directories in directories",
        "os.chdir('/tmp')
for _ in range(510): os.mkdir('d'); os.chdir('d')
os.chdir('/')",
        "directories more than 500 deep",
    ),
    (
        "users of threads",
        "child(lambda: (unshare(0x10000000), thread(lambda: None)))",
        "has a user namespace of its own, and threads",
    ),
    (
        "iptables of a network whose users came later",
        "def unknown():
    try: open('/proc/self/net/ip_tables_names').close()
    except PermissionError: return
    raise OSError(1, 'tables of iptables that everybody knows')
child(lambda: (unshare(0x50000000), unknown()))",
        "--allow-lost iptables",
    ),
    ("a pid namespace for children", "child(lambda: unshare(0x20000000))", "pid namespace of its own for its children"),
    (
        "a process that entered a pid namespace",
        "def enter():
    unshare(0x20000000)
    if os.fork() == 0: forever()
    if os.fork() == 0: forever()
child(enter)",
        "lives in a pid namespace that process",
    ),
    ("a time namespace for children", "child(lambda: unshare(0x80))", "time namespace of its own for its children"),
    ("a thread's descriptors", "thread(lambda: unshare(0x400))", "a table of descriptors of its own"),
    ("a thread's directory", "thread(lambda: unshare(0x200))", "a working directory of its own"),
    (
        "a mount that cannot be had",
        "os.mkdir('/tmp/m'); call(165, b'none', b'/tmp/m', b'overlay', 0, b'lowerdir=/usr:/etc')",
        "/tmp/m: a mount (overlay) that the container has made itself whose type is not made again",
    ),
    (
        "a mount under another",
        "os.mkdir('/tmp/m'); [call(165, b'none', b'/tmp/m', b'tmpfs', 0, 0) for _ in range(2)]",
        "/tmp/m: a mount (tmpfs) that the container has made itself that another covers",
    ),
    (
        "a directory that a mount covers",
        "os.mkdir('/tmp/m'); os.chdir('/tmp/m'); call(165, b'none', b'/tmp/m', b'tmpfs', 0, 0)",
        "/tmp/m: the working directory of process",
    ),
    (
        "a file that a mount covers",
        "os.mkdir('/tmp/m'); file = open('/tmp/m/f', 'w')
call(165, b'/tmp/m', b'/tmp/m', b'', 0x1000, 0); return file",
        "/tmp/m/f: a file of a mount that is there no more, or that another covers",
    ),
    ("a mount made smaller", "call(165, b'none', b'/tmp', b'tmpfs', 32, b'size=1m')", "/tmp: a mount (tmpfs) that has"),
    (
        "a ring of io_uring that is only mapped",
        "ring = call(425, 4, ctypes.create_string_buffer(120)); call(9, 0, 4096, 3, 0x8001, ring, 0); os.close(ring)",
        "an io_uring: its rings and requests are the kernel's",
    ),
    (
        "a request that waits",
        "context, event = ctypes.c_ulong(), call(290, 0, 0); call(206, 8, ctypes.byref(context))
request = ctypes.create_string_buffer(struct.pack('=QIIHhIQQqQII', 5, 0, 0, 5, 0, event, 1, 0, 0, 0, 0, 0))
call(209, context, 1, ctypes.byref(ctypes.c_void_p(ctypes.addressof(request))))
return request, event",
        "asynchronous I/O (io_setup) with 1 requests that do not end",
    ),
    (
        "secret memory that is only mapped",
        "file = call(447, 0); os.ftruncate(file, 4096); call(9, 0, 4096, 3, 1, file, 0); os.close(file)",
        "secret memory (memfd_secret)",
    ),
    (
        "a queue with a message that notifies of the next",
        "queue = call(240, b'q', 0o102, 0o600, 0); call(242, queue, b'x', 1, 0, 0)
call(244, queue, struct.pack('=Qii48x', 7, 10, 0))",
        "of messages after those that wait in it",
    ),
    (
        "a queue that notifies a thread",
        "queue, s, cookie = call(240, b'q', 0o102, 0o600, 0), socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0), ctypes.create_string_buffer(32)
call(244, queue, struct.pack('=Qii48x', ctypes.addressof(cookie), s.fileno(), 2)); return s",
        "by a thread (SIGEV_THREAD)",
    ),
    (
        "a queue that notifies by a signal that ends",
        "queue = call(240, b'q', 0o102, 0o600, 0); call(244, queue, struct.pack('=Qii48x', 7, 9, 0))",
        "a POSIX message queue that notifies (mq_notify) by signal 9",
    ),
    ("a thread's key", "thread(lambda: call(248, b'user', b'x', b'y', 1, -1))", "a keyring of its own"),
    ("a process's key", "call(248, b'user', b'x', b'y', 1, -2)", "a keyring of its own"),
    ("a session", "call(250, 1, b'mine')", "a session keyring that is not the container's"),
    ("a session without a name", "child(lambda: call(250, 1, 0))", "a session keyring that is not the container's"),
    ("a user's key", "its_own_users(); call(248, b'user', b'x', b'y', 1, -4)", "a user with keys"),
    ("a keyring for requested keys", "call(250, 14, 3)", "a keyring for keys that it requests"),
    ("a local descriptor table", "call(154, 1, struct.pack('IIII', 3, 4096, 0xfffff, 81), 16)", "modify_ldt"),
    ("dispatched system calls", "call(157, 59, 1, 0, 0, call(9, 0, 4096, 3, 0x22, -1, 0))", "syscall user dispatch"),
    ("pressure", "return os.open('/proc/pressure/cpu', os.O_RDWR)", "/proc/pressure/cpu: perhaps with a trigger"),
    (
        "a directory that is being read",
        "os.mkdir('/tmp/d')\nfor n in range(99): open(f'/tmp/d/{n}', 'w').close()
d = os.open('/tmp/d', os.O_RDONLY); call(217, d, ctypes.create_string_buffer(500), 500)",
        "/tmp/d: a directory that somebody is reading",
    ),
    (
        "a mount that hands mounts on, and one that gets them",
        "call(165, b'', b'/tmp', b'', 0x100000, 0)
call(165, b'/tmp', b'/mnt', b'', 0x1000, 0); call(165, b'', b'/mnt', b'', 0x80000, 0)",
        "/tmp: a mount (tmpfs) that hands mounts on in another way",
    ),
    ("UDP-Lite", "return socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 136)", "a socket of UDP-Lite"),
    (
        "a raw socket",
        "return socket.socket(socket.AF_INET6, socket.SOCK_RAW, 58)",
        "a raw socket (SOCK_RAW, protocol 58)",
    ),
    (
        "an MPTCP connection",
        "l = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262); l.bind(('127.0.0.1', 0)); l.listen()
c = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262); c.connect(l.getsockname())
return l, c, l.accept()",
        "an MPTCP connection",
    ),
    (
        "a rule for routes",
        "netlink(32, 0x605, struct.pack('=12BHHI', 2, 0, 0, 0, 9, 0, 0, 1, 0, 0, 0, 0, 8, 6, 77))",
        "a rule for routes that the container has made itself (IPv4, priority 77)",
    ),
    (
        "a table of routes",
        "netlink(24, 0x605, struct.pack('=8BI', 2, 0, 0, 0, 7, 3, 0, 6, 0))",
        "a table of routes that the container has made itself (IPv4, table 7)",
    ),
    (
        "a route with a realm",
        "netlink(24, 0x605, struct.pack('=8BIHH4sHHIHHI', 2, 32, 0, 0, 254, 3, 0, 1, 0, 8, 1, bytes([203, 0, 113, 9]), 8, 4, 1, 8, 11, 5))",
        "a route that the container has made itself (IPv4, 203.0.113.9/32, table 254)",
    ),
    (
        "a local route that nobody has the address of",
        "netlink(24, 0x605, struct.pack('=8BIHH4sHHI', 2, 32, 0, 0, 255, 3, 254, 2, 0, 8, 1, bytes([203, 0, 113, 9]), 8, 4, 1))",
        "a route that the container has made itself (IPv4, 203.0.113.9/32, table 255)",
    ),
    (
        "a neighbour",
        "netlink(28, 0x605, struct.pack('=BxHIHBBHH4sHH6sxx', 2, 0, 1, 0x80, 0, 1, 8, 1, bytes([127, 0, 0, 9]), 10, 2, b'abcdef'))",
        "a fixed neighbour that the container has made itself",
    ),
    (
        "a queueing discipline",
        "netlink(36, 0x605, struct.pack('=BxHIIIIHH8s', 0, 0, 1, 0x10000, 0xffffffff, 0, 10, 1, b'pfifo\\0\\0\\0'))",
        "a queueing discipline that the container has made itself (pfifo)",
    ),
    (
        "a label of addresses",
        "netlink(72, 0x605, struct.pack('=BBBBIIHH16sHHI', 10, 0, 128, 0, 0, 0, 20, 1, bytes([253] * 16), 8, 2, 99))",
        "a label of addresses that the container has made itself",
    ),
    (
        "an urgent mark whose byte was taken, and what is behind it",
        "l = socket.create_server(('127.0.0.1', 0)); c = socket.create_connection(l.getsockname()); s = l.accept()[0]
c.sendall(b'abc'); c.send(b'X', socket.MSG_OOB); c.sendall(b'defgh'); time.sleep(0.1); s.recv(1, socket.MSG_OOB)
return l, c, s",
        "a TCP socket with an urgent mark (MSG_OOB) in the queue, after 3 bytes of 9",
    ),
    (
        "a datagram to a group",
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('239.1.2.3', 6000)); lo = socket.inet_aton('127.0.0.1')
s.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton('239.1.2.3') + lo)
o = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); o.bind(('127.0.0.1', 0))
o.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, lo); o.sendto(b'once', ('239.1.2.3', 6000)); o.close()
return s",
        "1 datagrams to 239.1.2.3:6000, which others would get once more",
    ),
    ("a table of nftables", "nft()", "a table of nftables that the container has made itself (inet mine)"),
    (
        "another size of packets on lo",
        "netlink(16, 5, struct.pack('=BxHiIIHHI', 0, 772, 1, 0, 0, 8, 4, 1500))",
        "a network device that the container has made itself (lo, of 1500 bytes)",
    ),
    (
        "a device of the container's own that is of another type",
        "netlink(16, 0x605, struct.pack('=16xHH8sHHHH4s', 12, 3, b'ifb9', 12, 18, 8, 1, b'ifb'))",
        "a network device that the container has made itself (ifb9",
    ),
];

fn everything(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let mut cannot = Vec::new();
    for (name, body, says) in CASES {
        let container = yendor.fresh("held");
        let script: String = body.lines().map(|line| format!("    {line}\n")).collect();
        yendor.run_detached(&container, &["/usr/bin/python3", "-c", &format!("{HEAD}{script}{TAIL}")]);
        let mut log = String::new();
        let said = yendor_tests::wait_until(PATIENCE, || {
            log = yendor.logs(&container);
            log.contains("ready") || log.contains("cannot:") || log.contains("Traceback")
        });
        assert!(said && !log.contains("Traceback"), "{name}: {log}");
        if log.contains("cannot:") {
            yendor_tests::skipped(&format!("{name}: not to be had here: {}", log.trim()));
            cannot.push(name);
            continue;
        }
        refused(&yendor, &container, name, &[], says);
    }
    assert!(cannot.len() * 2 < CASES.len(), "too little is tested: {cannot:?}");
}

#[track_caller]
fn refused(yendor: &Yendor, container: &str, name: &str, options: &[&str], says: &str) {
    let image = yendor.path("image");
    let path: &Path = &image;
    let said = yendor.call(&[&["checkpoint", container, "-o", path.to_str().expect("UTF-8")], options].concat());
    assert_eq!(said.code, 3, "{name}: {said:?}");
    assert!(said.stderr.contains(says), "{name}: {}", said.stderr);
    assert!(fs::symlink_metadata(&image).is_err(), "{name}: half an image is left");
    yendor.kill(container, "USR1");
    assert_eq!(yendor.wait(container), 9, "{name}: {}", yendor.logs(container));
}

/// Its system calls are dispatched (`PR_SET_SYSCALL_USER_DISPATCH`) while it is looked at. It ends with 9 if SIGSYS comes to the same handler
/// as before, a hundred times. Its code: handlers of SIGSYS and of SIGUSR1, both of which allow calls, and a loop until the second has run.
const DISPATCHED: &str = r"
    memory = bytearray(b'x' * (16 << 20))
    page, select, count, go = 0x20000000, '00080020', '04080020', '08080020'
    call(9, page, 4096, 7, 0x100022, -1, 0)
    allow, block = 'c60425' + select + '00', 'c60425' + select + '01'
    dispatched = bytes.fromhex(allow + 'ff0425' + count + 'c3')
    told = bytes.fromhex(allow + 'c70425' + go + '01000000' + 'c3')
    loop = '53' + block + 'f390' + '833c25' + go + '00' + '74f4' + 'bb64000000' + block + 'b8270000000f05' + 'ffcb75ed'
    loop = bytes.fromhex(loop + allow + '5bc3')
    for at, code in (0, dispatched), (0x100, told), (0x200, loop): ctypes.memmove(page + at, code, len(code))
    def action(number, new=None):
        old = ctypes.create_string_buffer(152)
        new = new and struct.pack('=Q128xi4xQ', new, 0, 0)
        if libc.sigaction(number, new, old): raise OSError('sigaction')
        return struct.unpack_from('=Q', old)[0]
    action(signal.SIGSYS, page); action(signal.SIGUSR1, page + 0x100)
    call(157, 59, 1, 0, 0, page + 0x800)
    print('ready', flush=True)
    ctypes.CFUNCTYPE(None)(page + 0x200)()
    got = ctypes.c_uint.from_address(page + 0x804).value, action(signal.SIGSYS) == page
    print(got, flush=True)
    os._exit(9 if got == (100, True) else 1)
hold()
";

fn dispatched(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    for options in [&[][..], &["--leave-running", "--rounds", "1"]] {
        let container = yendor.fresh("dispatched");
        yendor.run_detached(&container, &["/usr/bin/python3", "-c", &format!("{HEAD}{DISPATCHED}")]);
        yendor.wait_for_log(&container, "ready", PATIENCE);
        std::thread::sleep(std::time::Duration::from_millis(100));
        refused(&yendor, &container, &format!("{options:?}"), options, "syscall user dispatch");
    }
}

/// What the container's root has mounted is mounted on what the caller gives, and not where the caller's policy may forbid it.
#[test]
fn the_containers_mounts_are_the_callers_to_allow() {
    let yendor = Yendor::new(Flavour::user()).expect("any account will do");
    for place in ["one", "two"] {
        fs::create_dir_all(yendor.path(place).join("sub")).expect("a directory of our own");
        fs::write(yendor.path(place).join("sub/who"), place).expect("a file of our own");
        yendor.owns(&yendor.path(place));
        yendor.owns(&yendor.path(place).join("sub"));
    }
    let volume = |place: &str| format!("data={}", yendor.path(place).display());
    let script = "mkdir -p /tmp/m /tmp/n && mount --bind /data/sub /tmp/m && mount -o remount,bind,ro /tmp/m &&
                  mount -t tmpfs none /tmp/n && echo kept > /tmp/n/f || exit 3; echo ready
                  trap 'cat /tmp/m/who /tmp/n/f; exit 7' USR1; while :; do sleep 0.05; done";
    let (name, image) = (yendor.fresh("mounted"), yendor.path("image"));
    let given = format!("{}:/data", volume("one"));
    yendor.run_detached_with(&name, &["--volume", &given], &["sh", "-c", script]).exits(0);
    yendor.wait_for_log(&name, "ready", PATIENCE);
    yendor.checkpoint(&name, &image);
    let restore = |options: &[&str]| yendor.restore_with(&image, &yendor.fresh("again"), options);
    let volume = volume("two");
    let hole = restore(&[]).exits(5).stderr;
    assert!(hole.contains("--volume data=HOSTPATH"), "{hole}");
    let forbidden: [&[&str]; 3] =
        [&["--cap-drop", "CAP_SYS_ADMIN"], &["--landlock", "rw:/tmp"], &["--enforce", "early"]];
    for options in forbidden {
        let said = restore(&[options, &["--volume", &volume]].concat()).exits(3).stderr;
        assert!(said.contains("root has mounted"), "{options:?}: {said}");
    }
    let again = yendor.fresh("again");
    yendor.restore_with(&image, &again, &["--volume", &volume]).exits(0);
    yendor.kill(&again, "USR1");
    assert_eq!(yendor.wait(&again), 7, "{}", yendor.logs(&again));
    assert_eq!(yendor.logs(&again).replace('\n', ""), "twokept", "what the caller gives is shown, and the tmpfs");
    let files = fs::read_dir(yendor.path("two/sub")).map(Iterator::count).ok();
    assert_eq!(files, Some(1), "a volume is written to by nobody");
}

yendor_tests::flavours! {
    everything
    dispatched
}
