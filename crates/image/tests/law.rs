//! decode(encode(x)) == x and encode(decode(b)) == b, for generated values.

mod sample;

use sample::{File, Records, Task};
use yendor_image::{Addr, Bytes, FdNum, FileId, Limits, NsPid, PageRun, cbor};

/// A small deterministic generator (xorshift64*), so that a failure comes again.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.roll() % end
    }

    /// Numbers of every size, the borders of encodings among them.
    fn number(&mut self) -> u64 {
        let border = [0, 23, 24, 255, 256, 65535, 65536, 1 << 32, u64::MAX][self.below(9).try_into().unwrap_or(0)];
        match self.below(3) {
            0 => border,
            1 => border.wrapping_sub(1),
            _ => self.roll() >> self.below(64),
        }
    }

    fn bytes(&mut self) -> Bytes {
        Bytes((0..self.below(300)).map(|_| self.roll().to_le_bytes()[3]).collect())
    }

    fn int(&mut self) -> i32 {
        i32::from_le_bytes(*self.number().to_le_bytes().first_chunk().unwrap())
    }

    fn run(&mut self) -> PageRun {
        let file = u16::try_from(self.below(65536)).unwrap();
        PageRun { addr: Addr(self.number()), pages: self.number(), file, offset: self.number() }
    }

    fn file_id(&mut self) -> FileId {
        FileId(u32::try_from(self.number() & 0xffff_ffff).unwrap())
    }

    fn file(&mut self) -> File {
        match self.below(3) {
            0 => File::Null,
            1 => File::Eventfd { count: self.number(), semaphore: self.below(2) == 0 },
            _ => File::Pipe(self.bytes()),
        }
    }

    fn task(&mut self) -> Task {
        Task {
            pid: NsPid(self.int()),
            comm: self.bytes(),
            fds: (0..self.below(40)).map(|_| (FdNum(self.int()), self.file_id())).collect(),
            runs: (0..self.below(5)).map(|_| self.run()).collect(),
            nice: (self.below(2) == 0).then(|| self.int()),
        }
    }

    fn records(&mut self) -> Records {
        Records {
            tasks: (0..self.below(4)).map(|_| self.task()).collect(),
            files: (0..self.below(30)).map(|_| (self.file_id(), self.file())).collect(),
        }
    }
}

#[test]
fn decode_is_the_inverse_of_encode() {
    let limits = Limits::default();
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    for round in 0..2000 {
        let records = dice.records();
        let document = cbor::encode(&records, &limits).unwrap();
        assert_eq!(cbor::decode::<Records>(&document, &limits).unwrap(), records, "round {round}");
        assert_eq!(cbor::encode(&records.clone(), &limits).unwrap(), document, "round {round}");
        let json = serde_json::to_string(&records).unwrap();
        assert_eq!(serde_json::from_str::<Records>(&json).unwrap(), records, "round {round}");
    }
}

#[test]
fn any_bytes_are_an_answer() {
    let limits = Limits { records_depth: 16, ..Limits::default() };
    let mut dice = Dice(1);
    for _ in 0..2000 {
        let mut document = cbor::encode(&dice.records(), &limits).unwrap();
        for _ in 0..=dice.below(4) {
            let at = usize::try_from(dice.below(document.len() as u64)).unwrap();
            match dice.below(3) {
                0 => document[at] = dice.bytes().first().copied().unwrap_or(0x9b),
                1 => drop(document.drain(at..)),
                _ => document.insert(at, dice.bytes().first().copied().unwrap_or(0xbb)),
            }
            if document.is_empty() {
                break;
            }
        }
        // Whatever passes as a value has this one spelling.
        if let Ok(value) = cbor::decode::<ciborium::Value>(&document, &limits) {
            assert_eq!(cbor::encode(&value, &limits).unwrap(), document);
        }
        match cbor::decode::<Records>(&document, &limits) {
            Ok(records) => assert_eq!(cbor::encode(&records, &limits).unwrap(), document),
            Err(error) => assert!(error.is_damage(), "{error}"),
        }
    }
}
