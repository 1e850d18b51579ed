//! Floor 0: randomness as a dependency: the process asks the operating system, a simulator its seed.

use uuid::Uuid;

/// Source of random numbers.
pub trait Chance: Send + Sync {
    /// Any number, each as likely as any other.
    fn next(&self) -> u64;
}

/// The operating system's randomness.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemChance;

impl Chance for SystemChance {
    fn next(&self) -> u64 {
        // Six of a random UUID's 128 bits are fixed, three in each half at most.
        let (high, low) = Uuid::new_v4().as_u64_pair();
        high.rotate_left(32) ^ low
    }
}
