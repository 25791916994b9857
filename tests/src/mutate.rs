//! Random changes of records, the same for the same number.

use ciborium::Value;
use ciborium::value::Integer;

/// A generator of numbers (xorshift64*).
pub struct Dice(u64);

impl Dice {
    /// The same number gives the same sequence.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below a limit.
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let wide = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(wide).unwrap_or(0) % limit.max(1)
    }
}

const NUMBERS: [i128; 16] = [
    0,
    1,
    -1,
    2,
    7,
    4095,
    4096,
    65_536,
    1 << 20,
    i32::MAX as i128,
    i32::MIN as i128,
    u32::MAX as i128,
    1 << 47,
    i64::MAX as i128,
    1 << 63,
    u64::MAX as i128,
];

/// Changes one to three places of a value.
pub fn mutate(value: &mut Value, dice: &mut Dice) {
    for _ in 0..=dice.below(3) {
        let count = places(value);
        let (from, to) = (dice.below(count), dice.below(count));
        let other = nth(value, &mut { from }).cloned().unwrap_or(Value::Null);
        let Some(place) = nth(value, &mut { to }) else { continue };
        change(place, other, dice);
    }
}

fn change(place: &mut Value, other: Value, dice: &mut Dice) {
    match place {
        Value::Integer(_) => {
            let number = NUMBERS[dice.below(NUMBERS.len())];
            if let Ok(number) = Integer::try_from(number) {
                *place = Value::Integer(number);
            }
        }
        Value::Bytes(bytes) => match dice.below(4) {
            0 => bytes.clear(),
            1 => bytes.extend_from_slice(b"/../../../../etc/passwd"),
            2 => bytes.extend(vec![b'x'; 5000]),
            _ => {
                let at = dice.below(bytes.len());
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << dice.below(8);
                }
            }
        },
        Value::Array(list) if !list.is_empty() => {
            let at = dice.below(list.len());
            match dice.below(4) {
                0 => drop(list.remove(at)),
                1 => list.push(list[at].clone()),
                2 => list.swap(at, 0),
                _ => list[at] = other,
            }
        }
        Value::Bool(truth) => *truth = !*truth,
        _ => *place = other,
    }
}

fn places(value: &Value) -> usize {
    1 + match value {
        Value::Array(list) => list.iter().map(places).sum(),
        Value::Map(map) => map.iter().map(|(_, v)| places(v)).sum(),
        _ => 0,
    }
}

fn nth<'v>(value: &'v mut Value, left: &mut usize) -> Option<&'v mut Value> {
    if *left == 0 {
        return Some(value);
    }
    *left -= 1;
    match value {
        Value::Array(list) => list.iter_mut().find_map(|v| nth(v, left)),
        Value::Map(map) => map.iter_mut().find_map(|(_, v)| nth(v, left)),
        _ => None,
    }
}
