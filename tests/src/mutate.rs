//! Random changes of records and of whole images, the same for the same number.

use ciborium::Value;
use ciborium::value::Integer;

use crate::Forge;

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

/// Changes an image, most often what its records say, and returns the bytes of the records; all digests will be right.
pub fn mutate_image(image: &mut Forge, dice: &mut Dice) -> Vec<u8> {
    let what = dice.below(16);
    if what == 0 {
        image.kind = if image.kind == "tree" { "container".into() } else { "tree".into() };
    }
    if what == 1 || what == 2 {
        mutate_files(image, dice);
    }
    match what {
        1 => {}
        4 => mutate(&mut image.records, dice),
        _ => mutate_claims(&mut image.records, dice),
    }
    let mut records = Vec::new();
    ciborium::into_writer(&image.records, &mut records).expect("encode");
    if what == 3 {
        mutate_bytes(&mut records, dice);
    }
    records
}

/// Files beside the records: other bytes, fewer, more, none, somebody else's, under another name.
fn mutate_files(image: &mut Forge, dice: &mut Dice) {
    let names: Vec<String> = image.files.keys().cloned().collect();
    let (Some(one), Some(other)) = (names.get(dice.below(names.len())), names.get(dice.below(names.len()))) else {
        return;
    };
    match dice.below(6) {
        0 => drop(image.files.remove(one)),
        1 => {
            let content = image.files[other].clone();
            image.files.insert(one.clone(), content);
        }
        2 => {
            let content = image.files[one].clone();
            image.files.insert(format!("{one}-2"), content);
        }
        3 => image.files.entry(one.clone()).or_default().extend([0; 5000]),
        4 => {
            let content = image.files.entry(one.clone()).or_default();
            content.truncate(dice.below(content.len()));
        }
        _ => mutate_bytes(image.files.entry(one.clone()).or_default(), dice),
    }
}

/// Single bits in up to a hundred places.
fn mutate_bytes(bytes: &mut [u8], dice: &mut Dice) {
    for _ in 0..=dice.below(100) {
        let at = dice.below(bytes.len());
        if let Some(byte) = bytes.get_mut(at) {
            *byte ^= 1 << dice.below(8);
        }
    }
}

/// Changes one or two places of a value and keeps the types of its fields, as far as that can be known: what comes out is read,
/// mostly, and meets those who have to make it again.
fn mutate_claims(records: &mut Value, dice: &mut Dice) {
    let mut left = 1 + dice.below(2);
    for _ in 0..100 {
        // Most of the records are areas of memory: half of the time every branch counts the same, however much is on it.
        let to = if dice.below(2) == 0 { dice.below(places(records)) } else { walk(records, dice) };
        let alike = alike(records, to);
        let other = alike.get(dice.below(alike.len())).map(|found| (*found).clone());
        let Some(place) = nth(records, &mut { to }) else { continue };
        match (other, &mut *place) {
            (Some(other), _) if dice.below(2) == 0 => *place = other,
            (_, Value::Integer(_) | Value::Bytes(_) | Value::Bool(_)) => change(place, Value::Null, dice),
            (_, Value::Array(list)) if !list.is_empty() => {
                let at = dice.below(list.len());
                match dice.below(3) {
                    0 => drop(list.remove(at)),
                    1 => list.push(list[at].clone()),
                    _ => list.swap(at, 0),
                }
            }
            (Some(other), _) => *place = other,
            _ => continue,
        }
        left -= 1;
        if left == 0 {
            return;
        }
    }
}

/// The number of a place that a walk from the root comes to.
fn walk(mut value: &Value, dice: &mut Dice) -> usize {
    let mut at = 0;
    loop {
        let inner: Vec<&Value> = match value {
            Value::Array(list) => list.iter().collect(),
            Value::Map(map) => map.iter().map(|(_, v)| v).collect(),
            _ => return at,
        };
        if inner.is_empty() || dice.below(8) == 0 {
            return at;
        }
        let chosen = dice.below(inner.len());
        at += 1 + inner.iter().take(chosen).map(|v| places(v)).sum::<usize>();
        value = inner[chosen];
    }
}

/// Changes one to three places of a value, types too.
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
        Value::Integer(old) => {
            let old = i128::from(*old);
            let number = match dice.below(8) {
                0 => old + 1,
                1 => old - 1,
                2 => old + 4096,
                3 => old ^ (1 << dice.below(64)),
                _ => NUMBERS[dice.below(NUMBERS.len())],
            };
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

/// What else is called like the place of this number, and differs from it.
fn alike(value: &Value, place: usize) -> Vec<&Value> {
    let mut fields = Vec::new();
    named(value, None, &mut 0, &mut fields);
    let Some((_, name, own)) = fields.iter().find(|(at, ..)| *at == place) else { return Vec::new() };
    let others = fields.iter().filter(|(_, of, other)| of == name && other != own);
    others.map(|(.., other)| *other).collect()
}

/// All fields with their numbers (as [`nth`] counts) and names.
fn named<'v>(value: &'v Value, name: Option<&'v str>, next: &mut usize, fields: &mut Vec<(usize, &'v str, &'v Value)>) {
    fields.extend(name.map(|name| (*next, name, value)));
    *next += 1;
    match value {
        Value::Array(list) => list.iter().for_each(|v| named(v, None, next, fields)),
        Value::Map(map) => map.iter().for_each(|(k, v)| named(v, k.as_text(), next, fields)),
        _ => {}
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
