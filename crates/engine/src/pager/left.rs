//! What of a memory is still to come: runs of the image by their addresses, while the memory changes.

use std::collections::BTreeMap;

use yendor_image::{PAGE_BYTES, PageRun};

/// What comes to an address: so many bytes from there in a file of pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Address of its first byte.
    pub at: u64,
    /// Bytes.
    pub bytes: u64,
    /// N of `pages-N`.
    pub file: u16,
    /// Where it begins there.
    pub offset: u64,
}

impl Piece {
    fn end(&self) -> u64 {
        self.at.saturating_add(self.bytes)
    }

    /// What of it lies in a range.
    #[must_use]
    pub fn within(&self, start: u64, end: u64) -> Option<Piece> {
        let (at, to) = (self.at.max(start), self.end().min(end));
        (at < to).then(|| Piece { at, bytes: to - at, offset: self.offset + (at - self.at), ..*self })
    }
}

/// All that is to come to one process.
#[derive(Debug, Default)]
pub struct Left {
    pieces: BTreeMap<u64, Piece>,
    /// Where the next one is looked for.
    next: u64,
}

impl Left {
    /// At first.
    #[must_use]
    pub fn new(runs: &[PageRun]) -> Left {
        let piece = |run: &PageRun| {
            let bytes = run.pages.saturating_mul(PAGE_BYTES);
            Piece { at: run.addr.0, bytes, file: run.file, offset: run.offset }
        };
        Left { pieces: runs.iter().map(piece).map(|piece| (piece.at, piece)).collect(), next: 0 }
    }

    /// Whether that is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// What an address lies in.
    #[must_use]
    pub fn at(&self, address: u64) -> Option<Piece> {
        let (_, piece) = self.pieces.range(..=address).next_back()?;
        (address < piece.end()).then_some(*piece)
    }

    /// What comes next, by address: from where the last one ended, and from the beginning when there is no more.
    #[must_use]
    pub fn next(&mut self) -> Option<Piece> {
        if let Some(piece) = self.at(self.next) {
            return piece.within(self.next, u64::MAX);
        }
        let later = self.pieces.range(self.next..).next().or_else(|| self.pieces.iter().next());
        later.map(|(_, piece)| *piece)
    }

    /// The next one is looked for from here on.
    pub fn go_on(&mut self, address: u64) {
        self.next = address;
    }

    /// Nothing is to come to a range any more.
    pub fn cut(&mut self, start: u64, end: u64) {
        self.take(start, end);
    }

    fn take(&mut self, start: u64, end: u64) -> Vec<Piece> {
        let first = self.at(start).map_or(start, |piece| piece.at);
        let touched: Vec<Piece> = self.pieces.range(first..end.max(first)).map(|(_, piece)| *piece).collect();
        let mut taken = Vec::new();
        for piece in touched {
            self.pieces.remove(&piece.at);
            for rest in [piece.within(0, start), piece.within(end, u64::MAX)].into_iter().flatten() {
                self.pieces.insert(rest.at, rest);
            }
            taken.extend(piece.within(start, end));
        }
        taken
    }

    /// Memory has moved, and what was to come to it moves along. What was where it is now is gone.
    pub fn moved(&mut self, from: u64, to: u64, bytes: u64) {
        let along = self.take(from, from.saturating_add(bytes));
        self.cut(to, to.saturating_add(bytes));
        for piece in along {
            let at = to.saturating_add(piece.at - from);
            self.pieces.insert(at, Piece { at, ..piece });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use yendor_image::Addr;

    const P: u64 = PAGE_BYTES;

    fn left() -> Left {
        let run = |addr, pages, offset| PageRun { addr: Addr(addr * P), pages, file: 0, offset: offset * P };
        Left::new(&[run(10, 5, 100), run(20, 10, 0), run(40, 1, 50)])
    }

    /// Pages that are to come, and where from.
    fn pages(left: &Left) -> Vec<(u64, u64)> {
        let each = |p: &Piece| (0..p.bytes / P).map(|i| (p.at / P + i, p.offset / P + i)).collect::<Vec<_>>();
        left.pieces.values().flat_map(each).collect()
    }

    #[test]
    fn every_page_comes_from_where_it_came_from() {
        let all = pages(&left());
        // Each page is known by where it comes from; whatever is done to memory, a model does the same page by page.
        let (mut table, mut model) = (left(), all.iter().copied().collect::<BTreeMap<u64, u64>>());
        let mut seed = 7_u64;
        let mut random = |most: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % most
        };
        for round in 0..2000 {
            if round % 40 == 0 {
                (table, model) = (left(), all.iter().copied().collect());
            }
            let (start, len) = (random(60), 1 + random(12));
            if random(2) == 0 {
                table.cut(start * P, (start + len) * P);
                model.retain(|page, _| !(start..start + len).contains(page));
            } else {
                let to = 100 + random(60);
                table.moved(start * P, to * P, len * P);
                let along: Vec<(u64, u64)> = model
                    .iter()
                    .filter(|(page, _)| (start..start + len).contains(*page))
                    .map(|(a, b)| (*a, *b))
                    .collect();
                model.retain(|page, _| !(start..start + len).contains(page) && !(to..to + len).contains(page));
                model.extend(along.into_iter().map(|(page, from)| (page - start + to, from)));
            }
            assert_eq!(pages(&table), model.iter().map(|(a, b)| (*a, *b)).collect::<Vec<_>>(), "round {round}");
            for page in 0..200 {
                let found = table.at(page * P + 5).map(|p| (p.offset + page * P - p.at) / P);
                assert_eq!(found, model.get(&page).copied(), "round {round}, page {page}");
            }
        }
    }

    #[test]
    fn the_next_one_is_behind_the_last_one_and_then_the_first() {
        let mut left = left();
        assert_eq!(left.next().map(|p| p.at), Some(10 * P));
        left.cut(10 * P, 12 * P);
        left.go_on(12 * P);
        assert_eq!(left.next(), Some(Piece { at: 12 * P, bytes: 3 * P, file: 0, offset: 102 * P }));
        left.go_on(22 * P);
        assert_eq!(left.next().map(|p| (p.at, p.offset)), Some((22 * P, 2 * P)));
        left.go_on(41 * P);
        assert_eq!(left.next().map(|p| p.at), Some(12 * P));
        left.cut(0, 100 * P);
        assert!(left.is_empty() && left.next().is_none());
    }
}
