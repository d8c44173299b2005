//! Where a value that Redis sends ends (RESP3). The redis crate reads as much and as deep as the other side likes: what it gets to
//! read are whole values, after they have been found here to be no larger than anything that is asked for.

/// The most bytes of one value. The longest that is asked for is what a Redis says of itself and its modules.
pub const LONGEST: usize = 64 * 1024;

/// The most values around a value: the arguments of a module, in the list of them, in what is said of one, in the list of all,
/// in the reply to HELLO.
pub const DEEPEST: usize = 4;

/// How many values are to come on a level whose end is told by a value of its own.
const UNTIL_END: usize = usize::MAX;

/// What the bytes that have arrived begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// The beginning of a value.
    Part,
    /// A value of so many bytes.
    Whole(usize),
    /// None, whatever comes.
    Bad(Bad),
}

/// Why something is no value that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bad {
    /// It is longer or deeper than all that is asked for.
    TooMuch,
    /// It is not RESP3.
    Nonsense,
}

/// Finds the end of the first value. It looks at no more than [`LONGEST`] bytes. What is said about a value, its attributes, comes
/// before it and is one of its own; within another it belongs to the one that follows.
pub fn find(bytes: &[u8]) -> Found {
    let bytes = &bytes[..bytes.len().min(LONGEST)];
    let part = match bytes.len() {
        LONGEST => Found::Bad(Bad::TooMuch),
        _ => Found::Part,
    };
    // How many values are still to come on each level.
    let mut left = [0; DEEPEST + 1];
    left[0] = 1;
    let mut depth = 0;
    let mut at = 0;
    // Whether the pieces of a string are coming.
    let mut pieces = false;
    while left[0] > 0 || depth > 0 || pieces {
        if left[depth] == 0 && !pieces {
            depth -= 1;
            continue;
        }
        let Some(&sort) = bytes.get(at) else {
            return part;
        };
        let is_known = match sort {
            b';' => pieces,
            b'.' => left[depth] == UNTIL_END && !pieces,
            _ => b"+-:_,#($=!*~>%|".contains(&sort) && !pieces,
        };
        if !is_known {
            return Found::Bad(Bad::Nonsense);
        }
        if left[depth] != UNTIL_END && !pieces && (sort != b'|' || depth == 0) {
            left[depth] -= 1;
        }
        let Some(length) = bytes[at..].windows(2).position(|end| end == b"\r\n") else {
            return part;
        };
        let line = &bytes[at + 1..at + length];
        at += length + 2;
        // Nothing if it has an end of its own.
        let count = match (sort, line) {
            (b'+' | b'-' | b':' | b'_' | b',' | b'#' | b'(', _) => continue,
            // There is none.
            (b'$' | b'*', b"-1") => continue,
            (b'.', b"") => {
                left[depth] = 0;
                continue;
            }
            (b'$', b"?") => {
                pieces = true;
                continue;
            }
            (b'*' | b'~' | b'%' | b'>' | b'|', b"?") => None,
            _ => {
                let count = str::from_utf8(line).ok().and_then(|line| line.parse().ok());
                match count {
                    Some(count) if count > LONGEST => return Found::Bad(Bad::TooMuch),
                    Some(_) if sort != b'.' => count,
                    _ => return Found::Bad(Bad::Nonsense),
                }
            }
        };
        match (sort, count) {
            (b';', Some(0)) => pieces = false,
            (b'$' | b'=' | b'!' | b';', Some(count)) => {
                let end = at + count;
                if end + 2 > LONGEST {
                    return Found::Bad(Bad::TooMuch);
                }
                match bytes.get(end..end + 2) {
                    None => return part,
                    Some(b"\r\n") => at = end + 2,
                    Some(_) => return Found::Bad(Bad::Nonsense),
                }
            }
            (_, Some(0)) => {}
            _ if depth == DEEPEST => return Found::Bad(Bad::TooMuch),
            (_, count) => {
                depth += 1;
                left[depth] = match (sort, count) {
                    (_, None) => UNTIL_END,
                    (b'%' | b'|', Some(count)) => 2 * count,
                    (_, Some(count)) => count,
                };
            }
        }
    }
    Found::Whole(at)
}

