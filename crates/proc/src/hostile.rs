//! For tests: the same input cut, changed and scrambled in every way that is cheap to try. A parser may refuse, not panic.

/// Runs `parse` on every truncation, every single-byte change, and 2000 random scrambles of `sample`.
pub(crate) fn survives<T, E>(sample: &[u8], parse: impl Fn(&[u8]) -> Result<T, E>) {
    assert!(parse(sample).is_ok(), "the sample itself must parse");
    for end in 0..sample.len() {
        let _ = parse(&sample[..end]);
        let _ = parse(&sample[end..]);
    }
    let mut bytes = sample.to_vec();
    for at in 0..sample.len() {
        for byte in [0, b' ', b'\n', b'\t', b'-', b':', b'(', b')', b',', b'\\', b'9', b'[', 0xff] {
            bytes[at] = byte;
            let _ = parse(&bytes);
        }
        bytes[at] = sample[at];
    }
    scramble(sample, parse);
}

/// A text of lines must not be accepted when it ends inside one.
pub(crate) fn refuses_cuts<T, E>(sample: &[u8], parse: impl Fn(&[u8]) -> Result<T, E>) {
    for end in 1..sample.len() {
        if sample[end - 1] != b'\n' {
            assert!(parse(&sample[..end]).is_err(), "cut at {end} was accepted");
        }
    }
}

fn scramble<T, E>(sample: &[u8], parse: impl Fn(&[u8]) -> Result<T, E>) {
    let mut seed: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut next = |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        usize::try_from(seed >> 33).unwrap() % below.max(1)
    };
    for _ in 0..2000 {
        let mut bytes = sample.to_vec();
        for _ in 0..=next(8) {
            let at = next(bytes.len());
            match next(4) {
                0 => bytes.insert(at, sample[next(sample.len())]),
                1 if bytes.len() > 1 => drop(bytes.remove(at)),
                2 => bytes.truncate(at.max(1)),
                _ => bytes[at] = u8::try_from(next(256)).unwrap(),
            }
            if bytes.is_empty() {
                break;
            }
        }
        let _ = parse(&bytes);
        bytes.push(b'\n');
        let _ = parse(&bytes);
    }
}
