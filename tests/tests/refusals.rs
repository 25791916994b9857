//! Bad images, bad surroundings, bad requests: each is refused by name, with the exit code that says what is true, and
//! nothing is started or left.

use std::fs::{self, OpenOptions};
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use ciborium::Value;
use yendor_tests::{
    Flavour, Forge, Outcome, PATIENCE, Random, Started, Yendor, at, copy_image, forge, lead_a_session, probe, tick_gap,
    wait_until,
};

fn text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are UTF-8")
}

fn start(yendor: &Yendor, name: &str) -> String {
    let container = yendor.fresh(name);
    yendor.run_detached(&container, &[text(&probe(name))]);
    yendor.wait_for_log(&container, "ready", PATIENCE);
    container
}

fn image_of(yendor: &Yendor, name: &str) -> PathBuf {
    let container = start(yendor, name);
    let image = yendor.path("image");
    yendor.checkpoint(&container, &image);
    yendor.call(&["rm", &container]).exits(0);
    image
}

/// Nothing runs and no state is kept.
fn nothing(yendor: &Yendor) {
    let left = yendor.tasks_left();
    assert!(left.is_empty(), "processes are left: {left:?}");
    let run = yendor.path("state/run");
    let left: Vec<_> = fs::read_dir(&run).into_iter().flatten().flatten().map(|entry| entry.file_name()).collect();
    assert!(left.is_empty(), "state is left: {left:?}");
}

/// The restore is refused: this exit code, one of these words, nothing started.
#[track_caller]
fn refused(yendor: &Yendor, image: &Path, code: i32, words: &[&str]) -> Outcome {
    refused_with(yendor, image, &[], code, words)
}

fn refused_with(yendor: &Yendor, image: &Path, options: &[&str], code: i32, words: &[&str]) -> Outcome {
    let container = yendor.fresh("bad");
    let outcome = yendor.restore_with(image, &container, options).exits(code);
    let said = &outcome.stderr;
    assert!(words.iter().any(|word| said.contains(word)), "none of {words:?} in: {said}");
    assert!(!said.contains("panicked"), "{said}");
    nothing(yendor);
    outcome
}

fn files_of(image: &Path) -> Vec<String> {
    let all = fs::read_dir(image).expect("an image").flatten();
    let mut names: Vec<String> = all.map(|entry| entry.file_name().into_string().expect("UTF-8")).collect();
    names.sort();
    names
}

/// Many pages are compared with their digest while tasks read them: a bit that is flipped is found before any task runs.
fn a_damaged_large_image(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let container = yendor.fresh("large");
    let program = "x=$(head -c 20000000 /dev/zero | tr '\\0' x); trap 'echo ${#x}; exit 0' USR1; echo ready
        while :; do sleep 0.02; done";
    yendor.run_detached(&container, &["/bin/bash", "-c", program]);
    yendor.wait_for_log(&container, "ready", PATIENCE);
    let image = yendor.path("image");
    yendor.checkpoint(&container, &image);
    yendor.call(&["rm", &container]).exits(0);
    let pages = OpenOptions::new().write(true).read(true).open(image.join("pages-0")).expect("pages");
    let length = pages.metadata().expect("pages").len();
    assert!(length > 16 << 20, "{length}");
    for at in [0, length / 2, length - 1] {
        let mut byte = [0];
        pages.read_exact_at(&mut byte, at).expect("read");
        pages.write_all_at(&[byte[0] ^ 4], at).expect("write");
        refused(&yendor, &image, 4, &["pages-0"]);
        pages.write_all_at(&byte, at).expect("write");
    }
    let again = yendor.fresh("again");
    yendor.restore(&image, &again);
    yendor.kill(&again, "USR1");
    assert_eq!(yendor.wait(&again), 0);
    assert!(yendor.logs(&again).contains("20000000"));
    yendor.call(&["rm", &again]).exits(0);
}

