//! Images at rest that only some can read: `checkpoint --encrypt-to`, `restore --identity`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use age::secrecy::ExposeSecret;
use yendor_tests::{Flavour, PATIENCE, Yendor, copy_image, probe, wait_until};

struct Key {
    recipient: String,
    secret: String,
    file: PathBuf,
}

impl Key {
    fn new(yendor: &Yendor, name: &str) -> Key {
        let identity = age::x25519::Identity::generate();
        let (recipient, file) = (identity.to_public().to_string(), yendor.path(&format!("{name}.key")));
        let secret = identity.to_string().expose_secret().to_owned();
        fs::write(&file, format!("# public key: {recipient}\n{secret}\n")).expect("write");
        fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).expect("chmod");
        yendor.owns(&file);
        Key { recipient, secret, file }
    }

    fn identity(&self) -> [&str; 2] {
        ["--identity", utf8(&self.file)]
    }
}

fn utf8(path: &Path) -> &str {
    path.to_str().expect("paths of tests are UTF-8")
}

fn both() -> impl Iterator<Item = Yendor> {
    [Flavour::RootUserns, Flavour::user()].into_iter().filter_map(Yendor::new)
}

/// An image of a program, encrypted to these.
fn image(yendor: &Yendor, name: &str, program: &[&str], to: &[&Key]) -> PathBuf {
    let container = yendor.fresh(name);
    yendor.run_detached(&container, program);
    if program.len() == 1 {
        yendor.wait_for_log(&container, "ready", PATIENCE);
    }
    let image = yendor.path(name);
    let to: Vec<&str> = to.iter().flat_map(|key| ["--encrypt-to", &key.recipient]).collect();
    yendor.call(&[&["checkpoint", &container, "-o", utf8(&image)], &to[..]].concat()).exits(0);
    assert!(yendor.tasks_left().is_empty());
    image
}

/// Restores and removes: the exit code and what was said. Nothing is left.
fn restore(yendor: &Yendor, image: &Path, options: &[&str]) -> (i32, String) {
    let name = yendor.fresh("restored");
    let outcome = yendor.restore_with(image, &name, options);
    yendor.call(&["rm", "--force", &name]);
    assert!(yendor.tasks_left().is_empty());
    (outcome.code, outcome.stdout + &outcome.stderr)
}

/// A probe that has files, deleted ones, shared memory or System V objects finds all as it was, through an encrypted image.
fn survives(name: &str) {
    let program = probe(name);
    for yendor in both() {
        let key = Key::new(&yendor, "key");
        let image = image(&yendor, "image", &[utf8(&program)], &[&key]);
        let restored = yendor.fresh(name);
        yendor.restore_with(&image, &restored, &key.identity()).exits(0);
        yendor.kill(&restored, "USR1");
        assert_eq!(yendor.wait(&restored), 0, "{}", yendor.logs(&restored));
    }
}

/// Its keys open an image, and it reads what is in one.
#[test]
fn the_tool_of_the_format_agrees() {
    if !Path::new("/usr/bin/age").exists() {
        return yendor_tests::skipped("encryption by the tool itself: there is no age");
    }
    for yendor in both() {
        let file = yendor.path("tool.key");
        let made = Command::new("age-keygen").arg("-o").arg(&file).output().expect("age-keygen");
        assert!(made.status.success(), "{made:?}");
        yendor.owns(&file);
        let text = fs::read_to_string(&file).expect("a key");
        let line = |start| text.lines().find_map(|line| line.strip_prefix(start)).expect("a line of a key");
        let (recipient, secret) = (line("# public key: ").to_owned(), line("AGE-SECRET-KEY").to_owned());
        let key = Key { recipient, secret, file };
        let image = image(&yendor, "image", &["sleep", "1000"], &[&key]);
        let records =
            Command::new("age").args(["-d", "-i", utf8(&key.file)]).arg(image.join("records.cbor.age")).output();
        let records = records.expect("age");
        assert!(records.status.success(), "{}", String::from_utf8_lossy(&records.stderr));
        let records: ciborium::Value = ciborium::from_reader(&records.stdout[..]).expect("records");
        assert!(records.is_map(), "{records:?}");
        let (code, said) = restore(&yendor, &image, &key.identity());
        assert_eq!(code, 0, "{said}");
    }
}

#[test]
fn memory_comes_back() {
    survives("anon-memory");
}

#[test]
fn shared_memory_comes_back() {
    survives("shared-memory");
}

