//! Pieces of files and of memory that an image brings: what claims to lie in one place twice would be copied as often as it says.

/// Whether no two ranges, `(begin, bytes)`, have a byte together, and none goes past what 64 bits count. They may come in any order; those
/// of no bytes are nowhere.
#[must_use]
pub fn are_apart(ranges: impl IntoIterator<Item = (u64, u64)>) -> bool {
    let mut all: Vec<(u64, u64)> = ranges.into_iter().filter(|(_, bytes)| *bytes > 0).collect();
    all.sort_unstable();
    let mut last = 0;
    all.into_iter().all(|(begin, bytes)| match begin.checked_add(bytes) {
        Some(end) if begin >= last => {
            last = end;
            true
        }
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::are_apart;

    #[test]
    fn what_is_apart_has_no_byte_together() {
        assert!(are_apart([]));
        assert!(are_apart([(4, 4), (0, 4), (100, 1), (8, 2)]), "in any order, one beside the other");
        assert!(are_apart([(0, 8), (3, 0), (8, 1), (8, 0), (0, 0)]), "nothing is nowhere");
        assert!(!are_apart([(0, 4), (0, 4)]) && !are_apart([(0, 1), (8, 2), (0, 1)]), "twice");
        assert!(!are_apart([(4, 4), (0, 5)]) && !are_apart([(0, 9), (3, 1)]), "in part");
        assert!(
            are_apart([(u64::MAX - 1, 1)]) && !are_apart([(u64::MAX, 1)]) && !are_apart([(2, u64::MAX)]),
            "nowhere"
        );
    }
}