/// Every file of an image missing, truncated, with a bit flipped, too long, of a version to come: the file and the place in it are named, as
/// fields, too.
fn a_damaged_image(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let mut random = Random::new();
    let good = image_of(&yendor, "eventfd");
    let names = files_of(&good);
    assert!(names.len() >= 4, "{names:?}");
    let (mut number, mut cases) = (0, 0);
    let mut case = |name: &str, damage: &mut dyn FnMut(&Path), words: &[&str]| {
        number += 1;
        let bad = yendor.path(&format!("bad-{number}"));
        copy_image(&good, &bad);
        damage(&bad.join(name));
        let outcome = refused_with(&yendor, &bad, &["--json"], 4, &[name]);
        let said: serde_json::Value = serde_json::from_str(outcome.stderr.trim()).expect("JSON");
        let error = &said["error"];
        let message = error["message"].as_str().unwrap_or_default();
        let word = words.iter().find(|word| message.contains(**word));
        assert!(word.is_some(), "{name}: {words:?}: {said}");
        // A file that is missing is so as a whole.
        let is_missing = word == Some(&"missing");
        assert!(error["file"] == name && error["offset"].is_u64() != is_missing && error["exit_code"] == 4, "{said}");
        if word == Some(&"version") {
            assert_eq!(error["offset"], "yendor image ".len(), "{said}");
        }
        // Who asks makes no difference to these.
        let verbs: &[&str] = if matches!(yendor.flavour(), Flavour::User(_)) { &["inspect", "plan"] } else { &[] };
        for verb in verbs {
            // Both read no page: what is wrong in there only a restore finds.
            let said = yendor.call(&[verb, text(&bad)]);
            assert!(!said.stderr.contains("panicked"), "{verb}: {}", said.stderr);
            let is_unread = said.code == 0 && name.starts_with("pages-");
            assert!(is_unread || said.code == 4 && said.stderr.contains(name), "{verb} of a bad {name}: {said:?}");
        }
        fs::remove_dir_all(&bad).expect("remove an image of our own");
        cases += 1;
    };
    let open = |path: &Path| OpenOptions::new().write(true).read(true).open(path).expect("a file of the image");
    for name in &names {
        let length = fs::metadata(good.join(name)).expect("a file of the image").len();
        case(name, &mut |path| fs::remove_file(path).expect("remove"), &["missing"]);
        case(name, &mut |path| open(path).set_len(0).expect("truncate"), &["byte 0", "missing"]);
        let half = length / 2;
        case(name, &mut |path| open(path).set_len(half).expect("truncate"), &["byte "]);
        case(name, &mut |path| open(path).set_len(length + 1).expect("extend"), &["byte "]);
        case(name, &mut |path| open(path).set_len(1 << 42).expect("extend"), &["byte ", "limit"]);
        case(
            name,
            &mut |path| {
                fs::remove_file(path).expect("remove");
                std::os::unix::fs::symlink(good.join(name), path).expect("symlink");
            },
            &["regular", "link"],
        );
        for at in [0, random.below(length), length - 1] {
            let bit = random.below(8);
            let flip = &mut |path: &Path| {
                let file = open(path);
                let mut byte = [0];
                file.read_exact_at(&mut byte, at).expect("read");
                byte[0] ^= 1 << bit;
                file.write_all_at(&byte, at).expect("write");
            };
            // A digit can become another, which is a version that nobody knows.
            case(name, flip, &["byte", "version"]);
        }
    }
    let future = &mut |path: &Path| fs::write(path, "yendor image 99\n").expect("write");
    case("format", future, &["version"]);
    println!("{cases} damaged images of {names:?}");
    // The good one is one still.
    let container = yendor.fresh("good");
    yendor.restore(&good, &container);
    yendor.kill(&container, "USR1");
    assert_eq!(yendor.wait(&container), 0, "{}", yendor.logs(&container));
}

/// The first task of a foreign tree that has left its pid namespace for its children: a copy of it would be their first process.
fn children_elsewhere(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let mut command = yendor.program(Path::new("/usr/bin/unshare"));
    let program = "import os, time\nlarge = b'x' * (20 << 20)\nprint('ready', flush=True)\nwhile not os.path.exists('go'): \
                   time.sleep(0.01)\npid = os.fork()\nos._exit(0) if pid == 0 else os.waitpid(pid, 0)";
    command.args(["-Urp", "python3", "-c", program]);
    command.stdout(yendor.output("output")).stderr(yendor.output("output"));
    lead_a_session(&mut command);
    let mut started = Started::new(&mut command);
    let said = || fs::read_to_string(yendor.path("output")).unwrap_or_default();
    assert!(wait_until(PATIENCE, || said().contains("ready")), "{}", said());
    let (pid, image) = (started.pid().to_string(), yendor.path("elsewhere"));
    let outcome = yendor.call(&["checkpoint", "--leave-running", "--pid", &pid, "-o", text(&image)]).exits(3);
    assert!(outcome.stderr.contains("namespace of its own for its children"), "{}", outcome.stderr);
    assert!(!image.exists());
    // Had anybody been born and ended there, nobody could be any more.
    fs::write(yendor.path("go"), "").expect("a file of our own");
    assert_eq!(started.ended(PATIENCE).map(Started::code), Some(0), "{}", said());
}

/// The other end of something is held outside: by whom this one is held, and under which number, is told.
#[test]
fn who_holds_what_cannot_be_captured_is_named() {
    let Some(yendor) = Yendor::new(Flavour::user()) else { return };
    let program = "import os, socket, sys, time\nlisten = socket.create_server(('127.0.0.1', 0))\n\
                   ends = {'pipe': os.pipe, 'unix': socket.socketpair, 'tcp': lambda: (socket.create_connection(\
                   listen.getsockname()), listen.accept()[0])}[sys.argv[1]]()\n\
                   number = lambda end: end if isinstance(end, int) else end.fileno()\nos.dup2(number(ends[1]), 77)\n\
                   pid = os.fork()\nif pid == 0:\n  os.setsid()\n  os.closerange(3, 77)\n  print('ready', os.getpid(), flush=True)\n\
                   else: os.closerange(77, 78)\ntime.sleep(600)";
    for what in ["pipe", "unix", "tcp"] {
        let mut command = yendor.program(Path::new("/usr/bin/python3"));
        command.args(["-c", program, what]).stdout(yendor.output(what)).stderr(yendor.output(what));
        command.stdin(std::process::Stdio::null());
        lead_a_session(&mut command);
        let started = Started::new(&mut command);
        let said = || fs::read_to_string(yendor.path(what)).unwrap_or_default();
        assert!(wait_until(PATIENCE, || said().contains("ready")), "{}", said());
        let pid = said().trim().strip_prefix("ready ").expect("a pid").to_owned();
        let image = yendor.path(&format!("image of {what}"));
        let outcome = yendor.call(&["checkpoint", "--pid", &pid, "-o", text(&image)]).exits(3);
        let wanted = format!("(file descriptor 77 of process {pid}, python3)");
        assert!(outcome.stderr.contains(&wanted), "{what}: {}", outcome.stderr);
        drop(started);
    }
}

