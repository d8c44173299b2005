//! Numbers that are the same in every run of the same seed.

use std::time::Duration;

/// A generator of numbers (xorshift64*).
pub struct Random(u64);

impl Random {
    /// Begins with `seed`.
    pub fn new(seed: u64) -> Self {
        // Seeds that are near each other shall not begin alike, and none may be 0.
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        random.next();
        random.next();
        random
    }

    /// Any number.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() >> 33) as usize % end
    }

    /// A time between these two.
    pub fn between(&mut self, least: Duration, most: Duration) -> Duration {
        let share = (self.next() >> 33) as f64 / f64::from(1_u32 << 31);
        least + (most - least).mul_f64(share)
    }
}