#[cfg(test)]
mod tests {
    use redis::Value;

    use super::*;

    /// What is found in `text` and in each of its beginnings; what is whole, the redis crate can read.
    fn found(text: &str) -> Found {
        let bytes = text.as_bytes();
        let all = find(bytes);
        for end in 0..bytes.len() {
            let beginning = find(&bytes[..end]);
            match all {
                Found::Whole(length) if end >= length => assert_eq!(beginning, all),
                Found::Bad(_) if beginning == all => {}
                _ => assert_eq!(beginning, Found::Part, "{:?}", &text[..end]),
            }
        }
        all
    }

    #[test]
    fn whole_values_are_found_and_read() {
        let text = |text: &str| Value::BulkString(text.into());
        for (bytes, value) in [
            ("+OK\r\n", Value::Okay),
            ("+\r\n", Value::SimpleString(String::new())),
            (":-7\r\n", Value::Int(-7)),
            ("_\r\n", Value::Nil),
            ("$-1\r\n", Value::Nil),
            ("*-1\r\n", Value::Nil),
            (",-1.5e3\r\n", Value::Double(-1500.0)),
            ("#t\r\n", Value::Boolean(true)),
            ("$0\r\n\r\n", text("")),
            ("$4\r\n\r\n\r\n\r\n", text("\r\n\r\n")),
            ("*0\r\n", Value::Array(vec![])),
            ("~1\r\n:1\r\n", Value::Set(vec![Value::Int(1)])),
            (
                "*3\r\n*0\r\n*1\r\n:1\r\n$1\r\n*\r\n",
                Value::Array(vec![
                    Value::Array(vec![]),
                    Value::Array(vec![Value::Int(1)]),
                    text("*"),
                ]),
            ),
            (
                "%1\r\n+a\r\n*1\r\n_\r\n",
                Value::Map(vec![(
                    Value::SimpleString("a".into()),
                    Value::Array(vec![Value::Nil]),
                )]),
            ),
            (
                ">3\r\n$7\r\nmessage\r\n$1\r\nx\r\n$1\r\ny\r\n",
                Value::Push {
                    kind: redis::PushKind::Message,
                    data: vec![text("x"), text("y")],
                },
            ),
        ] {
            assert_eq!(found(bytes), Found::Whole(bytes.len()), "{bytes:?}");
            let read = redis::parse_redis_value(bytes.as_bytes()).expect(bytes);
            assert_eq!(read, value, "{bytes:?}");
            // What comes behind it changes nothing.
            for more in ["$", "\r\n", "+OK\r\n", "nonsense"] {
                assert_eq!(
                    found(&format!("{bytes}{more}")),
                    Found::Whole(bytes.len()),
                    "{bytes:?}"
                );
            }
        }
        for error in ["-ERR no\r\n", "!6\r\nERR no\r\n"] {
            assert_eq!(found(error), Found::Whole(error.len()));
        }
    }

    /// Whether the redis crate reads it or not.
    #[test]
    fn values_that_nobody_asks_for_have_an_end() {
        for bytes in [
            "_\r\n",
            "#f\r\n",
            ",inf\r\n",
            "(3492890328409238509324850943850943825024385\r\n",
            "=15\r\ntxt:Some string\r\n",
            "!21\r\nSYNTAX invalid syntax\r\n",
            "~2\r\n+a\r\n#t\r\n",
            "%2\r\n+a\r\n:1\r\n+b\r\n:2\r\n",
            ">2\r\n:1\r\n:2\r\n",
            "|0\r\n",
            "|1\r\n+ttl\r\n:3600\r\n",
            "|1\r\n+a\r\n%1\r\n+b\r\n,0.1\r\n",
            "*2\r\n|1\r\n+ttl\r\n:3600\r\n:1\r\n:2\r\n",
            "*1\r\n|0\r\n:1\r\n",
            "*?\r\n.\r\n",
            "*?\r\n:1\r\n|1\r\n+a\r\n+b\r\n*?\r\n:2\r\n.\r\n.\r\n",
            "~?\r\n+a\r\n.\r\n",
            "%?\r\n+a\r\n:1\r\n.\r\n",
            "$?\r\n;0\r\n",
            "$?\r\n;4\r\nHell\r\n;6\r\no\r\nrld\r\n;0\r\n",
            "*2\r\n$?\r\n;1\r\n.\r\n;0\r\n:1\r\n",
        ] {
            assert_eq!(found(bytes), Found::Whole(bytes.len()), "{bytes:?}");
            assert_eq!(found(&format!("{bytes}*1")), Found::Whole(bytes.len()));
        }
    }