#[test]
fn files_come_back() {
    survives("regular");
}

#[test]
fn sealed_files_come_back() {
    survives("sealed");
}

/// More files than go with one message, and than the caller may usually have open.
#[test]
fn an_image_of_many_files_comes_back() {
    let program = "import os, time\n\
        for i in range(300):\n    os.write(os.memfd_create(str(i)), b'content %d' % i)\n\
        print('ready', flush=True)\nwhile True: time.sleep(1)";
    for yendor in both() {
        let (key, container) = (Key::new(&yendor, "key"), yendor.fresh("many"));
        if yendor.call(&["run", "--rm", "--", "python3", "-c", ""]).code != 0 {
            yendor_tests::skipped("a program with many files: there is no python3");
            return;
        }
        yendor.run_detached(&container, &["python3", "-c", program]);
        yendor.wait_for_log(&container, "ready", PATIENCE);
        let image = yendor.path("image");
        yendor.call(&["checkpoint", &container, "-o", utf8(&image), "--encrypt-to", &key.recipient]).exits(0);
        assert!(fs::read_dir(&image).expect("an image").count() > 300);
        let name = yendor.fresh("restored");
        yendor.will_remove(&name);
        let asked = ["restore", "-d", "--name", &name, utf8(&image), "--identity", utf8(&key.file)];
        let mut limited = yendor.program(Path::new("/bin/sh"));
        limited.args(["-euc", "ulimit -Sn 128; exec \"$@\"", "sh"]).arg(yendor_tests::yendor_binary()).args(asked);
        yendor.to_its_end(limited, "restore".into()).exits(0);
        // Its last file, through its own eyes.
        let look = "cat /proc/[0-9]*/fd/302 2>/dev/null";
        let seen = yendor.call(&["exec", &name, "--", "sh", "-c", look]);
        assert!(seen.stdout.contains("content 299"), "{}{}", seen.stdout, seen.stderr);
        yendor.call(&["rm", "--force", &name]).exits(0);
    }
}

/// A tree is looked into before there is a container for it.
#[test]
fn a_tree_comes_back() {
    for yendor in both() {
        let key = Key::new(&yendor, "key");
        let mut command = yendor.program(Path::new("/bin/sleep"));
        command.arg("1000").stdout(yendor.output("output")).stderr(yendor.output("errors"));
        yendor_tests::lead_a_session(&mut command);
        let mut started = yendor_tests::Started::new(&mut command);
        let (image, pid) = (yendor.path("image"), started.pid().to_string());
        let asked = ["checkpoint", "--pid", &pid, "-o", utf8(&image), "--encrypt-to", &key.recipient];
        yendor.call(&asked).exits(0);
        assert!(started.ended(PATIENCE).is_some());
        assert_eq!(restore(&yendor, &image, &[]).0, 5);
        let (code, said) = restore(&yendor, &image, &key.identity());
        assert_eq!(code, 0, "{said}");
        yendor.call(&[&["plan", utf8(&image)], &key.identity()[..]].concat()).exits(0);
        yendor.call(&["plan", utf8(&image)]).exits(5);
    }
}

#[test]
fn only_the_recipients_open_it_and_the_others_are_told_why_not() {
    for yendor in both() {
        let [one, two, other] = ["one", "two", "other"].map(|name| Key::new(&yendor, name));
        let image = image(&yendor, "image", &["sleep", "1000"], &[&one, &two]);
        let (code, said) = restore(&yendor, &image, &[]);
        assert!(code == 5 && said.contains("encrypted") && said.contains("--identity FILE"), "{code}: {said}");
        assert!(said.contains(&one.recipient) && said.contains(&two.recipient), "{said}");
        let (code, said) = restore(&yendor, &image, &other.identity());
        assert!(code == 5 && said.contains(utf8(&other.file)) && said.contains(&one.recipient), "{code}: {said}");
        assert!(!said.contains(&other.secret), "the key is shown");
        for keys in [one.identity().to_vec(), two.identity().to_vec(), [other.identity(), two.identity()].concat()] {
            let (code, said) = restore(&yendor, &image, &[&["-vv"], &keys[..]].concat());
            assert_eq!(code, 0, "{said}");
            assert!(![&one, &two, &other].iter().any(|key| said.contains(&key.secret)), "a key is shown");
        }
        // What is no identity file is a mistake of the caller's; one that is not there is not the image's fault.
        let public = yendor.path("public");
        fs::write(&public, format!("{}\n", one.recipient)).expect("write");
        yendor.owns(&public);
        let (code, said) = restore(&yendor, &image, &["--identity", utf8(&public)]);
        assert!(code == 2 && said.contains("--identity"), "{code}: {said}");
        assert_eq!(restore(&yendor, &image, &["--identity", "/does/not/exist"]).0, 1);
        // An image that is not encrypted needs none, and takes one.
        let plain = self::image(&yendor, "plain", &["sleep", "1000"], &[]);
        assert_eq!(restore(&yendor, &plain, &one.identity()).0, 0);
    }
}

