//! Arithmetic commands: sums, maxima and primes.

use std::sync::LazyLock;
use std::time::Duration;

use primal_sieve::Sieve;

use crate::clock::Nanos;
use crate::command::{
    Argument, Call, CommandClass, CommandError, CommandSet, CommandSpec, Context, Count, Parameter,
    Rpc, Value, ValueType,
};

/// ADD, MAX and NP.
pub const SET: CommandSet = &[
    CommandSpec {
        name: "ADD",
        parameters: &[Parameter::integer("X"), Parameter::integer("Y")],
        result: ValueType::Integer,
        summary: "the sum of two whole numbers of 64 bits",
        class: CommandClass::Query,
        rpc: Some(Rpc::new("Calc", "Add", 20)),
        execute: add,
    },
    CommandSpec {
        name: "MAX",
        parameters: &[Parameter::integer("X"), Parameter::integer("Y")],
        result: ValueType::Integer,
        summary: "the greater of two whole numbers of 64 bits",
        class: CommandClass::Query,
        rpc: Some(Rpc::new("Calc", "Max", 21)),
        execute: |_, call| {
            let [x, y] = integers(call)?;
            Ok(Value::Integer(x.max(y)))
        },
    },
    CommandSpec {
        name: "NP",
        parameters: &[Parameter::integer_between("N", 1, MOST_PRIMES).given(Count::Repeated)],
        result: ValueType::Integers,
        summary: "the Nth primes, of which 2 is the first; N from 1 to 10000000",
        class: CommandClass::Compute,
        rpc: Some(Rpc::new("Calc", "NthPrimes", 22)),
        execute: np,
    },
];

/// The greatest N of `NP`.
const MOST_PRIMES: i64 = 10_000_000;

/// The prime number `MOST_PRIMES`: <https://oeis.org/A006988>.
const GREATEST_PRIME: usize = 179_424_673;

/// Table of primes, 6 MiB: too large for a constant. The first request for a prime computes it in
/// about 40 ms; other requests for primes wait meanwhile, all else goes on. A lookup takes about 5
/// µs, and a call has at most 1,024 of them.
static PRIMES: LazyLock<Sieve> = LazyLock::new(|| Sieve::new(GREATEST_PRIME));

fn add<'a>(_: &'a Context, call: &Call<'a>) -> Result<Value<'a>, CommandError<'a>> {
    let [x, y] = integers(call)?;
    let sum = x.checked_add(y).map(Value::Integer);
    sum.ok_or(CommandError::OutOfRange("the sum has more than 64 bits"))
}

fn np<'a>(context: &'a Context, call: &Call<'a>) -> Result<Value<'a>, CommandError<'a>> {
    // Computed before the permit is taken: otherwise all requests for primes would wait for the
    // permit meanwhile, and be refused for it.
    let begun = Nanos::now();
    let primes = LazyLock::force(&PRIMES);
    let table_time = Duration::from_nanos(begun.until(Nanos::now()));
    let mut permit = context.limiter.acquire(call, table_time)?;
    let mut found = Vec::with_capacity(call.arguments.len());
    for argument in &call.arguments {
        let Argument::Integer(place) = *argument else {
            return Err(CommandError::Usage(call.spec));
        };
        // Both fit: places are at most `MOST_PRIMES`.
        found.push(primes.nth_prime(place as usize) as i64);
        permit.pause();
    }
    Ok(Value::Integers(found))
}

/// Returns the arguments, which are declared as two integers.
fn integers<'a>(call: &Call<'a>) -> Result<[i64; 2], CommandError<'a>> {
    match call.arguments[..] {
        [Argument::Integer(x), Argument::Integer(y)] => Ok([x, y]),
        _ => Err(CommandError::Usage(call.spec)),
    }
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
