//! What reads an image can do nothing else: seen from outside, while it reads.
#![allow(unsafe_code)]

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use ciborium::Value;
use yendor_tests::{Flavour, Forge, PATIENCE, Started, Yendor, skipped, wait_until};

const SHORT: Duration = Duration::from_secs(20);

/// A good image with much to read.
fn long_image(yendor: &Yendor) -> std::path::PathBuf {
    let name = yendor.fresh("long");
    yendor.run_detached(&name, &["sleep", "1000"]);
    let image = yendor.path("image");
    yendor.checkpoint(&name, &image);
    let mut forge = Forge::open(&image);
    let entry = || Value::Array(vec!["nothing".into(), "x".repeat(200).into()]);
    forge.list("lost").extend(std::iter::repeat_with(entry).take(100_000));
    let long = yendor.path("long");
    forge.write(&long);
    yendor.give(&long);
    long
}

fn text(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn field(status: &str, name: &str) -> String {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_default().trim().to_owned()
}

/// The process of this test that reads an image, stopped while it does; its parent is the front or it is not.
fn stopped_loader(yendor: &Yendor, front: i32, of_the_front: bool) -> i32 {
    let mut found = None;
    let caught = wait_until(SHORT, || {
        let is_loader = |pid: &i32| {
            let status = text(&format!("/proc/{pid}/status"));
            // With its filter, so that it is past what it does before the first byte.
            let parent = (field(&status, "PPid") == front.to_string()) == of_the_front;
            field(&status, "Name") == "yendor-load" && field(&status, "Seccomp") == "2" && parent
        };
        found = yendor.tasks_left().into_iter().find(is_loader);
        found.is_some()
    });
    assert!(caught, "no loader in {SHORT:?}");
    let pid = found.expect("just found");
    // SAFETY: a process of this test.
    unsafe { libc::kill(pid, libc::SIGSTOP) };
    let stopped = wait_until(SHORT, || field(&text(&format!("/proc/{pid}/status")), "State").starts_with('T'));
    assert!(stopped, "{}", text(&format!("/proc/{pid}/status")));
    pid
}

fn go_on(pid: i32) {
    // SAFETY: a process of this test.
    unsafe { libc::kill(pid, libc::SIGCONT) };
}

/// No right, no descriptor but three files of the image and two pipes, and the filter.
fn has_nothing(pid: i32, image: &Path, userns: bool) {
    let (files, pipes) = has_no_right(pid, userns);
    let expected = ["format", "manifest.json", "records.cbor"].map(|f| image.join(f).to_string_lossy().into_owned());
    assert_eq!((files.as_slice(), pipes), (&expected[..], 2));
}

/// No right, and the filter. Its files and how many pipes it has.
fn has_no_right(pid: i32, userns: bool) -> (Vec<String>, usize) {
    let status = text(&format!("/proc/{pid}/status"));
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(&status, set), "0000000000000000", "{set}\n{status}");
    }
    assert_eq!((field(&status, "NoNewPrivs"), field(&status, "Seccomp")), ("1".into(), "2".into()), "{status}");
    let ids = field(&status, "Uid");
    assert!(ids.split_whitespace().all(|id| id != "0"), "root's id: {status}");
    let mut open: Vec<String> = fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("fd")
        .flatten()
        .map(|fd| fs::read_link(fd.path()).expect("readlink").to_string_lossy().into_owned())
        .collect();
    open.sort_unstable();
    let (pipes, files): (Vec<_>, Vec<_>) = open.into_iter().partition(|link| link.starts_with("pipe:"));
    let own = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/user")).expect("ns/user");
    assert_eq!(own(&pid.to_string()) != own("self"), userns, "user namespace");
    (files, pipes.len())
}

fn flavours() -> Vec<Yendor> {
    // SAFETY: no arguments, cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        skipped("a look at a process that is not dumpable");
        return Vec::new();
    }
    [Flavour::Root, Flavour::RootUserns, Flavour::user()].into_iter().filter_map(Yendor::new).collect()
}

#[test]
fn the_loader_of_a_restore_has_nothing_but_the_image() {
    for yendor in flavours() {
        let image = long_image(&yendor);
        let name = yendor.fresh("restored");
        let words = ["restore", "-d", "--name", &name, image.to_str().expect("UTF-8")];
        let words = [&words[..1], yendor.flavour().options(), &words[1..]].concat();
        let mut command = yendor.command(&words);
        let errors = yendor.output("errors");
        let mut restore = Started::new(command.stdout(Stdio::null()).stderr(errors));
        yendor.will_remove(&name);
        let loader = stopped_loader(&yendor, restore.pid(), false);
        has_nothing(loader, &image, *yendor.flavour() != Flavour::Root);
        let keeper = field(&text(&format!("/proc/{loader}/status")), "PPid").parse().expect("a pid");
        let user = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/user")).expect("ns/user");
        assert_eq!(user(loader), user(keeper), "the container's user namespace");
        go_on(loader);
        let status = restore.ended(PATIENCE).expect("it ends");
        assert!(status.success(), "{}", fs::read_to_string(yendor.path("errors")).unwrap_or_default());
        yendor.call(&["rm", "--force", &name]).exits(0);
    }
}

