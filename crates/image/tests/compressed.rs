//! Images whose files are compressed: what comes back, what is damage, and what never becomes more than was said.

mod sample;

use sample::{Scratch, page, records};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::UNIX_EPOCH;
use yendor_image::crypt::{self, Identities, Recipients};
use yendor_image::{BLOCK_BYTES, Codec, Compression, Digest, Error, FileEntry, Manifest, Reader, Writer};

const BLOCK: usize = 256 << 10;
const HEAD: usize = 24;
const ALL: [Compression; 3] = [Compression::Lz4, Compression::Zstd(1), Compression::Zstd(9)];

/// Bytes that nothing can be made of.
fn noise(bytes: usize) -> Vec<u8> {
    let mut content = vec![0; bytes];
    blake3::Hasher::new().update(b"noise").finalize_xof().fill(&mut content);
    content
}

fn text(bytes: usize) -> Vec<u8> {
    (0u32..).flat_map(|number| format!("line {number} of a text\n").into_bytes()).take(bytes).collect()
}

fn contents() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("a-page", page(7)),
        ("empty", Vec::new()),
        ("mixed", [text(BLOCK / 2), noise(BLOCK), vec![0; BLOCK]].concat()),
        ("noise", noise(2 * BLOCK + 1)),
        ("one", vec![9]),
        // So many that several threads work on it.
        ("pages-0", [text(9 * BLOCK), noise(5 * BLOCK), text(30 * BLOCK + 4096)].concat()),
        ("whole", text(BLOCK)),
        ("zeros", vec![0; 3 * BLOCK]),
    ]
}

fn write(path: &Path, how: Compression, to: Option<&age::x25519::Identity>) -> Manifest {
    let mut writer = Writer::create(path).unwrap();
    writer.compress(how);
    if let Some(key) = to {
        writer.encrypt_to(Recipients::parse(&[key.to_public().to_string()]).unwrap());
    }
    for (step, (name, content)) in [BLOCK, 100_000, 4096, BLOCK].iter().cycle().zip(contents()) {
        let mut file = writer.file(name).unwrap();
        for (at, chunk) in (0..).step_by(*step).zip(content.chunks(*step)) {
            assert_eq!(file.offset(), at);
            if at % 2 == 0 { file.take(&mut chunk.to_vec()).unwrap() } else { file.write_all(chunk).unwrap() }
        }
        file.finish().unwrap();
    }
    writer.records(&records()).unwrap();
    writer.commit(UNIX_EPOCH).unwrap()
}

fn nameless() -> File {
    File::from(rustix::fs::memfd_create("content", rustix::fs::MemfdFlags::CLOEXEC).unwrap())
}

/// What is in a file, decoded in so many shares.
fn decoded(entry: &FileEntry, packed: &File, shares: u64) -> Result<File, Error> {
    let content = nameless();
    (0..shares).try_for_each(|share| yendor_image::decode(entry, packed, (share, shares), &content))?;
    Ok(content)
}

/// Decrypts and decodes everything.
fn open(path: &Path, key: Option<&Identities>) -> Result<Reader, Error> {
    let mut reader = Reader::open(path)?;
    let mut content = Vec::new();
    let manifest = reader.manifest().clone();
    for entry in manifest.files.iter().filter(|entry| manifest.is_wrapped(entry)) {
        let mut packed = reader.open_stored(entry)?;
        if let Some(key) = key {
            let mut plain = nameless();
            crypt::decrypt(entry, &packed, key, &mut plain)?;
            packed = plain;
        } else {
            reader.verify(&entry.name)?;
        }
        content.push(if entry.compressed.is_some() { decoded(entry, &packed, 3)? } else { packed });
    }
    reader.unwrapped(content)?;
    Ok(reader)
}

fn read(mut file: File) -> Vec<u8> {
    let mut content = Vec::new();
    file.read_to_end(&mut content).unwrap();
    content
}

