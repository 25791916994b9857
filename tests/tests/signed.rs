//! Images at rest: private, whole, and signed by somebody.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use yendor_tests::{Flavour, Yendor};

/// A pair of minisign's key files, without a password.
fn keys(yendor: &Yendor, name: &str) -> (PathBuf, PathBuf, String) {
    let pair = minisign::KeyPair::generate_unencrypted_keypair().expect("keys");
    let (public, secret) = (yendor.path(&format!("{name}.pub")), yendor.path(&format!("{name}.key")));
    let text = pair.pk.to_box().expect("box").into_string();
    fs::write(&public, &text).expect("write");
    fs::write(&secret, pair.sk.to_box(None).expect("box").into_string()).expect("write");
    fs::set_permissions(&secret, PermissionsExt::from_mode(0o600)).expect("chmod");
    yendor.owns(&public);
    yendor.owns(&secret);
    (public, secret, text.lines().nth(1).expect("two lines").to_owned())
}

fn image(yendor: &Yendor, name: &str, options: &[&str]) -> PathBuf {
    let container = yendor.fresh(name);
    yendor.run_detached(&container, &["sleep", "1000"]);
    let image = yendor.path(name);
    let said = yendor.call(&[&["-vv", "checkpoint", &container, "-o", utf8(&image)], options].concat()).exits(0);
    if let Some(key) = options.get(1) {
        let secret = fs::read_to_string(key).expect("a key");
        let secret = secret.lines().nth(1).expect("two lines");
        assert!(!(said.stdout + &said.stderr).contains(secret), "the key is shown");
    }
    image
}

fn utf8(path: &Path) -> &str {
    path.to_str().expect("paths of tests are UTF-8")
}

/// Restores and removes; the exit code and what was said.
fn restore(yendor: &Yendor, image: &Path, options: &[&str]) -> (i32, String) {
    let name = yendor.fresh("restored");
    let outcome = yendor.restore_with(image, &name, options);
    yendor.call(&["rm", "--force", &name]);
    assert!(yendor.tasks_left().is_empty());
    (outcome.code, outcome.stderr)
}

fn both() -> impl Iterator<Item = Yendor> {
    [Flavour::RootUserns, Flavour::user()].into_iter().filter_map(Yendor::new)
}

#[test]
fn an_image_is_private() {
    for yendor in both() {
        let image = image(&yendor, "image", &[]);
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o7777;
        assert_eq!(mode(&image), 0o700);
        for entry in fs::read_dir(&image).expect("an image").flatten() {
            assert_eq!(mode(&entry.path()), 0o600, "{:?}", entry.path());
        }
    }
}

/// Its keys sign and verify, it agrees with our signature, and what it signs is signed.
#[test]
fn the_tool_of_the_format_agrees() {
    if !Path::new("/usr/bin/minisign").exists() {
        return yendor_tests::skipped("signatures by the tool itself: there is no minisign");
    }
    for yendor in both() {
        let (public, secret) = (yendor.path("tool.pub"), yendor.path("tool.key"));
        let key = ["-p", utf8(&public), "-s", utf8(&secret)];
        let minisign = |words: &[&str]| {
            let said = Command::new("minisign").args(words).stdin(Stdio::null()).output().expect("minisign");
            (said.status.success(), String::from_utf8_lossy(&said.stderr).into_owned())
        };
        let generated = minisign(&[&["-G", "-W"], &key[..]].concat());
        assert!(generated.0, "{}", generated.1);
        yendor.owns(&public);
        yendor.owns(&secret);
        let image = image(&yendor, "image", &["--sign", utf8(&secret)]);
        let manifest = image.join("manifest.json");
        let verified = minisign(&["-V", "-H", "-p", utf8(&public), "-m", utf8(&manifest)]);
        assert!(verified.0, "{}", verified.1);
        let signature = image.join("manifest.json.minisig");
        fs::remove_file(&signature).expect("ours");
        let verify = ["--verify", utf8(&public)];
        assert_eq!(restore(&yendor, &image, &verify).0, 5);
        let signed = minisign(&["-S", "-s", utf8(&secret), "-m", utf8(&manifest)]);
        assert!(signed.0, "{}", signed.1);
        yendor.owns(&signature);
        let (code, said) = restore(&yendor, &image, &verify);
        assert_eq!(code, 0, "{said}");
    }
}

