//! Arithmetic commands: sums, maxima and primes.

use std::sync::LazyLock;

use primal_sieve::Sieve;

use crate::command::{
    CommandClass, CommandError, CommandSet, CommandSpec, Context, Reply, Request,
};

/// ADD, MAX and NP.
pub const SET: CommandSet = &[
    CommandSpec {
        name: "ADD",
        arguments: "X Y",
        summary: "the sum of two whole numbers of 64 bits",
        kind: CommandClass::Query,
        execute: add,
    },
    CommandSpec {
        name: "MAX",
        arguments: "X Y",
        summary: "the greater of two whole numbers of 64 bits",
        kind: CommandClass::Query,
        execute: max,
    },
    CommandSpec {
        name: "NP",
        arguments: "N [N ...]",
        summary: "the Nth primes, of which 2 is the first; N from 1 to 10000000",
        kind: CommandClass::Compute,
        execute: np,
    },
];

/// The greatest N of `NP`.
const MOST_PRIMES: usize = 10_000_000;

/// The prime number `MOST_PRIMES`: <https://oeis.org/A006988>.
const GREATEST_PRIME: usize = 179_424_673;

/// Table of primes, 6 MiB: too large for a constant. The first request for a prime computes it in
/// about 40 ms; other requests for primes wait meanwhile, all else goes on. A lookup takes about 5
/// µs, and a request has room for 510 of them.
static PRIMES: LazyLock<Sieve> = LazyLock::new(|| Sieve::new(GREATEST_PRIME));

fn add<'a>(_: &'a Context, request: &Request<'a>) -> Result<Reply<'a>, CommandError<'a>> {
    let [x, y] = integers(request)?;
    let sum = x.checked_add(y);
    let sum = sum.ok_or(CommandError::OutOfRange("the sum has more than 64 bits"))?;
    Ok(Reply::Owned(sum.to_string()))
}

fn max<'a>(_: &'a Context, request: &Request<'a>) -> Result<Reply<'a>, CommandError<'a>> {
    let [x, y] = integers(request)?;
    Ok(Reply::Owned(x.max(y).to_string()))
}

fn np<'a>(context: &'a Context, request: &Request<'a>) -> Result<Reply<'a>, CommandError<'a>> {
    // Validate all arguments before the first lookup.
    let places = request.arguments().map(|word| {
        number(word)
            .filter(|place| (1..=MOST_PRIMES).contains(place))
            .ok_or(CommandError::Argument {
                wanted: "a whole number from 1 to 10000000",
                given: word,
            })
    });
    let places = places.collect::<Result<Vec<usize>, _>>()?;
    if places.is_empty() {
        return Err(CommandError::Usage(request.entry));
    }
    // Computed before the permit is taken: otherwise all requests for primes would wait for the
    // permit meanwhile, and be refused for it.
    let primes = LazyLock::force(&PRIMES);
    let mut turn = context.limiter.take(request)?;
    let mut words = Vec::with_capacity(places.len());
    for place in places {
        words.push(primes.nth_prime(place).to_string());
        turn.pause();
    }
    Ok(Reply::Owned(words.join(" ")))
}

/// Returns the arguments if they are exactly two integers.
fn integers<'a>(request: &Request<'a>) -> Result<[i64; 2], CommandError<'a>> {
    let [x, y] = request.take()?;
    let integer = |word| {
        number(word).ok_or(CommandError::Argument {
            wanted: "a whole number of 64 bits",
            given: word,
        })
    };
    Ok([integer(x)?, integer(y)?])
}

/// Parses decimal digits with an optional sign.
fn number<T: std::str::FromStr>(word: &[u8]) -> Option<T> {
    std::str::from_utf8(word).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    use uuid::Uuid;

    use super::*;

    fn answer(request: &str) -> String {
        let context = Context::new(Arc::new(AtomicUsize::new(1)), Uuid::nil(), &[SET]);
        context.reply_to(request)
    }

    #[test]
    fn sums_are_right_or_refused() {
        assert_eq!(answer("ADD 2 5"), "7");
        assert_eq!(answer("add -2 +1"), "-1");
        let (least, greatest) = (i64::MIN, i64::MAX);
        assert_eq!(answer(&format!("ADD {least} {greatest}")), "-1");
        for sum in [format!("{greatest} 1"), format!("-1 {least}")] {
            let refused = "ERR USAGE the sum has more than 64 bits";
            assert_eq!(answer(&format!("ADD {sum}")), refused);
        }
    }

    #[test]
    fn the_greater_is_the_greater() {
        assert_eq!(answer("MAX 2 6"), "6");
        assert_eq!(answer("MAX -2 -6"), "-2");
        assert_eq!(answer(&format!("MAX {} 0", i64::MIN)), "0");
    }

    #[test]
    fn primes_are_counted_from_one() {
        assert_eq!(answer("NP 2 12"), "3 37");
        assert_eq!(answer("NP 9999 1234 1 2 3 4"), "104723 10061 2 3 5 7");
        // The powers of ten: https://oeis.org/A006988.
        assert_eq!(
            answer("NP 1 10 100 1000 10000 100000 1000000 10000000"),
            "2 29 541 7919 104729 1299709 15485863 179424673"
        );
    }

    #[test]
    fn all_small_primes_are_those_that_nothing_divides() {
        let is_prime = |n: &usize| {
            (2..*n)
                .take_while(|d| d * d <= *n)
                .all(|d| !n.is_multiple_of(d))
        };
        for (place, prime) in (2..50_000).filter(is_prime).enumerate() {
            assert_eq!(PRIMES.nth_prime(place + 1), prime);
        }
    }

    #[test]
    fn what_is_no_such_number_is_said_and_nothing_is_computed() {
        for (request, refused) in [
            ("ADD 1", "usage: ADD X Y"),
            ("ADD 1 2 3", "usage: ADD X Y"),
            ("MAX", "usage: MAX X Y"),
            ("NP", "usage: NP N [N ...]"),
            ("ADD 1 x", "not a whole number of 64 bits: \"x\""),
            ("ADD 1 2.5", "not a whole number of 64 bits: \"2.5\""),
            (
                "MAX 9223372036854775808 0",
                "not a whole number of 64 bits: \"9223372036854775808\"",
            ),
            ("NP 1 0", "not a whole number from 1 to 10000000: \"0\""),
            (
                "NP 10000001",
                "not a whole number from 1 to 10000000: \"10000001\"",
            ),
            ("NP -1", "not a whole number from 1 to 10000000: \"-1\""),
        ] {
            assert_eq!(answer(request), format!("ERR USAGE {refused}"), "{request}");
        }
    }
}