#[test]
fn whoever_only_looks_reads_in_the_same_way() {
    for yendor in flavours().into_iter().filter(|y| *y.flavour() != Flavour::Root) {
        let image = long_image(&yendor);
        // A tree is read by the front, too: it decides about root and network.
        let tree = yendor.path("tree");
        Forge { kind: "tree".into(), ..Forge::open(&image) }.write(&tree);
        yendor.give(&tree);
        for (verb, image) in [("inspect", &image), ("plan", &image), ("restore", &tree)] {
            let mut command = yendor.command(&[verb, image.to_str().expect("UTF-8")]);
            let mut looks = Started::new(command.stdout(Stdio::null()).stderr(Stdio::null()));
            let loader = stopped_loader(&yendor, looks.pid(), true);
            has_nothing(loader, image, true);
            go_on(loader);
            if verb == "restore" {
                // What becomes of it is another matter: the records are those of a container.
                drop(looks);
                continue;
            }
            assert!(looks.ended(PATIENCE).expect("it ends").success(), "{verb}");
        }
    }
}

/// The one that has a secret key, while it waits for it: the file is a FIFO.
#[test]
fn what_decrypts_an_image_has_nothing_but_its_files_and_the_keys() {
    use age::secrecy::ExposeSecret;
    use std::io::Write;
    for yendor in flavours() {
        let key = age::x25519::Identity::generate();
        let (container, image, fifo) = (yendor.fresh("secret"), yendor.path("image"), yendor.path("fifo"));
        yendor.run_detached(&container, &["sleep", "1000"]);
        let (to, at) = (key.to_public().to_string(), image.to_str().expect("UTF-8"));
        yendor.call(&["checkpoint", &container, "-o", at, "--encrypt-to", &to]).exits(0);
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().expect("mkfifo").success());
        yendor.owns(&fifo);
        let mut keys = fs::OpenOptions::new().read(true).write(true).open(&fifo).expect("our own FIFO");
        let name = yendor.fresh("restored");
        let words = ["restore", "-d", "--name", &name, at, "--identity", fifo.to_str().expect("UTF-8")];
        let words = [&words[..1], yendor.flavour().options(), &words[1..]].concat();
        let mut command = yendor.command(&words);
        let mut restore = Started::new(command.stdout(Stdio::null()).stderr(yendor.output("errors")));
        yendor.will_remove(&name);
        let mut decryptor = 0;
        let waits = wait_until(SHORT, || {
            let holds = |pid: &i32| {
                let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
                let mut links = open.filter_map(|fd| fs::read_link(fd.path()).ok());
                let status = text(&format!("/proc/{pid}/status"));
                field(&status, "Name") == "yendor-load" && field(&status, "Seccomp") == "2" && links.any(|l| l == fifo)
            };
            decryptor = yendor.tasks_left().into_iter().find(holds).unwrap_or_default();
            decryptor != 0
        });
        assert!(waits, "{}", fs::read_to_string(yendor.path("errors")).unwrap_or_default());
        let (files, pipes) = has_no_right(decryptor, true);
        let mut expected =
            vec!["/memfd:yendor-image (deleted)".to_owned(); fs::read_dir(&image).expect("it").count() - 2];
        expected.push(fifo.to_string_lossy().into_owned());
        let stored =
            fs::read_dir(&image).expect("it").flatten().map(|entry| entry.path().to_string_lossy().into_owned());
        expected.extend(stored.filter(|path| path.ends_with(".age")));
        expected.sort_unstable();
        assert_eq!((files, pipes), (expected, 3));
        keys.write_all(key.to_string().expose_secret().as_bytes()).expect("write");
        drop(keys);
        let status = restore.ended(PATIENCE).expect("it ends");
        assert!(status.success(), "{}", fs::read_to_string(yendor.path("errors")).unwrap_or_default());
        yendor.call(&["rm", "--force", &name]).exits(0);
    }
}

/// Whoever stops it, kills it: nothing is restored, and not the image is to blame.
#[test]
fn a_loader_that_dies_ends_the_restore() {
    for yendor in flavours() {
        let image = long_image(&yendor);
        let words = ["restore", "-d", image.to_str().expect("UTF-8")];
        let words = [&words[..1], yendor.flavour().options(), &words[1..]].concat();
        let mut command = yendor.command(&words);
        let mut restore = Started::new(command.stdout(Stdio::null()).stderr(yendor.output("errors")));
        let loader = stopped_loader(&yendor, restore.pid(), false);
        // SAFETY: a process of this test.
        unsafe { libc::kill(loader, libc::SIGKILL) };
        let code = Started::code(restore.ended(PATIENCE).expect("it ends"));
        let said = fs::read_to_string(yendor.path("errors")).unwrap_or_default();
        assert_eq!(code, 1, "{said}");
        assert!(said.contains("the process that reads the image was killed"), "{said}");
        assert_eq!(yendor.tasks_left(), [] as [i32; 0]);
    }
}