#[test]
fn what_was_written_comes_back() {
    let key = age::x25519::Identity::generate();
    let mut identities = Identities::default();
    identities.add(age::secrecy::ExposeSecret::expose_secret(&key.to_string()).as_bytes()).unwrap();
    for (how, encrypted) in ALL.into_iter().flat_map(|how| [(how, false), (how, true)]) {
        let scratch = Scratch::new();
        let manifest = write(&scratch.image(), how, encrypted.then_some(&key));
        let reader = open(&scratch.image(), encrypted.then_some(&identities)).unwrap();
        assert_eq!(reader.manifest(), &manifest);
        assert_eq!(reader.records::<sample::Records>().unwrap(), records());
        for (name, content) in contents() {
            let entry = manifest.file(name).unwrap();
            let codec = if how == Compression::Lz4 { Codec::Lz4 } else { Codec::Zstd };
            assert_eq!(entry.compressed.map(|c| (c.codec, c.content)), Some((codec, content.len() as u64)), "{name}");
            let (file, bytes) = reader.open_file(name).unwrap();
            assert!(read(file) == content && bytes == content.len() as u64, "{name}, {how}");
            let ending = if how == Compression::Lz4 { "lz4" } else { "zst" };
            let stored = format!("{name}.{ending}{}", if encrypted { ".age" } else { "" });
            assert!(scratch.image().join(stored).exists(), "{name}");
        }
        let size = |name: &str| manifest.file(name).unwrap().decrypted_bytes();
        assert!(size("zeros") < 10_000 && size("whole") < BLOCK as u64 / 2, "{how}");
        assert!(size("noise") < 2 * BLOCK as u64 + 400, "{how}: what cannot be compressed costs little");
        assert_eq!((size("empty"), manifest.file("records.cbor").unwrap().compressed), (0, None));
        // Without its content only what is inside is missing.
        let closed = Reader::open(&scratch.image()).unwrap();
        closed.verify_all().unwrap();
        let refused = closed.open_file("pages-0").unwrap_err();
        let named =
            matches!(&refused, Error::Compressed { .. }) && !encrypted || matches!(&refused, Error::Encrypted { .. });
        assert!(named && refused.to_string().starts_with("pages-0."), "{refused}");
    }
}

/// Several threads, in whatever order they are ready.
#[test]
fn equal_content_makes_equal_files() {
    for how in ALL {
        let [one, two] = [0; 2].map(|_| Scratch::new());
        assert_eq!(write(&one.image(), how, None), write(&two.image(), how, None), "{how}");
    }
}

/// An image may have both: what others write, and what is taken from another image as it is.
#[test]
fn files_that_are_compressed_and_files_that_are_not() {
    let scratch = Scratch::new();
    let theirs = write(&scratch.image(), Compression::Zstd(3), None);
    let directory = std::os::fd::OwnedFd::from(File::open(scratch.image()).unwrap());
    let entry = theirs.file("pages-0").unwrap();
    let open_theirs = Reader::open(&scratch.image()).unwrap().open_stored(entry).unwrap();
    let second = scratch.0.join("second");
    let mut writer = Writer::create(&second).unwrap();
    writer.share("pages-1", &directory, (entry, &open_theirs), None).unwrap();
    writer.file("plain").unwrap().finish().unwrap();
    writer.compress(Compression::Lz4);
    writer.raw("raw").unwrap().write_all(&page(1)).unwrap();
    writer.adopt("raw").unwrap();
    let mut file = writer.file("pressed").unwrap();
    file.write_all(&page(2)).unwrap();
    file.finish().unwrap();
    writer.records(&records()).unwrap();
    let manifest = writer.commit(UNIX_EPOCH).unwrap();
    let codecs: Vec<_> = manifest.files.iter().map(|entry| entry.compressed.map(|c| c.codec)).collect();
    assert_eq!(codecs, [Some(Codec::Zstd), None, Some(Codec::Lz4), None, None]);
    let reader = open(&second, None).unwrap();
    let content = |name| read(reader.open_file(name).unwrap().0);
    assert!(content("pages-1") == contents().remove(5).1);
    assert!((content("plain"), content("raw"), content("pressed")) == (Vec::new(), page(1), page(2)));
    reader.verify_all().unwrap();
}