/// What the program has in memory, in a file that it has deleted, and in its private files.
#[test]
fn nothing_that_the_program_had_is_in_the_image() {
    // Made by the program, so that it is not in its arguments; upside down it is not even in this test's own source.
    let script = "secret=$(printf 'terces-eht' | rev); exec 5<>/tmp/open; echo $secret >&5; rm /tmp/open; \
                  echo $secret >/tmp/kept; echo ready; while :; do sleep 1; done";
    let secret: Vec<u8> = b"terces-eht".iter().rev().copied().collect();
    for yendor in both() {
        let key = Key::new(&yendor, "key");
        for to in [&[&key][..], &[]] {
            let container = yendor.fresh("secretive");
            yendor.run_detached(&container, &["sh", "-c", script]);
            yendor.wait_for_log(&container, "ready", PATIENCE);
            let image = yendor.path(&container);
            let to: Vec<&str> = to.iter().flat_map(|key| ["--encrypt-to", &key.recipient]).collect();
            yendor.call(&[&["checkpoint", &container, "-o", utf8(&image)], &to[..]].concat()).exits(0);
            let mut having = Vec::new();
            for entry in fs::read_dir(&image).expect("an image").flatten() {
                assert_eq!(entry.metadata().expect("a file").permissions().mode() & 0o7777, 0o600);
                let content = fs::read(entry.path()).expect("a file of an image");
                if content.windows(secret.len()).any(|window| window == secret) {
                    having.push(entry.file_name());
                }
            }
            // In clear it is there: the search finds what there is to find.
            assert_eq!(having.is_empty(), !to.is_empty(), "{having:?}");
            let name = yendor.fresh("restored");
            let identity = key.identity();
            yendor.restore_with(&image, &name, if to.is_empty() { &[] } else { &identity }).exits(0);
            let kept = yendor.call(&["exec", &name, "--", "cat", "/tmp/kept"]).exits(0);
            assert_eq!(kept.stdout.trim().as_bytes(), secret);
            yendor.call(&["rm", "--force", &name]).exits(0);
        }
    }
}

#[test]
fn what_was_changed_or_cut_is_damage_and_nothing_starts() {
    for yendor in both() {
        let key = Key::new(&yendor, "key");
        let good = image(&yendor, "image", &["sleep", "1000"], &[&key]);
        let names: Vec<String> = fs::read_dir(&good)
            .expect("an image")
            .flatten()
            .map(|entry| entry.file_name().into_string().expect("UTF-8"))
            .filter(|name| name.ends_with(".age"))
            .collect();
        assert!(names.contains(&"pages-0.age".to_owned()) && names.contains(&"records.cbor.age".to_owned()));
        for name in &names {
            let content = fs::read(good.join(name)).expect("a file of an image");
            let flipped = |at: usize| {
                let mut content = content.clone();
                content[at] ^= 4;
                content
            };
            let end = content.len() - 1;
            let changes =
                [flipped(0), flipped(40), flipped(end / 2), flipped(end), content[..end].to_vec(), Vec::new()];
            for (number, change) in changes.iter().enumerate() {
                let bad = yendor.path(&format!("bad-{name}-{number}"));
                copy_image(&good, &bad);
                fs::write(bad.join(name), change).expect("write");
                let (code, said) = restore(&yendor, &bad, &key.identity());
                assert!(code == 4 && said.contains(name.as_str()), "{name}, change {number}: {code}: {said}");
                // Sizes are seen without a key.
                let cut = number >= 4;
                assert_eq!(restore(&yendor, &bad, &[]).0, if cut { 4 } else { 5 });
            }
        }
        assert_eq!(restore(&yendor, &good, &key.identity()).0, 0);
    }
}

