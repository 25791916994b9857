//! Images whose files are encrypted: who can read them, who cannot, and what does not help.

mod sample;

use age::secrecy::ExposeSecret;
use age::x25519;
use sample::{Records, Scratch, page, records};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::time::UNIX_EPOCH;
use yendor_image::crypt::{self, Identities, MOST_RECIPIENTS, Recipients};
use yendor_image::{Error, Manifest, Reader, Writer};

fn identities(keys: &[&x25519::Identity]) -> Identities {
    let mut identities = Identities::default();
    for key in keys {
        let text = format!("# created: today\n\n{}\n", key.to_string().expose_secret());
        identities.add(text.as_bytes()).unwrap();
    }
    identities
}

fn write(path: &Path, keys: &[&x25519::Identity]) -> Manifest {
    let names: Vec<String> = keys.iter().map(|key| key.to_public().to_string()).collect();
    let mut writer = Writer::create(path).unwrap();
    writer.encrypt_to(Recipients::parse(&names).unwrap());
    assert!(matches!(writer.raw("pages-1"), Err(Error::Plain { .. })));
    // More than one piece of the stream of which the last is not whole, one that is whole, none.
    for (name, count) in [("pages-0", 33), ("pages-1", 16), ("empty", 0)] {
        let mut file = writer.file(name).unwrap();
        for seed in 0..count {
            assert_eq!(file.offset(), 4096 * u64::from(seed));
            file.write_all(&page(seed)).unwrap();
        }
        file.finish().unwrap();
    }
    writer.records(&records()).unwrap();
    writer.commit(UNIX_EPOCH).unwrap()
}

