//! Images whose files are compressed: `checkpoint --compress`.

use std::fs;
use std::path::{Path, PathBuf};

use age::secrecy::ExposeSecret;
use yendor_tests::{Flavour, PATIENCE, Yendor, copy_image, probe};

fn utf8(path: &Path) -> &str {
    path.to_str().expect("paths of tests are UTF-8")
}

fn both() -> impl Iterator<Item = Yendor> {
    [Flavour::RootUserns, Flavour::user()].into_iter().filter_map(Yendor::new)
}

/// A container with a probe that is ready.
fn running(yendor: &Yendor, name: &str) -> String {
    let container = yendor.fresh(name);
    yendor.run_detached(&container, &[utf8(&probe(name))]);
    yendor.wait_for_log(&container, "ready", PATIENCE);
    container
}

fn checkpoint(yendor: &Yendor, container: &str, image: &Path, options: &[&str]) -> serde_json::Value {
    let words = [&["checkpoint", "--json", container, "-o", utf8(image)], options].concat();
    yendor.call(&words).exits(0).json()
}

/// The program that was restored finds everything as it was.
fn finds_itself_unchanged(yendor: &Yendor, image: &Path, options: &[&str]) {
    let name = yendor.fresh("restored");
    yendor.restore_with(image, &name, options).exits(0);
    yendor.kill(&name, "USR1");
    assert_eq!(yendor.wait(&name), 0, "{}", yendor.logs(&name));
    yendor.call(&["rm", "--force", &name]);
}

/// What a file is compressed by, and its sizes on the disk and inside.
fn entry(yendor: &Yendor, image: &Path, file: &str) -> (String, u64, u64) {
    let all = yendor.call(&["inspect", "--json", utf8(image)]).exits(0).json();
    let files = all["manifest"]["files"].as_array().expect("files").clone();
    let entry = files.iter().find(|entry| entry["name"] == file).expect("it has that file");
    let number = |value: &serde_json::Value| value.as_u64().unwrap_or(0);
    let codec = entry["compressed"]["codec"].as_str().unwrap_or("none").to_owned();
    (codec, number(&entry["bytes"]), number(&entry["compressed"]["content"]))
}

#[test]
fn a_program_comes_back_and_damage_is_named_by_its_block() {
    for yendor in both() {
        for (program, how, ending) in [("anon-memory", "lz4", "lz4"), ("ticker", "zstd:1", "zst")] {
            let (container, image) = (running(&yendor, program), yendor.path(program));
            let said = checkpoint(&yendor, &container, &image, &["--compress", how]);
            assert!(said["content"].as_u64() > said["bytes"].as_u64(), "{said}");
            let (codec, bytes, content) = entry(&yendor, &image, "pages-0");
            assert!(how.starts_with(&codec) && bytes < content, "{codec}: {bytes} for {content}");
            let shown = yendor.call(&["inspect", utf8(&image)]).exits(0).stdout;
            assert!(shown.contains(&format!("{codec}: ")) && shown.contains(" %)"), "{shown}");
            let name = format!("pages-0.{ending}");
            let good = fs::read(image.join(&name)).expect("compressed pages");
            for at in [0, 30, good.len() / 2, good.len() - 1] {
                let bad = yendor.path(&format!("bad-{program}-{at}"));
                copy_image(&image, &bad);
                let mut content = good.clone();
                content[at] ^= 1;
                fs::write(bad.join(&name), content).expect("write");
                for words in [&["restore", "-d"][..], &["flatten", "-o", utf8(&yendor.path("never"))]] {
                    let said = yendor.call(&[words, &[utf8(&bad)]].concat()).exits(4);
                    assert!(said.stderr.contains(&name) && said.stderr.contains(": block "), "{}", said.stderr);
                }
            }
            assert!(yendor.tasks_left().is_empty());
            finds_itself_unchanged(&yendor, &image, &[]);
        }
    }
}

/// A compressed image, one that has its pages and is not, one of that whole again and compressed otherwise; signed.
#[test]
fn a_chain_of_images_of_which_some_are_compressed() {
    for yendor in both() {
        let pair = minisign::KeyPair::generate_unencrypted_keypair().expect("keys");
        let secret = yendor.path("sign.key");
        fs::write(&secret, pair.sk.to_box(None).expect("box").into_string()).expect("write");
        yendor.owns(&secret);
        let public = pair.pk.to_base64();
        let container = running(&yendor, "anon-memory");
        let [first, second, third, flat] = ["first", "second", "third", "flat"].map(|name| yendor.path(name));
        let (sign, running) = (["--sign", utf8(&secret)], "--leave-running");
        checkpoint(&yendor, &container, &first, &[running, "--compress", "zstd", sign[0], sign[1]]);
        let said = checkpoint(&yendor, &container, &second, &[running, "--parent", utf8(&first)]);
        assert!(said["shared"].as_u64() > Some(100_000), "{said}");
        let said = checkpoint(&yendor, &container, &third, &["--compress", "lz4", "--parent", utf8(&second)]);
        assert!(said["shared"].as_u64() > Some(100_000), "{said}");
        // The same file by three names.
        let codecs = |image, file| entry(&yendor, image, file).0;
        assert_eq!((codecs(&second, "pages-0"), codecs(&second, "pages-1")), ("none".into(), "zstd".into()));
        assert_eq!(codecs(&third, "pages-0"), "lz4");
        let inode = |path: PathBuf| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).expect("there"));
        assert_eq!(inode(second.join("pages-1.zst")), inode(first.join("pages-0.zst")));
        let words = ["flatten", utf8(&third), "-o", utf8(&flat), "--compress", "zstd:1"];
        yendor.call(&[&words[..], &sign].concat()).exits(0);
        assert_eq!(codecs(&flat, "pages-0"), "zstd");
        finds_itself_unchanged(&yendor, &first, &["--verify", &public]);
        fs::remove_dir_all(&first).expect("an image of our own");
        finds_itself_unchanged(&yendor, &second, &[]);
        finds_itself_unchanged(&yendor, &third, &[]);
        finds_itself_unchanged(&yendor, &flat, &["--verify", &public]);
    }
}

/// Compressed, then encrypted; and several containers from one.
#[test]
fn an_image_that_is_encrypted_too_and_clones_of_one_that_is_not() {
    for yendor in both() {
        let identity = age::x25519::Identity::generate();
        let key = yendor.path("key");
        fs::write(&key, identity.to_string().expose_secret()).expect("write");
        yendor.owns(&key);
        let (container, image) = (running(&yendor, "ticker"), yendor.path("image"));
        let clones = yendor.path("clones");
        checkpoint(&yendor, &container, &clones, &["--leave-running", "--compress", "zstd"]);
        let to = identity.to_public().to_string();
        checkpoint(&yendor, &container, &image, &["--compress", "lz4", "--encrypt-to", &to]);
        assert!(image.join("pages-0.lz4.age").exists());
        let (codec, bytes, content) = entry(&yendor, &image, "pages-0");
        assert!(codec == "lz4" && bytes < content, "{codec}: {bytes} for {content}");
        yendor.call(&["restore", "-d", utf8(&image)]).exits(5);
        finds_itself_unchanged(&yendor, &image, &["--identity", utf8(&key)]);
        let name = yendor.fresh("many");
        let all = ["1", "2"].map(|number| format!("{name}-{number}"));
        all.iter().for_each(|one| yendor.will_remove(one));
        yendor.restore_with(&clones, &name, &["--count", "2"]).exits(0);
        for one in &all {
            yendor.kill(one, "USR1");
            assert_eq!(yendor.wait(one), 0, "{}", yendor.logs(one));
        }
    }
}