#[test]
fn several_are_not_made_from_one_and_the_plan_says_so() {
    for yendor in both() {
        let key = Key::new(&yendor, "key");
        let image = image(&yendor, "image", &["sleep", "1000"], &[&key]);
        let options = [&["-d", "--name", "many"], &key.identity()[..]].concat();
        yendor.call(&[&["plan", utf8(&image)], &options[..]].concat()).exits(0);
        for verb in ["plan", "restore"] {
            let said = yendor.call(&[&[verb, utf8(&image), "--count", "2"], &options[..]].concat()).exits(2);
            assert!(said.stderr.contains("--count with an encrypted image: flatten it first"), "{said:?}");
            assert_eq!(said.stdout.contains("would stop here"), verb == "plan", "{said:?}");
        }
        assert!(yendor.tasks_left().is_empty());
    }
}

#[test]
fn a_signature_is_compared_before_anything_is_decrypted() {
    for yendor in both() {
        let (key, other) = (Key::new(&yendor, "key"), Key::new(&yendor, "other"));
        let [signer, stranger] = [0; 2].map(|_| minisign::KeyPair::generate_unencrypted_keypair().expect("keys"));
        let secret = yendor.path("sign.key");
        fs::write(&secret, signer.sk.to_box(None).expect("box").into_string()).expect("write");
        yendor.owns(&secret);
        let container = yendor.fresh("signed");
        yendor.run_detached(&container, &["sleep", "1000"]);
        let image = yendor.path("image");
        let asked = ["checkpoint", &container, "-o", utf8(&image), "--encrypt-to", &key.recipient, "--sign"];
        yendor.call(&[&asked[..], &[utf8(&secret)]].concat()).exits(0);
        let (own, strange) = (signer.pk.to_base64(), stranger.pk.to_base64());
        assert_eq!(restore(&yendor, &image, &[&["--verify", &own], &key.identity()[..]].concat()).0, 0);
        assert_eq!(restore(&yendor, &image, &key.identity()).0, 0);
        // Said of the signature, not of the key that does not fit either: it was never tried.
        let (code, said) = restore(&yendor, &image, &[&["--verify", &strange], &other.identity()[..]].concat());
        assert!(code == 5 && said.contains("--verify: its signature is by none of"), "{code}: {said}");
        let plan = |options: &[&str]| yendor.call(&[&["plan", utf8(&image)], options].concat());
        plan(&[&["--verify", &own], &key.identity()[..]].concat()).exits(0);
        let said = plan(&[&["--verify", &strange], &other.identity()[..]].concat()).exits(5).stderr;
        assert!(said.contains("--verify: its signature is by none of"), "{said}");
        // Who can open it is signed too.
        let manifest = fs::read_to_string(image.join("manifest.json")).expect("manifest");
        fs::write(image.join("manifest.json"), manifest.replace(&key.recipient, &other.recipient)).expect("write");
        assert_eq!(restore(&yendor, &image, &key.identity()).0, 4);
        // Whose signature it claims to be is shown to everybody.
        fs::write(image.join("manifest.json"), manifest).expect("write");
        let id = hex_of(signer.pk.keynum());
        let shown = yendor.call(&["inspect", utf8(&image)]).exits(0).stdout;
        assert!(shown.contains(&id), "{id}: {shown}");
    }
}

/// A key's id as minisign prints it.
fn hex_of(id: &[u8]) -> String {
    id.iter().rev().map(|byte| format!("{byte:02X}")).collect()
}

#[test]
fn what_is_no_recipient_is_refused_before_anything_is_touched() {
    for yendor in both() {
        let key = Key::new(&yendor, "key");
        let container = yendor.fresh("running");
        yendor.run_detached(&container, &["sleep", "1000"]);
        let image = yendor.path("image");
        let mut typo = key.recipient.clone();
        typo.replace_range(10..11, if &typo[10..11] == "q" { "p" } else { "q" });
        for bad in ["", "age1", &typo, &key.secret, utf8(&key.file)] {
            let asked =
                ["checkpoint", &container, "-o", utf8(&image), "--encrypt-to", &key.recipient, "--encrypt-to", bad];
            let said = yendor.call(&asked).exits(2);
            assert!(said.stderr.contains("--encrypt-to") && !said.stderr.contains(&key.secret), "{}", said.stderr);
            assert!(!image.exists());
        }
        yendor.call(&["kill", "-s", "KILL", &container]).exits(0);
    }
}