/// A tree has a file of a FUSE file system, and its server: who asks for the file waits for what is stopped. It was for ever.
#[test]
fn a_server_that_stands_still_is_not_waited_for() {
    const PROGRAM: &str = r"
import ctypes, os, struct, sys, time
libc = ctypes.CDLL(None, use_errno=True)
fuse = os.open('/dev/fuse', os.O_RDWR)
options = f'fd={fuse},rootmode=40000,user_id=0,group_id=0'.encode()
if libc.mount(b'fuse', b'm', b'fuse', 0, options): sys.exit(f'mount: {ctypes.get_errno()}')
def attributes(node):
    mode, size = (0o40755, 0) if node == 1 else (0o100644, 5)
    return struct.pack('<QQQQQQ10I', node, size, 0, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)
def serve():
    while True:
        request = os.read(fuse, 1 << 18)
        _, call, unique, node = struct.unpack_from('<IIQQ', request)
        error, body = 0, b''
        if call == 26: body = struct.pack('<IIIIHHIIHH8I', 7, 31, 4096, 0, 8, 6, 65536, 1, 0, 0, *[0] * 8)[:64]
        elif call == 1: body = struct.pack('<QQQQII', 2, 0, 0, 0, 0, 0) + attributes(2)
        elif call == 3: body = struct.pack('<QII', 0, 0, 0) + attributes(node)
        elif call in (14, 27): body = struct.pack('<QII', 1, 0, 0)
        elif call == 2: continue
        elif call not in (18, 25, 29): error = -38
        os.write(fuse, struct.pack('<IiQ', 16 + len(body), error, unique) + body)
if os.fork() == 0: serve()
os.close(fuse)
held = os.open('m/file', os.O_RDONLY)
if 'jail' in sys.argv:
    # The first that is looked at: from there no other file is to be seen either.
    os.dup2(held, 0)
    os.chroot('jail')
    os.chdir('/')
open('ready', 'w').close()
while True:
    time.sleep(0.05)
    assert os.fstat(held).st_size == 5
    open('alive', 'w').close()
";
    let Some(yendor) = Yendor::new(Flavour::Root) else { return };
    if fs::File::options().read(true).write(true).open("/dev/fuse").is_err() {
        return yendor_tests::skipped("a FUSE server in the tree: /dev/fuse cannot be opened");
    }
    fs::write(yendor.path("program"), PROGRAM).expect("a file");
    let image = yendor.path("image");
    // With a root of its own, from which the mount is not to be seen, and without.
    for jail in ["", "jail"] {
        let script = format!(
            "cd $PLACE; mkdir -p m jail; setsid /usr/bin/python3 program {jail} < /dev/null > said 2>&1 & pid=$!; cd $PLACE
             trap 'kill -9 -$pid; umount -l m' EXIT; for n in $(seq 500); do test -e ./{jail}/ready && break; sleep 0.02; done
             \"$@\" --pid $pid; code=$?; rm -f ./{jail}/alive
             for n in $(seq 500); do test -e ./{jail}/alive && exit $code; sleep 0.02; done
             cat said; exit 99"
        );
        let words = ["checkpoint", "-o", text(&image)];
        let outcome = yendor.to_its_end(yendor.sheltered(&script, &words), format!("a server {jail}"));
        let said = outcome.exits(3).stderr;
        assert!(said.contains("whose server does not answer") && said.contains("(file descriptor "), "{said}");
        let left: Vec<_> = fs::read_dir(yendor.path(".")).expect("ours").flatten().map(|e| e.file_name()).collect();
        assert!(left.iter().all(|name| !name.to_string_lossy().contains("image")), "{left:?}");
    }
}

/// What a task of a foreign tree holds but may not read goes into no image, though root asks for it: it would be read there.
#[test]
fn what_a_task_may_not_read_is_not_read_for_it() {
    let Some(yendor) = Yendor::new(Flavour::Root) else { return };
    let secret = yendor.path("secret");
    fs::write(&secret, "only root's").expect("a file");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).expect("of root alone");
    // What the user's directories let it see is not the question: it goes there before it is one.
    let program = "import os, sys, time\nfd = os.open(sys.argv[1], os.O_PATH)\nos.setgroups([])\nos.setgid(65534)\nos.setuid(65534)\n\
                   print('ready', flush=True)\nwhile True: time.sleep(1)";
    let mut command = yendor.program(Path::new("/usr/bin/python3"));
    command.args(["-c", program, text(&secret)]);
    command.stdout(yendor.output("held")).stderr(yendor.output("held-errors"));
    lead_a_session(&mut command);
    let mut started = Started::new(&mut command);
    let said = || fs::read_to_string(yendor.path("held")).unwrap_or_default();
    assert!(wait_until(PATIENCE, || said().contains("ready")), "{}", said());
    fs::remove_file(&secret).expect("it is replaced");
    let (pid, image) = (started.pid(), yendor.path("held-image"));
    let words = ["checkpoint", "--leave-running", "--pid", &pid.to_string(), "-o", text(&image)];
    let outcome = yendor.call(&words).exits(3);
    assert!(outcome.stderr.contains("secret") && outcome.stderr.contains("may not read"), "{}", outcome.stderr);
    assert!(!image.exists());
    // It is that, and nothing else.
    let through = fs::read_dir(format!("/proc/{pid}/fd")).expect("its descriptors").flatten().map(|entry| entry.path());
    let leads = |path: &PathBuf| fs::read_link(path).is_ok_and(|to| to.starts_with(secret.parent().expect("above")));
    let held = through.filter(leads).find(|path| fs::read_link(path).is_ok_and(|to| text(&to).contains("secret")));
    let held = held.expect("it holds it");
    fs::set_permissions(&held, fs::Permissions::from_mode(0o604)).expect("for everybody");
    // A list of who may access it can say otherwise (acl(5)): tag, rights and id of the owner, user 65534, the group, the mask, others.
    let list = "import os, struct, sys\nentries = (1, 6, -1), (2, 0, 65534), (4, 0, -1), (16, 7, -1), (32, 4, -1)\n\
                acl = struct.pack('<I', 2) + b''.join(struct.pack('<HHi', *entry) for entry in entries)\n\
                os.setxattr(sys.argv[1], 'system.posix_acl_access', acl)";
    let python = |script: &str| {
        std::process::Command::new("python3").args(["-c", script, text(&held)]).status().expect("python3")
    };
    assert!(python(list).success());
    let outcome = yendor.call(&words).exits(3);
    assert!(outcome.stderr.contains("secret") && outcome.stderr.contains("may not read"), "{}", outcome.stderr);
    assert!(python("import os, sys; os.removexattr(sys.argv[1], 'system.posix_acl_access')").success());
    yendor.call(&words).exits(0);
    started.kill();
}