#[test]
fn a_signature_is_asked_for_by_the_caller() {
    for yendor in both() {
        let ((public, secret, line), (other, _, other_line)) = (keys(&yendor, "one"), keys(&yendor, "two"));
        let signed = image(&yendor, "signed", &["--sign", utf8(&secret)]);
        let plain = image(&yendor, "plain", &[]);
        assert_eq!(restore(&yendor, &signed, &["--verify", utf8(&public)]).0, 0);
        assert_eq!(restore(&yendor, &signed, &["--verify", utf8(&other), "--verify", &line]).0, 0);
        assert_eq!(restore(&yendor, &signed, &[]).0, 0);
        yendor.call(&["plan", utf8(&signed), "--verify", &line]).exits(0);
        yendor.call(&["plan", utf8(&signed), "--verify", utf8(&other)]).exits(5);
        let (code, said) = restore(&yendor, &signed, &["--verify", utf8(&other)]);
        assert!(code == 5 && said.contains("--verify: its signature is by none of"), "{code}: {said}");
        let (code, said) = restore(&yendor, &plain, &["--verify", utf8(&public)]);
        assert!(code == 5 && said.contains("--verify: it is not signed by one of"), "{code}: {said}");
        let (code, said) = restore(&yendor, &plain, &["--verify", "nonsense"]);
        assert!(code == 1 && said.contains("no minisign public key, and no such file"), "{code}: {said}");
        // A file that has the key as its name is not that key: who packs an image may pack that, too.
        let named = yendor.path(&line);
        std::fs::create_dir_all(named.parent().expect("above it")).expect("mkdir");
        std::fs::copy(&other, &named).expect("copy");
        assert_eq!(restore(&yendor, &signed, &["--verify", &line]).0, 0);
        std::fs::copy(&public, &named).expect("copy");
        assert_eq!(restore(&yendor, &signed, &["--verify", &other_line]).0, 5);
        // Another's manifest under this signature; then other pages under a signed manifest.
        fs::copy(plain.join("manifest.json"), signed.join("manifest.json")).expect("copy");
        fs::copy(plain.join("records.cbor"), signed.join("records.cbor")).expect("copy");
        fs::copy(plain.join("pages-0"), signed.join("pages-0")).expect("copy");
        assert_eq!(restore(&yendor, &signed, &["--verify", utf8(&public)]).0, 5);
        let again = image(&yendor, "again", &["--sign", utf8(&secret)]);
        let mut pages = fs::read(again.join("pages-0")).expect("pages");
        pages[100] ^= 1;
        fs::write(again.join("pages-0"), pages).expect("write");
        assert_eq!(restore(&yendor, &again, &["--verify", utf8(&public)]).0, 4);
    }
}

#[test]
fn a_key_that_cannot_sign_is_refused_before_anything_is_touched() {
    for yendor in both() {
        let container = yendor.fresh("running");
        yendor.run_detached(&container, &["sleep", "1000"]);
        let (public, ..) = keys(&yendor, "one");
        let image = yendor.path("image");
        let asked = ["checkpoint", &container, "-o", utf8(&image), "--sign", utf8(&public)];
        yendor.call(&asked).exits(2);
        assert!(!image.exists());
        yendor.call(&["kill", "-s", "KILL", &container]).exits(0);
    }
}

#[test]
fn a_signature_is_asked_for_by_the_hosts_policy() {
    // A mount namespace of the test's own takes root.
    for yendor in Yendor::new(Flavour::RootUserns).into_iter().chain(both().last()) {
        let ((_, secret, line), (.., other)) = (keys(&yendor, "one"), keys(&yendor, "two"));
        if Yendor::new(Flavour::RootUserns).is_none() {
            return;
        }
        let signed = image(&yendor, "signed", &["--sign", utf8(&secret)]);
        let plain = image(&yendor, "plain", &[]);
        for (key, image, code) in [(&line, &signed, 0), (&other, &signed, 5), (&line, &plain, 5)] {
            let name = yendor.fresh("restored");
            yendor.will_remove(&name);
            let policy = format!("signed-by = ['{key}']\n");
            let asked = ["restore", "-d", "--name", &name, utf8(image)];
            let outcome = yendor.call_under_policy(policy.as_bytes(), &asked).exits(code);
            assert!(
                code == 0 || outcome.stderr.contains("host policy /etc/yendor/policy.toml:1:13: signed-by: "),
                "{}",
                outcome.stderr
            );
            let by = outcome.stderr.contains("denied by: the host's policy, /etc/yendor/policy.toml:1:13 (signed-by)");
            assert!(code == 0 || by, "{}", outcome.stderr);
            yendor.call(&["rm", "--force", &name]);
        }
    }
}