/// Whether a process has these bytes in memory that can be written.
fn has_in_memory(pid: i32, bytes: &[u8]) -> bool {
    use std::os::unix::fs::FileExt;
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("maps");
    let memory = fs::File::open(format!("/proc/{pid}/mem")).expect("mem");
    let areas = maps.lines().filter_map(|line| {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let address = |text| u64::from_str_radix(text, 16).ok();
        rest.starts_with("rw").then_some((address(start)?, address(end)?))
    });
    let holds = |(start, end): (u64, u64)| {
        let mut content = vec![0; usize::try_from(end - start).expect("64 bits")];
        // What is reserved and not there is nothing.
        memory.read_exact_at(&mut content, start).is_ok() && content.windows(bytes.len()).any(|window| window == bytes)
    };
    areas.into_iter().any(holds)
}

/// The keeper's memory is what the container's first task begins with.
#[test]
fn the_key_is_in_the_memory_of_no_process_that_is_left() {
    use std::str::FromStr;
    // To look takes root.
    if Yendor::new(Flavour::RootUserns).is_none() {
        return;
    }
    for yendor in both() {
        let key = Key::new(&yendor, "key");
        let image = image(&yendor, "image", &["sleep", "1000"], &[&key]);
        let name = yendor.fresh("restored");
        yendor.restore_with(&image, &name, &key.identity()).exits(0);
        let left = yendor.tasks_left();
        assert!(left.len() >= 2, "a keeper and a task: {left:?}");
        assert!(age::x25519::Identity::from_str(&key.secret).is_ok());
        // The middle of it: whoever had read the file would have had this.
        let secret = &key.secret.as_bytes()[20..50];
        for pid in &left {
            assert!(!has_in_memory(*pid, secret), "{pid} of {left:?}");
        }
        // The search finds what is there.
        let mark = yendor.mark().as_bytes();
        assert!(left.iter().any(|pid| has_in_memory(*pid, mark)), "{left:?}");
        assert!(has_in_memory(std::process::id().cast_signed(), secret));
        yendor.call(&["rm", "--force", &name]).exits(0);
    }
}

/// In the store: what everybody sees, what the recipients see; and the next image of it is as its caller says.
#[test]
fn an_encrypted_image_in_the_store() {
    for yendor in both() {
        let key = Key::new(&yendor, "key");
        let name = yendor.fresh("stored");
        yendor.run_detached(&name, &["sleep", "1000"]);
        yendor.call(&["checkpoint", &name, "--encrypt-to", &key.recipient]).exits(0);
        let all = yendor.call(&["images", "--json"]).exits(0).json();
        assert_eq!((&all[0]["encrypted"], &all[0]["error"]), (&true.into(), &serde_json::Value::Null), "{all}");
        // Without a key: the manifest, and what could not be shown is refused by name.
        let shown = yendor.call(&["inspect", &name]).exits(0);
        assert!(shown.stdout.contains(&key.recipient) && shown.stderr.contains("--identity"), "{}", shown.stdout);
        let json = yendor.call(&["inspect", "--json", &name]).exits(0).json();
        assert_eq!(json["manifest"]["encryption"]["recipients"][0], key.recipient.as_str());
        assert!(json["records"].is_null());
        let refused = yendor.call(&["inspect", "--tree", &name]).exits(5);
        assert!(refused.stderr.contains("--identity FILE"), "{}", refused.stderr);
        // With one: everything.
        let tree = yendor.call(&[&["inspect", "--tree", &name], &key.identity()[..]].concat()).exits(0);
        assert!(tree.stdout.contains("sleep"), "{}", tree.stdout);
        let json = yendor.call(&[&["inspect", "--json", &name], &key.identity()[..]].concat()).exits(0).json();
        assert!(json["records"]["processes"].is_array());
        yendor.will_remove(&name);
        let restored = [&["restore", "-d", &name][..], &key.identity()].concat();
        yendor.call(&restored).exits(0);
        assert!(wait_until(PATIENCE, || !yendor.tasks_left().is_empty()));
        // Not encrypted again unless somebody asks.
        yendor.call(&["checkpoint", &name]).exits(0);
        let json = yendor.call(&["inspect", "--json", &name]).exits(0).json();
        assert_eq!((&json["manifest"]["generation"], json["manifest"]["encryption"].is_null()), (&2.into(), true));
        yendor.call(&["restore", "-d", &name]).exits(0);
        yendor.call(&["rm", "--force", &name]).exits(0);
    }
}
