//! What files of a container carry beside their content: extended attributes, file capabilities, access control lists.

use yendor_tests::{Flavour, PATIENCE, Yendor, wait_until};

/// Makes files and directories with everything that root in a container may give them, one of them over a directory of the host's;
/// says what they carry when it has made them, and at SIGUSR1.
const PROGRAM: &str = r"
import fcntl, os, signal, struct, time
def flags(path, new=None):
    # FS_IOC_GETFLAGS; those that chattr sets: A, d, S, D.
    fd = os.open(path, os.O_RDONLY)
    now = struct.unpack('l', fcntl.ioctl(fd, 0x80086601, bytes(8)))[0]
    if new: fcntl.ioctl(fd, 0x40086602, struct.pack('l', now | new))
    os.close(fd)
    return hex(now & 0x100f8)
def acl(*entries):
    return struct.pack('<I', 2) + b''.join(struct.pack('<HHI', *entry) for entry in entries)
ACCESS = acl((1, 6, 0xffffffff), (2, 4, 0), (4, 0, 0xffffffff), (16, 4, 0xffffffff), (32, 0, 0xffffffff))
CAPABILITY = struct.pack('<IIIII', 0x2000001, 1 << 10, 0, 0, 0)
os.makedirs('/tmp/d/e')
os.makedirs('/usr/share/noted', exist_ok=True)
open('/tmp/f', 'w').write('x'); open('/tmp/d/plain', 'w').write('x'); open('/usr/share/noted/g', 'w').write('x')
os.setxattr('/tmp/f', 'user.note', b'\0value\xff')
os.setxattr('/tmp/f', 'user.empty', b'')
os.setxattr('/tmp/d', 'user.of-a-directory', b'1')
os.setxattr('/tmp/d', 'system.posix_acl_default', ACCESS)
os.chmod('/tmp/d', 0o1700)
open('/tmp/d/inherits', 'w').write('x')
os.setxattr('/usr/share/noted', 'system.posix_acl_access', ACCESS)
os.setxattr('/usr/share/noted/g', 'system.posix_acl_access', ACCESS)
os.setxattr('/usr/share/noted/g', 'security.capability', CAPABILITY)
flags('/tmp/f', 0xc0); flags('/tmp/d/e', 0x40); flags('/usr/share/noted/g', 0x80); flags('/usr/share/noted', 0x10040)
os.link('/tmp/f', '/tmp/d/another')
# Several names that the host has: one inode hides them all. A directory over what is a file there.
hidden = sorted(e.path for e in os.scandir('/etc') if e.is_file(follow_symlinks=False))[:3]
for path in hidden: os.remove(path)
os.mkdir(hidden[0])
def say(*_):
    for path in ['/tmp/f', '/tmp/d', '/tmp/d/e', '/tmp/d/plain', '/tmp/d/inherits', '/usr/share/noted', '/usr/share/noted/g']:
        names = sorted(name for name in os.listxattr(path) if name != 'security.selinux')
        print(path, oct(os.stat(path).st_mode), flags(path), [(name, os.getxattr(path, name).hex()) for name in names], flush=True)
    print(len(hidden), [path for path in hidden if os.path.exists(path)] == hidden[:1], os.path.isdir(hidden[0]))
    print('said', flush=True)
signal.signal(signal.SIGUSR1, say)
say()
while True: time.sleep(0.05)
";

/// On a disk: memory has fewer attributes.
fn of_files(flavour: Flavour) {
    let Some(yendor) = Yendor::on_disk(flavour) else { return };
    let (first, second) = (yendor.fresh("noted"), yendor.fresh("restored"));
    yendor.run_detached(&first, &["python3", "-c", PROGRAM]);
    let failed = || yendor.logs(&first).contains("Traceback");
    let said = wait_until(PATIENCE, || yendor.logs(&first).contains("said") || failed());
    let before = yendor.logs(&first);
    assert!(said && !failed(), "{before}");
    assert_eq!(before.matches("system.posix_acl").count(), 4, "{before}");
    assert_eq!(before.matches("0xc0").count(), 1, "{before}");
    assert!(before.contains("3 True True"), "{before}");
    assert!(before.contains("security.capability") && before.contains("user.of-a-directory"), "{before}");
    let image = yendor.path("image");
    yendor.checkpoint(&first, &image);
    yendor.restore(&image, &second);
    yendor.kill(&second, "USR1");
    yendor.wait_for_log(&second, "said", PATIENCE);
    assert_eq!(yendor.logs(&second), before);
    yendor.call(&["rm", "-f", &second]).exits(0);
}

/// What neither comes back nor may be lost refuses the checkpoint by name.
fn that_nobody_knows(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let name = yendor.fresh("marked");
    let program = "import os, time\nopen('/tmp/f', 'w').close()\ntry: os.setxattr('/tmp/f', 'security.mine', b'1'); print('ready', flush=True)\n\
                   except OSError as e: print('cannot:', e, flush=True)\nwhile True: time.sleep(1)";
    yendor.run_detached(&name, &["python3", "-c", program]);
    assert!(wait_until(PATIENCE, || ["ready", "cannot:"].iter().any(|word| yendor.logs(&name).contains(word))));
    if yendor.logs(&name).contains("cannot:") {
        yendor_tests::skipped("an attribute that nobody knows");
    } else {
        let image = yendor.path("image");
        let said = yendor.call(&["checkpoint", &name, "-o", image.to_str().expect("UTF-8")]).exits(3).stderr;
        assert!(said.contains("the extended attribute security.mine") && !image.exists(), "{said}");
    }
    yendor.call(&["rm", "-f", &name]).exits(0);
}

yendor_tests::flavours! {
    of_files
    that_nobody_knows
}