/// Over the place of a mapped file something else is mounted, whose file of this name has the same inode number.
#[test]
fn a_mapped_file_is_no_other_one_of_its_number() {
    let Some(yendor) = Yendor::new(Flavour::Root) else { return };
    let program = "import ctypes, os, sys, time\nlibc = ctypes.CDLL(None)\nlibc.mmap.restype = ctypes.c_void_p\n\
                   fd = os.open('m/f', os.O_RDONLY)\nat = libc.mmap(None, ctypes.c_size_t(4096), 1, 2, fd, ctypes.c_long(0))\n\
                   assert ctypes.string_at(at, 5) == b'first'\nos.close(fd)\nopen('ready', 'w').close()\ntime.sleep(600)";
    fs::write(yendor.path("program"), program).expect("a file");
    let tmpfs = "mount -t tmpfs one m; printf first > m/f";
    let over = "mount -t tmpfs two m; printf other > m/f; test $(stat -c %i m/f) = $number";
    // Of overlay mappings show another device than the file has.
    let overlay = "mount -t tmpfs one up; mkdir low up/u up/w; printf first > low/f; \
                   mount -t overlay -o lowerdir=low,upperdir=up/u,workdir=up/w o m";
    // To open it would wait for a writer of the tree, which is stopped.
    let fifo = "mount -t tmpfs two m; mkfifo m/f";
    for (what, first, then, code) in [
        ("another", tmpfs, over, 3),
        ("a fifo", tmpfs, fifo, 3),
        ("the same", tmpfs, "true", 0),
        ("the same, of overlay", overlay, "true", 0),
    ] {
        let script = format!(
            "cd $PLACE; rm -rf ready low; mkdir -p m up; {first}; number=$(stat -c %i m/f); \
             setsid /usr/bin/python3 program < /dev/null > said 2>&1 & pid=$!; trap 'kill -9 $pid' EXIT; \
             for n in $(seq 500); do test -e ready && break; sleep 0.02; done; {then}; \"$@\" --pid $pid"
        );
        let image = yendor.path(&format!("image of {what}"));
        let words = ["checkpoint", "--leave-running", "-o", text(&image)];
        let outcome = yendor.to_its_end(yendor.sheltered(&script, &words), what.to_owned()).exits(code);
        let is_named = ["m/f", "another file lies at this path"].iter().all(|word| outcome.stderr.contains(word));
        assert_eq!((is_named, image.exists()), (code == 3, code == 0), "{what}: {}", outcome.stderr);
    }
}

/// No image at all, or one of the future.
fn no_image(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    refused(&yendor, &yendor.path("nowhere"), 1, &["there is no image at", "nowhere"]);
    let file = yendor.path("file");
    drop(yendor.output("file"));
    refused(&yendor, &file, 1, &["file is no image directory"]);
    refused(&yendor, &yendor.path("home"), 1, &["home is no image directory"]);
    let future = image_of(&yendor, "eventfd");
    fs::write(future.join("format"), "yendor image 2\n").expect("write");
    let said = refused(&yendor, &future, 4, &["format"]).stderr;
    assert!(said.contains("version 2") && said.contains("up to 1"), "{said}");
    for verb in ["inspect", "plan"] {
        yendor.call(&[verb, text(&future)]).exits(4);
    }
    let container = yendor.fresh("parent");
    yendor.run_detached(&container, &["sleep", "1000"]);
    for name in ["nobody", "nobody@3"] {
        for words in [
            &["restore"][..],
            &["restart"],
            &["rmi"],
            &["inspect"],
            &["plan"],
            &["flatten"],
            &["checkpoint", &container, "--parent"],
        ] {
            let said = yendor.call(&[words, &[name]].concat()).exits(1).stderr;
            assert!(said.contains(&format!("there is no image {name} in the store")), "{words:?}: {said}");
        }
    }
    for (path, words) in
        [("nowhere", "there is no image at"), ("home", "is no image directory"), ("file/x", "there is no image at")]
    {
        for verb in [&["rmi"][..], &["inspect"], &["plan"], &["flatten"], &["checkpoint", &container, "--parent"]] {
            let said = yendor.call(&[verb, &[text(&yendor.path(path))]].concat()).exits(1).stderr;
            assert!(said.contains(words) && !said.contains("damaged"), "{verb:?}: {said}");
        }
    }
}

