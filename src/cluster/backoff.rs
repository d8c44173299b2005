//! Exponential backoff with jitter: the pause before a failed attempt is repeated.

use std::time::Duration;

use uuid::Uuid;

/// Longest first pause; it doubles with each failure.
const FIRST: Duration = Duration::from_millis(40);

/// Returns the pause after `failed` failures, `longest` at most. Half of it is random, so that not
/// all servers retry at once.
pub fn pause(failed: u64, longest: Duration) -> Duration {
    let doubled = FIRST * (1 << failed.saturating_sub(1).min(10));
    let longest = doubled.min(longest);
    longest / 2 + random(longest / 2)
}

/// Returns a random part of `time`.
pub fn random(time: Duration) -> Duration {
    // The last 32 bits of a version 4 UUID are all random.
    time.mul_f64(f64::from(Uuid::new_v4().as_u128() as u32) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_the_longest_and_differ() {
        let longest = Duration::from_millis(250);
        for failed in 1..100 {
            let pause = pause(failed, longest);
            assert!(pause >= FIRST / 2 && pause <= longest, "{pause:?}");
        }
        assert!(pause(1, longest) <= FIRST);
        assert!(pause(u64::MAX, longest) >= longest / 2);
        assert_ne!(pause(50, longest), pause(50, longest));
    }
}
