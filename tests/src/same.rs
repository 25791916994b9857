//! The law of every kind, over whole images: what is collected of restored tasks is what they were made from.

use crate::forge::Forge;
use ciborium::Value;
use std::path::Path;

/// What may differ of every probe, by the end of a path in the records, in which numbers of lists are left out but for the last.
const MAY_DIFFER: &[&str] = &[
    // The tasks have run in between, if only around what they wait in.
    "/regs/general",
    "/regs/extended/old",
    "/memory/pages",
    // Behind those in the file.
    "/objects/pages/offset",
    // Time goes on.
    "/container/clocks",
    "/timers/setting/2",
    "/timers/setting/3",
    "/timers/overrun",
    "/timers/waiting",
    "/itimers/timers/2",
    "/itimers/timers/3",
    "/timerfd/expiry",
    "/timerfd/ticks",
    "/agreed/timestamp",
    // What volumes and the host's directories are mounted on is made anew.
    "/entries/modified",
    // The kernel chooses it, while nobody else has.
    "/options/send_buffer",
    // Lost by name: that of an anonymous object becomes that of a memfd.
    "/objects/name",
];

/// What may differ of one.
const OF_ONE: &[(&str, &str)] = &[
    // It makes children all the time: nothing of it is compared.
    ("ending", ""),
    // Its calls begin and end, and its files with them: likewise.
    ("syscalls-interrupted", ""),
    // A program that is a memfd, which has two descriptions: by which of them it is mapped nobody sees.
    ("file-map", "/backing/file/0"),
    // Lost by name, of what is deleted: the name of a file that was replaced, of one that never had one, of a queue; O_NOFOLLOW.
    ("file-map", "/regular/path"),
    ("regular", "/regular/path"),
    ("mqueue", "/mqueue/content/name"),
    ("file-map", "/files/flags"),
    ("shared-memory", "/files/flags"),
    // The alarm of a timer that has rung and is not taken rings once more.
    ("itimers", "/pending/infos"),
    // Mounts that do not lie on each other are made in another order.
    ("mounts", "/container/mounts/mounts"),
];

/// Where the records of two images of a probe differ: `path: one value, the other`.
pub fn differences(probe: &str, one: &Path, other: &Path) -> Vec<String> {
    let own = OF_ONE.iter().filter(|(name, _)| *name == probe).map(|(_, end)| *end);
    let allowed: Vec<&str> = MAY_DIFFER.iter().copied().chain(own).collect();
    let mut found = Vec::new();
    compare(&Forge::open(one).records, &Forge::open(other).records, "", &allowed, &mut found);
    found
}

const IN_USE: &str = "/regs/extended/in_use";

/// Whether two processors' words on what is in use are the same, but for x87 and SSE: one that has only zeros in these may say either. What they
/// hold is compared by itself.
fn is_as_used(one: &Value, other: &Value) -> bool {
    const OLD: i128 = 3;
    let word = |value: &Value| value.as_integer().map(|word| i128::from(word) & !OLD);
    word(one).is_some() && word(one) == word(other)
}

fn compare(one: &Value, other: &Value, path: &str, allowed: &[&str], found: &mut Vec<String>) {
    let (above, last) = path.rsplit_once('/').unwrap_or(("", path));
    let plain =
        above.split('/').filter(|step| step.parse::<usize>().is_err()).chain([last]).collect::<Vec<_>>().join("/");
    if one == other
        || allowed.iter().any(|end| plain.ends_with(end))
        || plain.ends_with(IN_USE) && is_as_used(one, other)
    {
        return;
    }
    match (one, other) {
        (Value::Map(a), Value::Map(b)) if a.len() == b.len() && a.iter().zip(b).all(|((k, _), (l, _))| k == l) => {
            for ((key, a), (_, b)) in a.iter().zip(b) {
                compare(a, b, &format!("{path}/{}", key.as_text().unwrap_or("?")), allowed, found);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (index, (a, b)) in a.iter().zip(b).enumerate() {
                compare(a, b, &format!("{path}/{index}"), allowed, found);
            }
        }
        _ => found.push(format!("{path}: {one:?}, then {other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::{IN_USE, compare};
    use ciborium::cbor;
    use ciborium::value::Value;

    #[test]
    fn what_differs_is_found_where_it_is() {
        let one =
            cbor!({"files" => [{"flags" => 1, "id" => 2}, {"flags" => 1, "id" => 3}], "x" => null}).expect("CBOR");
        let other =
            cbor!({"files" => [{"flags" => 5, "id" => 2}, {"flags" => 1, "id" => 4}], "x" => [0]}).expect("CBOR");
        let mut found = Vec::new();
        compare(&one, &other, "", &["/files/flags"], &mut found);
        assert_eq!(
            found.iter().map(|line| line.split(':').next().unwrap_or("")).collect::<Vec<_>>(),
            ["/files/1/id", "/x"]
        );
        found.clear();
        let words = [160, 162, 130].map(|word| Value::Integer(word.into()));
        compare(&words[0], &words[1], IN_USE, &[], &mut found);
        assert!(found.is_empty(), "{found:?}");
        compare(&words[1], &words[2], IN_USE, &[], &mut found);
        assert_eq!(found.len(), 1);
        found.clear();
        compare(&one, &one.clone(), "", &[], &mut found);
        compare(&Value::Null, &Value::Null, "", &[], &mut found);
        assert!(found.is_empty());
    }
}
