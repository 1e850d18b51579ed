//! What both sides store: keys, values and the order in which they are touched.
//!
//! Everything follows from an index and a seed, so peers see the same keys in the same order and
//! nothing has to be kept in memory beside the engines under test.

/// Bytes of a key.
pub const KEY_SIZE: usize = 16;
/// Bytes of a value.
pub const VALUE_SIZE: usize = 64;

/// A key.
pub type Key = [u8; KEY_SIZE];
/// A value; its first eight bytes are a stamp.
pub type Value = [u8; VALUE_SIZE];

/// Splitmix64: a bijection whose output looks random.
#[inline]
pub fn mix(index: u64) -> u64 {
    let mut z = index.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The key with that index; keys of neighbouring indexes share nothing.
#[inline]
pub fn key(index: u64) -> Key {
    let mut key = [0; KEY_SIZE];
    key[..8].copy_from_slice(&mix(index).to_le_bytes());
    key[8..].copy_from_slice(&index.to_le_bytes());
    key
}

/// A value that carries `stamp`.
#[inline]
pub fn value(stamp: u64) -> Value {
    let mut value = [0x5a; VALUE_SIZE];
    value[..8].copy_from_slice(&stamp.to_le_bytes());
    value
}

/// The stamp a value carries.
#[inline]
pub fn stamp(value: &Value) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&value[..8]);
    u64::from_le_bytes(word)
}

/// An endless, repeatable run of random indexes below a bound.
#[derive(Debug, Clone)]
pub struct Indexes {
    state: u64,
    bound: u64,
}

impl Indexes {
    /// Indexes below `bound`; the seed decides which.
    pub fn new(seed: u64, bound: u64) -> Self {
        Self { state: mix(seed), bound }
    }

    /// The next one.
    #[inline]
    pub fn draw(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        // Multiply and shift: the high half of the product is evenly spread below the bound.
        let wide = u128::from(mix(self.state)) * u128::from(self.bound);
        u64::try_from(wide >> 64).unwrap_or(0)
    }
}

/// One number over all records of an engine, independent of their order: equal on both sides of a link at rest.
pub fn digest(record_count: u64, mut get: impl FnMut(&Key) -> Option<Value>) -> u64 {
    let mut sum = 0_u64;
    for index in 0..record_count {
        if let Some(value) = get(&key(index)) {
            sum = sum.wrapping_add(mix(mix(index) ^ stamp(&value)));
        }
    }
    sum
}
