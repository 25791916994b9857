//! Names of containers: what may be one, and one for those who do not care.

use yendor_engine::state::Places;

use crate::failure::Failure;

const LONGEST: usize = 64;

/// Whether it may be a container's name: `[a-zA-Z0-9][a-zA-Z0-9_.-]{0,63}`, so never a path and never hidden.
pub fn is_valid(name: &str) -> bool {
    let mut bytes = name.bytes();
    name.len() <= LONGEST
        && bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
        && bytes.all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

/// For clap: a name or why it is none.
pub fn parse(text: &str) -> Result<String, String> {
    let rule = "a name has 1 to 64 letters, digits, '_', '.' or '-', and begins with a letter or digit";
    if is_valid(text) { Ok(text.to_owned()) } else { Err(rule.to_owned()) }
}

const FIRST: [&str; 32] = [
    "amber", "ample", "brave", "brisk", "calm", "clear", "cosy", "crisp", "deep", "early", "fair", "fleet", "gentle",
    "glad", "grand", "green", "happy", "keen", "kind", "late", "light", "lucky", "mild", "neat", "plain", "proud",
    "quick", "quiet", "ready", "sharp", "swift", "warm",
];
const SECOND: [&str; 32] = [
    "acorn", "badger", "beacon", "birch", "brook", "cedar", "comet", "crane", "ember", "falcon", "fern", "finch",
    "harbor", "hazel", "heron", "lark", "lynx", "maple", "marten", "meadow", "orbit", "otter", "pebble", "pine",
    "raven", "reef", "river", "sparrow", "spruce", "tern", "willow", "wren",
];

/// A name that no container has.
pub fn generate(places: &Places) -> Result<String, Failure> {
    for attempt in 0..1000_u32 {
        let mut random = [0; 4];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
            .map_err(|e| Failure::Failed(format!("getrandom: {e}")))?;
        let pick = |words: &[&'static str; 32], byte: u8| words.get(usize::from(byte % 32)).copied().unwrap_or("name");
        let [a, b, c, d] = random;
        let mut name = format!("{}-{}", pick(&FIRST, a), pick(&SECOND, b));
        if attempt >= 10 {
            name = format!("{name}-{}", u16::from_ne_bytes([c, d]));
        }
        if !places.container(&name).exists() {
            return Ok(name);
        }
    }
    Err(Failure::Failed("no free name was found: give one with --name".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_never_paths() {
        for good in ["a", "Web-1.2_x", "9", &"a".repeat(64)] {
            assert!(is_valid(good), "{good}");
        }
        for bad in ["", ".", "..", "-a", "_a", "a/b", "a b", "a\0", "ä", "a@1", &"a".repeat(65)] {
            assert!(!is_valid(bad), "{bad}");
        }
    }

    #[test]
    fn generated_names_are_names() {
        let places = Places {
            run: "/nonexistent/run".into(),
            images: "/nonexistent/images".into(),
            trees: "/nonexistent/trees".into(),
        };
        assert!(is_valid(&generate(&places).unwrap()));
        assert!(FIRST.iter().chain(&SECOND).all(|w| is_valid(w)));
    }
}