/// Decrypts everything, each file into one without a name.
fn open(path: &Path, identities: &Identities) -> Result<Reader, Error> {
    let mut reader = Reader::open(path)?;
    let mut content = Vec::new();
    for entry in &reader.manifest().files {
        let stored = reader.open_stored(entry)?;
        let mut plain = File::from(rustix::fs::memfd_create("plain", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        crypt::decrypt(entry, &stored, identities, &mut plain)?;
        content.push(plain);
    }
    reader.unwrapped(content)?;
    Ok(reader)
}

#[test]
fn each_recipient_reads_what_was_written_and_nobody_else() {
    let (scratch, [one, two, other]) = (Scratch::new(), [0; 3].map(|_| x25519::Identity::generate()));
    let manifest = write(&scratch.image(), &[&one, &two]);
    let encryption = manifest.encryption.clone().unwrap();
    assert_eq!(encryption.recipients, [&one, &two].map(|key| key.to_public().to_string()));
    for keys in [&[&one][..], &[&two], &[&other, &two]] {
        let reader = open(&scratch.image(), &identities(keys)).unwrap();
        assert_eq!(reader.records::<Records>().unwrap(), records());
        for (name, count) in [("pages-0", 33), ("pages-1", 16), ("empty", 0)] {
            let expected: Vec<u8> = (0..count).flat_map(page).collect();
            // Twice: whoever reads moves nobody else's place.
            for _ in 0..2 {
                let (mut file, bytes) = reader.open_file(name).unwrap();
                let mut content = Vec::new();
                file.read_to_end(&mut content).unwrap();
                assert!(content == expected && bytes == content.len() as u64, "{name}");
            }
        }
        assert_eq!(reader.seal().unwrap(), manifest.seal(reader.version()).unwrap());
    }
    assert!(matches!(open(&scratch.image(), &identities(&[&other])), Err(Error::NotForUs { .. })));
    assert!(matches!(open(&scratch.image(), &identities(&[])), Err(Error::NotForUs { .. })));
    let closed = Reader::open(&scratch.image()).unwrap();
    assert!(matches!(closed.records::<Records>(), Err(Error::Encrypted { file }) if file == "records.cbor.age"));
    assert!(matches!(closed.open_file("pages-0"), Err(Error::Encrypted { .. })));
    closed.verify_all().unwrap();
}

#[test]
fn nothing_in_clear_is_written_not_even_for_a_moment() {
    let (scratch, key) = (Scratch::new(), x25519::Identity::generate());
    let marker = b"a secret that the program had in memory";
    let found = |place: &Path| {
        let names: Vec<_> = fs::read_dir(place).unwrap().map(|entry| entry.unwrap().path()).collect();
        let read = |path: &std::path::PathBuf| fs::read(path).unwrap();
        names.iter().map(read).any(|content| content.windows(marker.len()).any(|window| window == marker))
    };
    for encrypted in [true, false] {
        let mut writer = Writer::create(&scratch.image()).unwrap();
        if encrypted {
            writer.encrypt_to(Recipients::parse(&[key.to_public().to_string()]).unwrap());
        }
        let mut file = writer.file("pages-0").unwrap();
        (0..40_000).for_each(|_| file.write_all(marker).unwrap());
        let partial = fs::read_dir(&scratch.0).unwrap().next().unwrap().unwrap().path();
        assert_eq!(found(&partial), !encrypted, "while it is written");
        file.finish().unwrap();
        writer.records(&records()).unwrap();
        writer.commit(UNIX_EPOCH).unwrap();
        assert_eq!(found(&scratch.image()), !encrypted);
        fs::remove_dir_all(scratch.image()).unwrap();
    }
}

#[test]
fn what_was_changed_is_damage_whoever_tries_to_read_it() {
    let (scratch, key) = (Scratch::new(), x25519::Identity::generate());
    let manifest = write(&scratch.image(), &[&key]);
    let identities = identities(&[&key]);
    for entry in &manifest.files {
        let path = scratch.image().join(format!("{}.age", entry.name));
        let good = fs::read(&path).unwrap();
        let damaged = |bytes: &[u8], what: &str| {
            fs::write(&path, bytes).unwrap();
            let error = open(&scratch.image(), &identities).unwrap_err();
            // A header that was changed may be one of somebody else's.
            let other = matches!(error, Error::NotForUs { .. });
            assert!(error.is_damage() || other, "{what}: {error}");
            assert!(error.to_string().starts_with(&format!("{}.age: ", entry.name)), "{what}: {error}");
            let closed = Reader::open(&scratch.image()).and_then(|reader| reader.verify_all());
            assert!(closed.unwrap_err().is_damage(), "{what}: without an identity too");
        };
        for bit in (0..good.len() * 8).step_by((good.len() * 8 / 50).max(1)) {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            damaged(&bytes, &format!("bit {bit}"));
        }
        damaged(&good[..good.len() - 1], "cut");
        damaged(&good[..good.len() / 2], "half");
        damaged(&[], "nothing");
        damaged(&[&good[..], &[0]].concat(), "more");
        fs::write(&path, good).unwrap();
    }
    open(&scratch.image(), &identities).unwrap();
}

/// What a writer can claim who knows the recipient and lies: every digest is right.
#[test]
fn a_lie_about_what_is_inside_is_damage() {
    let (scratch, key) = (Scratch::new(), x25519::Identity::generate());
    let manifest = write(&scratch.image(), &[&key]);
    let entry = manifest.file("pages-0").unwrap();
    let file = File::open(scratch.image().join("pages-0.age")).unwrap();
    let identities = identities(&[&key]);
    for lie in [0, 4096, entry.content_bytes() - 1, entry.content_bytes() + 1, entry.bytes - 1] {
        let mut output = Vec::new();
        let entry = yendor_image::FileEntry { content: Some(lie), ..entry.clone() };
        let error = crypt::decrypt(&entry, &file, &identities, &mut output).unwrap_err();
        assert!(error.is_damage(), "{lie}: {error}");
        assert!(output.len() as u64 <= lie, "never more than was said");
    }
    // A header without an end takes no more than its share.
    let long = [&b"age-encryption.org/v1\n-> X25519 "[..], &b"A".repeat(1 << 20)].concat();
    fs::write(scratch.0.join("long"), &long).unwrap();
    let entry = yendor_image::FileEntry { bytes: long.len() as u64, ..entry.clone() };
    let file = File::open(scratch.0.join("long")).unwrap();
    let error = crypt::decrypt(&entry, &file, &identities, &mut Vec::new()).unwrap_err();
    assert!(matches!(error, Error::Format { offset: 0x1_0000, .. }), "{error}");
}

#[test]
fn keys_are_told_from_what_is_none_and_never_shown() {
    let key = x25519::Identity::generate();
    let (public, secret) = (key.to_public().to_string(), key.to_string().expose_secret().to_owned());
    assert!(crypt::is_recipient(&public));
    assert!(Recipients::parse(&[public.clone(), format!(" {public}\n")]).is_ok());
    let many: Vec<String> =
        (0..=MOST_RECIPIENTS).map(|_| x25519::Identity::generate().to_public().to_string()).collect();
    assert!(Recipients::parse(&many[1..]).is_ok());
    assert!(Recipients::parse(&many).is_err() && Recipients::parse(&[]).is_err());
    let mut typo = public.clone();
    typo.replace_range(20..21, if &typo[20..21] == "q" { "p" } else { "q" });
    for bad in [&typo, &public.to_uppercase(), "ssh-ed25519 AAAA", "", "age1", &secret, &secret.to_lowercase()] {
        let why = Recipients::parse(&[bad.to_owned()]).unwrap_err();
        assert!(!why.to_uppercase().contains(&secret[16..]), "{why}");
    }
    for bad in ["", "# only a comment\n", &public, &format!("{secret}\n{public}"), &secret[..40], "-----BEGIN OPENSSH"]
    {
        let why = Identities::default().add(bad.as_bytes()).unwrap_err();
        assert!(!why.contains(&secret[16..40]), "{why}");
    }
    assert!(Identities::default().add(b"\xff").is_err());
    assert_eq!(format!("{:?}", identities(&[&key])), "Identities");
}