/// The process of this test without rights that reads this file.
fn reader_of(yendor: &Yendor, path: &Path) -> Option<i32> {
    let reads = |pid: &i32| {
        let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        field(&text(&format!("/proc/{pid}/status")), "Name") == "yendor-load"
            && open.filter_map(|fd| fs::read_link(fd.path()).ok()).any(|link| link == path)
    };
    yendor.tasks_left().into_iter().find(reads)
}

/// Adds a file of pages to an image that nobody reads to its end: 16 TiB of holes. Not where files cannot have them.
fn endless(image: &Path, name: &str) -> bool {
    let file = fs::File::create(image.join(name)).expect("create");
    file.set_len(16 << 40).is_ok()
}

/// Whoever has asked for a restore can end it, as long as an image takes to be read.
#[test]
fn nobody_reads_an_image_any_more_when_the_front_is_dead() {
    for yendor in flavours() {
        let long = long_image(&yendor);
        // With a file that takes hours to be compared: by a process of its own, or, as it has no blocks, by the keeper.
        let listed = yendor.path("listed");
        Forge::open(&long).write(&listed);
        if !endless(&listed, "pages-1") {
            return skipped("files of 16 TiB");
        }
        Forge::list_also(&listed, &[("pages-1".into(), 16 << 40, "0".repeat(64))]);
        yendor.give(&listed);
        let lazy = *yendor.flavour() == Flavour::RootUserns && Path::new("/dev/userfaultfd").exists();
        for (image, what) in [(&long, "loader"), (&listed, "hashing"), (&listed, "keeper")] {
            if what == "keeper" && !lazy {
                continue;
            }
            let name = yendor.fresh("restored");
            let options: &[&str] = if what == "keeper" { &["--lazy"] } else { &[] };
            let words = ["restore", "-d", "--name", &name, image.to_str().expect("UTF-8")];
            let words = [&words[..1], options, yendor.flavour().options(), &words[1..]].concat();
            let mut command = yendor.command(&words);
            let mut front = Started::new(command.stdout(Stdio::null()).stderr(yendor.output("errors")));
            yendor.will_remove(&name);
            if what == "loader" {
                stopped_loader(&yendor, front.pid(), false);
            } else {
                let pages = image.join("pages-1");
                let begun = || what == "keeper" || reader_of(&yendor, &pages).is_some();
                assert!(wait_until(SHORT, begun), "{what}: nobody reads {}", pages.display());
                // Until nothing but that is left to do.
                std::thread::sleep(Duration::from_secs(1));
            }
            if what == "hashing" {
                let hasher = reader_of(&yendor, &image.join("pages-1")).expect("it reads");
                // What compares reads content, too, and has no more than what parses.
                let (files, pipes) = has_no_right(hasher, *yendor.flavour() != Flavour::Root);
                assert!(files.iter().all(|file| file.starts_with(&*image.to_string_lossy())), "{files:?}");
                assert!(pipes <= 2, "{pipes} pipes");
            }
            assert!(front.ended(Duration::ZERO).is_none(), "{what}: {}", text(yendor.path("errors").to_str().unwrap()));
            front.kill();
            let gone = wait_until(Duration::from_secs(5), || yendor.tasks_left().is_empty());
            assert!(gone, "{what}: {:?}", yendor.tasks_left());
        }
    }
}

#[test]
fn what_is_no_file_of_an_image_is_not_read() {
    for yendor in flavours() {
        let name = yendor.fresh("small");
        yendor.run_detached(&name, &["sleep", "1000"]);
        let image = yendor.path("image");
        yendor.checkpoint(&name, &image);
        if !endless(&image, "pages-1") {
            return skipped("files of 16 TiB");
        }
        yendor.give(&image);
        let name = yendor.fresh("restored");
        let mut command = yendor.command(
            &[&["restore", "-d", "--name", &name], yendor.flavour().options(), &[image.to_str().expect("UTF-8")]]
                .concat(),
        );
        let mut restore = Started::new(command.stdout(Stdio::null()).stderr(yendor.output("errors")));
        yendor.will_remove(&name);
        let ended = restore.ended(SHORT).unwrap_or_else(|| panic!("it reads still after {SHORT:?}"));
        assert!(ended.success(), "{}", text(yendor.path("errors").to_str().expect("UTF-8")));
        assert_eq!(reader_of(&yendor, &image.join("pages-1")), None);
        yendor.call(&["rm", "--force", &name]).exits(0);
    }
}