#[test]
fn damage_is_found_and_the_block_named() {
    for how in ALL {
        let scratch = Scratch::new();
        let manifest = write(&scratch.image(), how, None);
        let entry = manifest.file("mixed").unwrap();
        let path = scratch.image().join(manifest.stored_name(entry));
        let good = fs::read(&path).unwrap();
        // Where blocks begin.
        let mut heads = vec![0];
        while *heads.last().unwrap() < good.len() {
            let at = *heads.last().unwrap();
            let frame = u32::from_le_bytes(good[at + 8..at + 12].try_into().unwrap());
            heads.push(at + HEAD + usize::try_from(frame).unwrap());
        }
        assert_eq!(heads.len(), 4, "three blocks, and the end");
        let packed = |bytes: &[u8]| {
            let file = nameless();
            file.write_all_at(bytes, 0).unwrap();
            file
        };
        let errors = |bytes: &[u8]| {
            let (file, output) = (packed(bytes), nameless());
            let decoded = yendor_image::decode(entry, &file, (0, 1), &output).unwrap_err();
            assert!(output.metadata().unwrap().len() <= entry.content_bytes());
            assert!(decoded.is_damage(), "{decoded}");
            (yendor_image::find_damage(entry, &file).unwrap_err().to_string(), decoded.to_string())
        };
        for (number, ends) in heads.windows(2).enumerate() {
            for at in [0, 5, 9, 12, 16, HEAD, HEAD + 8, ends[1] - ends[0] - 1].map(|at| ends[0] + at) {
                let mut bad = good.clone();
                bad[at] ^= 0x10;
                let (found, decoded) = errors(&bad);
                assert!(found.contains("block ") && found == decoded, "{how}: byte {at}: {found}; {decoded}");
                // The size of a frame is all that says where the next one begins.
                let next = format!("block {}: ", number + 1);
                assert!(found.contains(&format!("block {number}: ")) || found.contains(&next), "{how}, {at}: {found}");
                fs::write(&path, &bad).unwrap();
                let refused = Reader::open(&scratch.image()).unwrap().verify("mixed").unwrap_err();
                assert!(matches!(refused, Error::Digest { .. }), "{refused}");
            }
        }
        for cut in [0, 1, HEAD, heads[1], heads[1] + 1, heads[2] + HEAD, good.len() - 1] {
            let (found, _) = errors(&good[..cut]);
            assert!(found.contains("block "), "{how}, cut at {cut}: {found}");
            fs::write(&path, &good[..cut]).unwrap();
            assert!(matches!(Reader::open(&scratch.image()), Err(Error::Truncated { .. })));
        }
        // A block twice, none, in another order, one that is not the last and is short.
        let block = |n: usize| &good[heads[n]..heads[n + 1]];
        let last = manifest.file("one").unwrap();
        let short = fs::read(scratch.image().join(manifest.stored_name(last))).unwrap();
        for wrong in [
            [block(0), block(0), block(1), block(2)].concat(),
            [block(0), block(2)].concat(),
            [block(2), block(1), block(0)].concat(),
            [block(0), &short, block(1), block(2)].concat(),
        ] {
            let (found, decoded) = errors(&wrong);
            assert!(found.contains("block ") && decoded.contains("block "), "{found}; {decoded}");
        }
        let longer = FileEntry { bytes: entry.bytes + 1, ..entry.clone() };
        let more = yendor_image::decode(&longer, &packed(&[&good[..], &[0]].concat()), (0, 1), &nameless());
        assert!(more.unwrap_err().to_string().contains("block 3: more than there is to be"));
    }
}

/// A block as a liar writes it: its digest is right.
fn block(frame: &[u8], content: u32) -> Vec<u8> {
    let size = u32::try_from(frame.len()).unwrap().to_le_bytes();
    let head = [&[0x5e, 0x2a, 0x4d, 0x18, 16, 0, 0, 0], &size[..], &content.to_le_bytes(), &Digest::of(frame).0[..8]];
    [&head.concat()[..], frame].concat()
}