    #[test]
    fn what_is_deeper_than_all_that_is_asked_for_is_refused() {
        for header in ["*1\r\n", "~1\r\n", ">1\r\n", "%1\r\n+a\r\n", "*?\r\n"] {
            let ends = if header.contains('?') { ".\r\n" } else { "" };
            let deep =
                |levels: usize| format!("{}:1\r\n{}", header.repeat(levels), ends.repeat(levels));
            let deepest = deep(DEEPEST);
            assert_eq!(found(&deepest), Found::Whole(deepest.len()));
            for levels in [DEEPEST + 1, 100, 10_000] {
                assert_eq!(find(deep(levels).as_bytes()), Found::Bad(Bad::TooMuch));
            }
        }
        // Side by side is not deep.
        let wide = format!("*100\r\n{}", "*1\r\n:1\r\n".repeat(100));
        assert_eq!(found(&wide), Found::Whole(wide.len()));
    }

    #[test]
    fn what_is_longer_than_all_that_is_asked_for_is_refused() {
        for header in [
            "$99999999999\r\n",
            "=65537\r\n",
            "*99999999999\r\n",
            "%9223372036854775807\r\n",
        ] {
            assert_eq!(found(header), Found::Bad(Bad::TooMuch), "{header:?}");
        }
        let bulk = |size: usize| format!("${size}\r\n{}\r\n", "x".repeat(size)).into_bytes();
        let longest = bulk(LONGEST - 10);
        assert_eq!(find(&longest), Found::Whole(LONGEST));
        assert_eq!(find(&longest[..LONGEST - 1]), Found::Part);
        assert_eq!(find(&bulk(LONGEST - 9)), Found::Bad(Bad::TooMuch));
        // Without an end, in whatever form.
        for endless in ["+", "+x", "*60000\r\n:1\r\n", "*60000\r\n$1\r\nx\r\n"] {
            let (header, rest) = endless.split_at(endless.find('\n').map_or(1, |at| at + 1));
            let rest = if rest.is_empty() { "x" } else { rest };
            let endless = format!("{header}{}", rest.repeat(LONGEST));
            assert_eq!(
                find(&endless.as_bytes()[..LONGEST - 1]),
                Found::Part,
                "{header:?}"
            );
            assert_eq!(find(endless.as_bytes()), Found::Bad(Bad::TooMuch));
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for nonsense in [
            "HTTP/1.1 400 Bad Request\r\n",
            "\r\n",
            "\0",
            "$\r\n",
            "$x\r\n",
            ".\r\n",
            ";1\r\n",
            "*1\r\n.\r\n",
            "*?\r\n.1\r\n",
            "*?\r\n;1\r\n",
            "$?\r\n+a\r\n",
            "$?\r\n;?\r\n",
            "=?\r\n",
            "|-1\r\n",
            "$-2\r\n",
            "$1\r\nxx\r\n",
            "*-2\r\n",
            "*1.5\r\n",
            "*1\r\nx",
            "=-1\r\n",
            "%-1\r\n",
            "~-1\r\n",
            ">-1\r\n",
            "$99999999999999999999999999\r\n",
        ] {
            assert_eq!(found(nonsense), Found::Bad(Bad::Nonsense), "{nonsense:?}");
        }
    }
}
