//! RESP3 framing: finds the end of a value, within bounds. The redis crate reads values of any
//! length and depth, so it gets only complete values that were found here to be within the bounds
//! of all expected replies.

/// Largest size of a value in bytes. The longest expected one is the reply to HELLO, which
/// describes the Redis server and its modules.
pub const LONGEST: usize = 64 * 1024;

/// Largest nesting depth. The deepest expected value is a module's argument: in the list of
/// arguments, in the module's description, in the list of modules, in the reply to HELLO.
pub const DEEPEST: usize = 4;

/// Remaining values of an aggregate whose end is marked by a value of its own.
const UNTIL_END: usize = usize::MAX;

/// Result of the search in the received bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// A beginning of a value.
    Part,
    /// A complete value of this size in bytes.
    Whole(usize),
    /// Not a valid value, whatever follows.
    Bad(Bad),
}

/// Reason to reject a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bad {
    /// Longer or deeper than every expected value.
    TooMuch,
    /// It is not RESP3.
    Nonsense,
}

/// Finds the end of the first value. Reads at most [`LONGEST`] bytes. An attribute at the top level
/// counts as a value of its own; within another value it belongs to the value that follows it.
pub fn find(bytes: &[u8]) -> Found {
    let bytes = &bytes[..bytes.len().min(LONGEST)];
    let part = match bytes.len() {
        LONGEST => Found::Bad(Bad::TooMuch),
        _ => Found::Part,
    };
    // Remaining values on each nesting level.
    let mut left = [0; DEEPEST + 1];
    left[0] = 1;
    let mut depth = 0;
    let mut at = 0;
    // Whether the chunks of a streamed string follow.
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
        // `None` if an end marker follows instead.
        let count = match (sort, line) {
            (b'+' | b'-' | b':' | b'_' | b',' | b'#' | b'(', _) => continue,
            // Null, in RESP2.
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

    /// Runs `find` on `text` and on each of its prefixes, which must agree.
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
            // Bytes after the value change nothing.
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

    /// These values must have an end, whether or not the redis crate can parse them.
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
        // Siblings do not add depth.
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
        // Values without an end, in all forms.
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