fn lz4(data: &[u8]) -> Vec<u8> {
    let size = u32::try_from(data.len()).unwrap().to_le_bytes();
    [&[0x04, 0x22, 0x4d, 0x18, 0x60, 0x50, 0xfb], &size[..], data, &[0; 4]].concat()
}

fn zstd(content: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; zstd_safe::compress_bound(content.len())];
    let length = zstd_safe::compress(&mut frame[..], content, 1).unwrap();
    frame.truncate(length);
    frame
}

/// Every digest is right, and there is more in it than it says, or less.
#[test]
fn a_bomb_does_not_go_off() {
    let large = vec![0; 64 << 20];
    let bomb = zstd(&large);
    assert!(bomb.len() < BLOCK, "64 MiB in {} bytes", bomb.len());
    let half = zstd(&page(0)[..2048]);
    // Without a size of content in its head.
    let unsaid = {
        let mut encoder = zstd_safe::CCtx::create();
        encoder.set_parameter(zstd_safe::CParameter::ContentSizeFlag(false)).unwrap();
        let mut frame = vec![0; zstd_safe::compress_bound(large.len())];
        let length = encoder.compress2(&mut frame[..], &large).unwrap();
        frame.truncate(length);
        frame
    };
    // One literal, then a match of as many of it as there are bytes of 255.
    let run = |bytes: usize| lz4(&[&[0x1f, 0, 1, 0], &vec![255; bytes / 255][..], &[0, 0x10, 0]].concat());
    let raw = |bytes: usize| {
        let size = (u32::try_from(bytes).unwrap() | 1 << 31).to_le_bytes();
        [&[0x04, 0x22, 0x4d, 0x18, 0x60, 0x50, 0xfb], &size[..], &vec![1; bytes][..], &[0; 4]].concat()
    };
    let lies: [(Codec, Vec<u8>); 14] = [
        (Codec::Zstd, bomb.clone()),
        (Codec::Zstd, unsaid),
        (Codec::Zstd, half.clone()),
        (Codec::Zstd, [&half[..], &half].concat()),
        (Codec::Zstd, [&zstd(&page(0))[..], b"more"].concat()),
        (Codec::Zstd, b"\x50\x2a\x4d\x18\x00\x00\x00\x00".to_vec()),
        (Codec::Zstd, lz4(&[0])),
        (Codec::Lz4, run(64 << 20 >> 8)),
        (Codec::Lz4, run(255)),
        (Codec::Lz4, raw(4095)),
        (Codec::Lz4, raw(4097)),
        (Codec::Lz4, zstd(&page(0))),
        // A match behind the beginning, and one of a distance of nothing.
        (Codec::Lz4, lz4(&[0x1f, 0, 0xff, 0xff, 0, 0x10, 0])),
        (Codec::Lz4, lz4(&[0x1f, 0, 0, 0, 0, 0x10, 0])),
    ];
    for (number, (codec, frame)) in lies.into_iter().enumerate() {
        // As the second of two blocks, of which the first is right.
        let first = match codec {
            Codec::Zstd => zstd(&noise(BLOCK)),
            Codec::Lz4 => raw(BLOCK),
        };
        let file = [block(&first, u32::try_from(BLOCK).unwrap()), block(&frame, 4096)].concat();
        let (content, bytes) = (BLOCK_BYTES + 4096, file.len() as u64);
        let compressed = Some(yendor_image::Compressed { codec, content });
        let entry = FileEntry { name: "a".into(), bytes, blake3: Digest::of(&file), content: None, compressed };
        let (packed, output) = (nameless(), nameless());
        packed.write_all_at(&file, 0).unwrap();
        let error = yendor_image::decode(&entry, &packed, (0, 1), &output).unwrap_err();
        assert!(error.is_damage() && error.to_string().contains("block 1: "), "{number}: {error}");
        assert!(output.metadata().unwrap().len() <= content, "{number}: never more than was said");
    }
}