type Forgery = (&'static str, fn(&mut Value));

/// All digests right, but the records contradict themselves.
const FORGERIES: &[Forgery] = &[
    ("no process", |records| *at(records, &["processes"]) = Value::Array(Vec::new())),
    ("a process twice", |records| twice(at(records, &["processes"]))),
    ("an open file twice", |records| twice(at(records, &["files"]))),
    ("a descriptor of no file", |records| {
        *at(records, &["processes", "0", "state", "alive", "descriptors", "0", "file"]) = 999_999.into();
    }),
    ("a descriptor twice", |records| twice(at(records, &["processes", "0", "state", "alive", "descriptors"]))),
    ("a descriptor below zero", |records| {
        *at(records, &["processes", "0", "state", "alive", "descriptors", "0", "number"]) = (-5).into();
    }),
    ("a parent that is not there", |records| *at(records, &["processes", "0", "parent"]) = 777.into()),
    ("its own parent", |records| {
        let own = at(records, &["processes", "0", "pid"]).clone();
        *at(records, &["processes", "0", "parent"]) = own;
    }),
    ("a pid below zero", |records| *at(records, &["processes", "0", "pid"]) = (-1).into()),
    ("pid zero", |records| *at(records, &["processes", "0", "pid"]) = 0.into()),
    ("no thread", |records| *at(records, &["processes", "0", "state", "alive", "threads"]) = Value::Array(Vec::new())),
    ("a thread twice", |records| twice(at(records, &["processes", "0", "state", "alive", "threads"]))),
    ("an area twice", |records| twice(at(records, &["processes", "0", "state", "alive", "memory", "areas"]))),
    ("a field that nobody knows", |records| {
        if let Value::Map(fields) = records {
            fields.push((Value::Text("more".into()), Value::Null));
        }
    }),
    ("a field missing", |records| {
        if let Value::Map(fields) = records {
            fields.pop();
        }
    }),
];

/// A copy of the last item at the end.
fn twice(list: &mut Value) {
    let items = list.as_array_mut().expect("an array");
    let last = items.last().expect("not empty").clone();
    items.push(last);
}

fn a_contradictory_image(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let good = image_of(&yendor, "eventfd");
    for (number, (what, change)) in FORGERIES.iter().enumerate() {
        println!("{what}");
        let bad = yendor.path(&format!("bad-{number}"));
        copy_image(&good, &bad);
        forge(&bad, change);
        let outcome = refused(&yendor, &bad, 4, &["damaged", "records.cbor"]);
        println!("{}", outcome.stderr);
    }
    // The forger itself does no harm.
    let same = yendor.path("same");
    copy_image(&good, &same);
    forge(&same, |_| {});
    let container = yendor.fresh("same");
    yendor.restore(&same, &container);
    yendor.kill(&container, "USR1");
    assert_eq!(yendor.wait(&container), 0, "{}", yendor.logs(&container));
}

/// Names: unknown, in use, impossible; programs: none, not executable.
fn bad_names(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    for words in [
        &["kill", "nobody"][..],
        &["wait", "nobody"],
        &["rm", "nobody"],
        &["logs", "nobody"],
        &["attach", "nobody"],
        &["exec", "nobody", "--", "true"],
        &["checkpoint", "nobody"],
    ] {
        let said = yendor.call(words).exits(1).stderr;
        assert!(said.contains("no container") && said.contains("nobody"), "{said}");
    }
    yendor.call(&["run", "-d", "--name", "../evil", "--", "true"]).exits(2);
    yendor.call(&["run", "-d"]).exits(2);
    let options = yendor.flavour().options();
    let run = |name: &str, program: &str| yendor.call(&[&["run", "--name", name], options, &["--", program]].concat());
    let said = run("a", "no-such-program").exits(127).stderr;
    assert!(said.contains("no-such-program") && said.contains("not found"), "{said}");
    let said = run("a", "/no/such/program").exits(127).stderr;
    assert!(said.contains("/no/such/program") && said.contains("not found"), "{said}");
    for path in ["/etc/passwd", "/etc"] {
        let said = run("a", path).exits(126).stderr;
        assert!(said.contains(path) && said.contains("not executable"), "{said}");
    }
    nothing(&yendor);
    let container = start(&yendor, "eventfd");
    for name in [&container, &container] {
        let said = yendor.run_detached_with(name, &[], &["true"]).exits(1).stderr;
        assert!(said.contains("in use") && said.contains(name.as_str()), "{said}");
    }
    // The output is taken: by a file, a directory, a link that leads nowhere.
    drop(yendor.output("file"));
    fs::create_dir(yendor.path("directory")).expect("mkdir");
    std::os::unix::fs::symlink("nowhere", yendor.path("link")).expect("symlink");
    for name in ["file", "directory", "link"] {
        let said = yendor.call(&["checkpoint", &container, "-o", text(&yendor.path(name))]).exits(1).stderr;
        assert!(said.contains("exists") && said.contains(name), "{said}");
    }
    let nowhere = yendor.path("nowhere/image");
    let said = yendor.call(&["checkpoint", &container, "-o", text(&nowhere)]).exits(1).stderr;
    assert!(said.contains("nowhere") && said.contains("No such file"), "{said}");
    let said = yendor.call(&["checkpoint", "--pid", "4194303", "-o", text(&nowhere)]).exits(1).stderr;
    assert!(said.contains("4194303"), "{said}");
    yendor.kill(&container, "USR1");
    assert_eq!(yendor.wait(&container), 0, "{}", yendor.logs(&container));
}

/// Somebody else's process.
#[test]
fn another_users_process() {
    let (Some(root), Some(user)) = (Yendor::new(Flavour::Root), Yendor::new(Flavour::user())) else { return };
    let _theirs = Started::new(root.program(Path::new("/bin/sleep")).arg("100"));
    let said = user.call(&["checkpoint", "--pid", &_theirs.pid().to_string(), "-o", text(&user.path("image"))]);
    let said = said.exits(5).stderr;
    assert!(said.contains("Operation not permitted") && said.contains("another user"), "{said}");
    assert!(said.contains("/proc/sys/kernel/yama/ptrace_scope"), "{said}");
    assert!(!user.path("image").exists());
    // And somebody else's container is not even seen.
    let container = start(&root, "eventfd");
    let said = user.call(&["kill", &container]).exits(1).stderr;
    assert!(said.contains("no container"), "{said}");
}

/// `user.max_user_namespaces` is 0: in a user namespace made for this, whose root the caller is.
#[test]
fn no_user_namespaces() {
    let Some(yendor) = Yendor::new(Flavour::user()) else { return };
    let plain = yendor.command(&["run", "-d", "--name", "a", "--", "true"]);
    let mut command = yendor.program(Path::new("/usr/bin/unshare"));
    let script = "echo 0 > /proc/sys/user/max_user_namespaces; exec \"$0\" \"$@\"";
    command.args(["--user", "--map-root-user", "--", "/bin/sh", "-ec", script]);
    command.arg(plain.get_program()).args(plain.get_args());
    let said = yendor.to_its_end(command, "without user namespaces".into()).exits(5).stderr;
    assert!(said.contains("/proc/sys/user/max_user_namespaces"), "{said}");
    nothing(&yendor);
}

/// Only its own id: what takes more says so, the rest works.
#[test]
fn no_subordinate_ids() {
    let Some(yendor) = Yendor::new(Flavour::user()) else { return };
    let hide = "mount -t tmpfs none /mnt; : > /mnt/none
mount --bind /mnt/none /etc/subuid; mount --bind /mnt/none /etc/subgid";
    let Some(outcome) = yendor.call_between(hide, &["run", "--rm", "-u", "5:5", "--", "/usr/bin/id"], "") else {
        return;
    };
    let said = outcome.exits(5).stderr;
    assert!(said.contains("/etc/subgid"), "{said}");
    let outcome = yendor.call_between(hide, &["run", "--rm", "--", "/usr/bin/id", "-u"], "").expect("root").exits(0);
    assert_eq!(outcome.stdout.trim(), "0", "{outcome:?}");
    nothing(&yendor);
}

/// A shell that holds a file open, of which it has read one line, and to which `change` happens. Asked with SIGUSR1, it reads
/// the next line, and writes one.
fn holder(file: &str, change: &str) -> String {
    format!(
        "printf 'one\\ntwo\\nthree\\n' > {file}; exec 3<>{file}; read -r -u 3 line; [ \"$line\" = one ] || echo FAIL: $line
        {change}
        check() {{
            read -r -u 3 line; [ \"$line\" = two ] || {{ echo \"FAIL: second line $line\"; exit 1; }}
            read -r -u 3 line; [ \"$line\" = three ] || {{ echo \"FAIL: third line $line\"; exit 1; }}
            echo four >&3 || {{ echo 'FAIL: write'; exit 1; }}
            echo ok; exit 0
        }}
        trap check USR1; echo ready; while :; do sleep 0.02; done"
    )
}

/// An open file loses its mode, its name, or its name to another file: who has it open still has it after a restore.
fn held_files(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let changes = [
        ("mode 000", "chmod 000 /tmp/held"),
        ("deleted", "rm /tmp/held"),
        ("replaced by a longer one", "yes longer | head -c 5000 > /tmp/other; mv /tmp/other /tmp/held"),
        ("replaced by a shorter one", "printf x > /tmp/other; mv /tmp/other /tmp/held"),
        ("renamed", "mv /tmp/held /tmp/elsewhere"),
        (
            "mode 000 in a directory of mode 000",
            "chmod 000 /tmp/held; mkdir /tmp/d; mv /tmp/held /tmp/d; chmod 000 /tmp/d",
        ),
    ];
    for (number, (what, change)) in changes.iter().enumerate() {
        // As the container's root, then as somebody whom modes bind.
        for user in [&[][..], &["-u", "1000:1000"]] {
            println!("{what} {user:?}");
            let container = yendor.fresh("held");
            let script = holder("/tmp/held", change);
            yendor.run_detached_with(&container, user, &["/bin/bash", "-c", &script]).exits(0);
            yendor.wait_for_log(&container, "ready", PATIENCE);
            let image = yendor.path(&format!("image-{number}-{}", user.len()));
            yendor.checkpoint(&container, &image);
            let again = yendor.fresh("held");
            yendor.restore(&image, &again);
            yendor.kill(&again, "USR1");
            let code = yendor.wait(&again);
            assert_eq!(code, 0, "{what} {user:?}: {}", yendor.logs(&again));
            for name in [&container, &again] {
                yendor.call(&["rm", name]).exits(0);
            }
        }
    }
}

/// A file of the caller's own, which no image carries, changes between checkpoint and restore: shorter, gone, or of another
/// kind is refused by name; longer, as logs get, is not.
fn changed_files(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let file = yendor.path("tmp/held");
    let script = holder(text(&file), ":");
    let mut command = yendor.program(Path::new("/bin/bash"));
    command.args(["-c", &script]).stdout(yendor.output("output")).stderr(yendor.output("errors"));
    let mut started = Started::new(&mut command);
    let said = || fs::read_to_string(yendor.path("output")).unwrap_or_default();
    assert!(wait_until(PATIENCE, || said().contains("ready")), "{}", said());
    let image = yendor.path("image");
    yendor.checkpoint_pid(started.pid(), &image);
    assert!(started.ended(PATIENCE).is_some());
    let good = fs::read(&file).expect("the file");
    // In place: a file of the test's own would belong to somebody else.
    let write = |content: &[u8]| fs::write(&file, content).expect("write");
    write(b"one\ntwo\n");
    let outcome = yendor.restore_with(&image, &yendor.fresh("shorter"), &[]).exits(5);
    assert!(outcome.stderr.contains(text(&file)) && outcome.stderr.contains("bytes"), "{}", outcome.stderr);
    fs::remove_file(&file).expect("remove");
    let outcome = yendor.restore_with(&image, &yendor.fresh("gone"), &[]).exits(5);
    assert!(outcome.stderr.contains(text(&file)) && outcome.stderr.contains("No such file"), "{}", outcome.stderr);
    fs::create_dir(&file).expect("mkdir");
    let outcome = yendor.restore_with(&image, &yendor.fresh("kind"), &[]).exits(5);
    assert!(outcome.stderr.contains(text(&file)), "{outcome:?}");
    fs::remove_dir(&file).expect("rmdir");
    nothing(&yendor);
    drop(yendor.output("tmp/held"));
    write(&[&good[..], b"more\n"].concat());
    let again = yendor.fresh("longer");
    yendor.restore(&image, &again);
    yendor.kill(&again, "USR1");
    assert_eq!(yendor.wait(&again), 0, "{}", said());
}

/// A tree whose session has no id inside its pid namespace, as in a job of a container engine: it gets one of its own.
#[test]
fn a_session_from_outside() {
    let Some(yendor) = Yendor::new(Flavour::Root) else { return };
    let program = "where() { read -r _ _ _ _ group session _ </proc/$$/stat; echo \"$1 $group $session\"; }
        trap 'where after; exit 7' USR1; where before; while :; do sleep 0.02; done";
    fs::write(yendor.path("program"), program).expect("write a file of our own");
    let script = "exec unshare --pid --fork --kill-child --mount-proc -- /bin/bash -euc '
        bash program >said & program=$!
        until grep -q before said; do sleep 0.05; done
        \"$@\" checkpoint --pid $program -o image
        \"$@\" restore --detach --name inner ./image
        \"$@\" kill --signal USR1 inner
        code=0; \"$@\" wait inner || code=$?
        \"$@\" rm inner
        cat said; exit $code' bash \"$@\"";
    let outcome = yendor.to_its_end(yendor.sheltered(script, &[]), "a job of an engine".into()).exits(7);
    let ids: Vec<_> = outcome.stdout.lines().filter_map(|line| line.split_once(' ')).collect();
    let [("before", "0 0"), ("after", after)] = ids[..] else { panic!("{outcome:?}") };
    let after: Vec<i32> = after.split(' ').flat_map(str::parse).collect();
    assert!(after.len() == 2 && after[0] > 1 && after[0] == after[1], "{outcome:?}");
}

/// A process whose first thread has ended and whose others have not is not taken for one that has ended.
fn headless(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let program = "import ctypes, os, sys, threading, time
def tick():
    for n in range(1, 600): os.write(1, b'tick %d\\n' % n); time.sleep(0.05)
if sys.argv[1] == 'main' or os.fork() == 0:
    threading.Thread(target=tick).start()
    ctypes.CDLL(None).syscall(60, 0)
time.sleep(30)";
    for who in ["main", "child"] {
        let container = yendor.fresh(who);
        yendor.run_detached(&container, &["/usr/bin/python3", "-c", program, who]);
        yendor.wait_for_log(&container, "tick 2", PATIENCE);
        let image = yendor.path("image");
        let refused = yendor.call(&["checkpoint", &container, "-o", text(&image)]).exits(3);
        assert!(refused.stderr.contains("whose first thread has ended"), "{}", refused.stderr);
        assert!(!image.exists(), "half an image is left");
        let ticks = yendor.logs(&container).lines().count();
        yendor.wait_for_log(&container, &format!("tick {}", ticks + 5), PATIENCE);
        assert_eq!(tick_gap(&yendor.logs(&container)), None);
    }
}

/// The disk is full: the application runs on, and nothing is left that could be taken for an image.
fn a_full_disk(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let container = start(&yendor, "ticker");
    let place = yendor.path("full");
    fs::create_dir(&place).expect("mkdir");
    for size in ["16k", "64k", "700k"] {
        for more in [&["--leave-running"][..], &[]] {
            let list = yendor.path("list");
            let before = format!("mount -t tmpfs -o size={size},mode=777 none {}", text(&place));
            let after = format!("ls -A {} > {}", text(&place), text(&list));
            let image = place.join("image");
            let words = [&["checkpoint", &container, "-o", text(&image)], more].concat();
            let Some(outcome) = yendor.call_between(&before, &words, &after) else { return };
            let said = outcome.exits(1).stderr;
            assert!(said.contains("No space left"), "{said}");
            assert_eq!(fs::read_to_string(&list).expect("a list").trim(), "", "something is left");
            let ticks = || yendor.logs(&container).lines().count();
            let now = ticks();
            assert!(wait_until(PATIENCE, || ticks() > now), "the container does not go on");
        }
    }
    yendor.kill(&container, "USR1");
    assert_eq!(yendor.wait(&container), 0, "{}", yendor.logs(&container));
    assert_eq!(tick_gap(&yendor.logs(&container)), None);
}

/// A tree has its caller's root: where an image says that a volume was, nothing is made there behind the caller's back.
fn volumes_in_the_callers_own_root(flavour: Flavour) {
    let Some(yendor) = Yendor::new(flavour) else { return };
    let mut command = yendor.program(Path::new("/usr/bin/sleep"));
    command.arg("1000").stdout(yendor.output("output")).stderr(yendor.output("errors"));
    lead_a_session(&mut command);
    let mut started = Started::new(&mut command);
    let taken = yendor.path("image");
    yendor.checkpoint_pid(started.pid(), &taken);
    assert!(started.ended(PATIENCE).is_some());
    let place = yendor.path("home/made/here");
    let mut forged = Forge::open(&taken);
    let inside = Value::Bytes(text(&place).into());
    let volume = [("name", "data".into()), ("inside", inside), ("read_only", Value::Bool(false))];
    let volume = volume.map(|(name, value): (&str, Value)| (name.into(), value));
    forged.list("container/volumes").push(Value::Map(volume.into()));
    let image = yendor.path("forged");
    forged.write(&image);
    yendor.give(&image);
    let given = format!("data={}", yendor.path("data").display());
    let outcome = yendor.restore_with(&image, &yendor.fresh("made"), &["--rootfs", "/", "--volume", &given]).exits(5);
    assert!(outcome.stderr.contains(&format!("mkdir {}", text(&place))), "{}", outcome.stderr);
    assert!(!yendor.path("home/made").exists(), "a directory was made in the caller's own root");
    nothing(&yendor);
}

/// Whoever has taken a port since is named by it, with what to do.
fn a_port_that_is_taken_is_named(flavour: Flavour) {
    const PROGRAM: &str = "
import os, socket, time
sockets = []
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
    one = socket.socket(socket.AF_INET, kind)
    one.bind(('127.0.0.1', int(os.environ['PORT'])))
    if kind == socket.SOCK_STREAM: one.listen()
    sockets.append(one)
print('ready', flush=True)
time.sleep(1000)
";
    let Some(yendor) = Yendor::new(flavour) else { return };
    // One that is free in both protocols.
    let free = || {
        let stream = TcpListener::bind(("127.0.0.1", 0)).ok()?;
        let port = stream.local_addr().ok()?.port();
        UdpSocket::bind(("127.0.0.1", port)).ok().map(|_| port)
    };
    let port = (0..100).find_map(|_| free()).expect("a free port");
    let (name, environment) = (yendor.fresh("port"), format!("PORT={port}"));
    let options = ["--net", "host", "-e", &environment];
    yendor.run_detached_with(&name, &options, &["python3", "-c", PROGRAM]).exits(0);
    yendor.wait_for_log(&name, "ready", PATIENCE);
    let image = yendor.path("image");
    yendor.checkpoint(&name, &image);
    yendor.call(&["rm", &name]).exits(0);
    let restored = yendor.fresh("port");
    let refused = |taken: &str| {
        let refused = yendor.restore_with(&image, &restored, &["--net", "host"]).exits(1);
        let words =
            [&format!("127.0.0.1:{port}")[..], "hint: something else on this host has the address", "--net private"];
        words.iter().for_each(|word| assert!(refused.stderr.contains(word), "{taken}: no {word}: {}", refused.stderr));
        nothing(&yendor);
    };
    let stream = TcpListener::bind(("127.0.0.1", port)).expect("nobody else has it");
    refused("tcp");
    drop(stream);
    let datagrams = UdpSocket::bind(("127.0.0.1", port)).expect("nobody else has it");
    refused("udp");
    yendor.restore_with(&image, &restored, &["--net", "private"]).exits(0);
    yendor.call(&["rm", "-f", &restored]).exits(0);
    drop(datagrams);
    yendor.restore_with(&image, &restored, &["--net", "host"]).exits(0);
    yendor.call(&["rm", "-f", &restored]).exits(0);
}

/// A lock of a file that the container shares with the host.
fn a_lock_that_somebody_else_holds_is_named(flavour: Flavour) {
    const PROGRAM: &str = "
import fcntl, os, struct, sys, time
kind = sys.argv[1]
fd = os.open(sys.argv[2], os.O_RDWR)
if kind == 'flock': fcntl.flock(fd, fcntl.LOCK_EX)
if kind == 'range': fcntl.lockf(fd, fcntl.LOCK_EX, 10, 5)
if kind == 'description': fcntl.fcntl(fd, 37, struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, 5, 10, 0))
print('ready', flush=True)
time.sleep(1000)
";
    const INSIDE: &str = "/shared/locked file";
    let Some(yendor) = Yendor::new(flavour) else { return };
    let path = yendor.path("tmp/locked file");
    fs::write(&path, "0123456789 and more").expect("a file of our own");
    yendor.owns(&path);
    let hole = format!("shared={}", text(&yendor.path("tmp")));
    for kind in ["flock", "range", "description"] {
        let (name, image, said) = (yendor.fresh("lock"), yendor.path(kind), format!("holder-{kind}"));
        let options = ["--volume", &format!("{hole}:/shared")];
        yendor.run_detached_with(&name, &options, &["python3", "-c", PROGRAM, kind, INSIDE]).exits(0);
        yendor.wait_for_log(&name, "ready", PATIENCE);
        yendor.checkpoint(&name, &image);
        yendor.call(&["rm", &name]).exits(0);
        let mut holder = yendor.program(Path::new("python3"));
        holder.args(["-c", PROGRAM, kind, text(&path)]).stdout(yendor.output(&said));
        let holder = Started::new(&mut holder);
        let holds = || fs::read_to_string(yendor.path(&said)).is_ok_and(|said| said.contains("ready"));
        assert!(wait_until(PATIENCE, holds), "{kind}: nobody holds the lock");
        let restored = yendor.fresh("lock");
        let refused = yendor.restore_with(&image, &restored, &["--volume", &hole]).exits(1);
        for word in [INSIDE, "hint: somebody else holds a lock of this file"] {
            assert!(refused.stderr.contains(word), "{kind}: no {word}: {}", refused.stderr);
        }
        drop(holder);
        yendor.restore_with(&image, &restored, &["--volume", &hole]).exits(0);
        yendor.call(&["rm", "-f", &restored]).exits(0);
    }
}

yendor_tests::flavours! {
    a_port_that_is_taken_is_named
    a_lock_that_somebody_else_holds_is_named
    volumes_in_the_callers_own_root
    children_elsewhere
    a_damaged_image
    a_damaged_large_image
    no_image
    a_contradictory_image
    bad_names
    a_full_disk
    headless
    held_files
    changed_files
}
