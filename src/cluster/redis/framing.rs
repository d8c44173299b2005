//! RESP3 framing: finds the end of a value, within bounds. The redis crate's parser reads values of
//! any length, a hundred levels deep, and none of the streamed ones; so it gets only complete values
//! that were found here to be within the bounds of all expected replies.

/// Largest size of a value in bytes. The longest expected one is the reply to HELLO, which
/// describes the Redis server and its modules.
pub const LONGEST: usize = 64 * 1024;

/// Largest nesting depth. The deepest expected value is a module's argument: in the list of
/// arguments, in the module's description, in the list of modules, in the reply to HELLO.
pub const DEEPEST: usize = 4;

/// Result of the search in the received bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A beginning of a value.
    Incomplete,
    /// A complete value of this size in bytes.
    Complete(usize),
    /// A value that is longer or deeper than every expected one.
    TooLarge,
    /// Not RESP3, whatever follows.
    Invalid,
}

/// Finds the end of the first value. Reads at most [`LONGEST`] bytes. An attribute at the top level
/// counts as a value of its own; within another value it belongs to the value that follows it.
pub fn find(bytes: &[u8]) -> Frame {
    let bytes = &bytes[..bytes.len().min(LONGEST)];
    match value(bytes, 0, 0) {
        Ok(end) => Frame::Complete(end),
        Err(Frame::Incomplete) if bytes.len() == LONGEST => Frame::TooLarge,
        Err(frame) => frame,
    }
}

/// Returns the end of the value that begins at `start`, within `depth` others.
fn value(bytes: &[u8], start: usize, depth: usize) -> Result<usize, Frame> {
    let (kind, text, at) = line(bytes, start, b"+-:_,#($=!*~%>|")?;
    match (kind, text) {
        (b'+' | b'-' | b':' | b'_' | b',' | b'#' | b'(', _) => Ok(at),
        // Null, in RESP2.
        (b'$' | b'*', b"-1") => Ok(at),
        (b'$', b"?") => chunks(bytes, at),
        (b'$' | b'=' | b'!', _) => bulk(bytes, at, number(text)?),
        (b'*' | b'~' | b'>' | b'%' | b'|', b"?") => elements(bytes, at, None, depth + 1),
        (b'%' | b'|', _) => elements(bytes, at, Some(2 * number(text)?), depth + 1),
        _ => elements(bytes, at, Some(number(text)?), depth + 1),
    }
}

/// Returns the end of the `count` values that begin at `at`; without a count, an end marker follows
/// them.
fn elements(
    bytes: &[u8],
    mut at: usize,
    mut count: Option<usize>,
    depth: usize,
) -> Result<usize, Frame> {
    while count != Some(0) {
        if depth > DEEPEST {
            return Err(Frame::TooLarge);
        }
        let kind = bytes.get(at).ok_or(Frame::Incomplete)?;
        if count.is_none() && *kind == b'.' {
            let (_, text, end) = line(bytes, at, b".")?;
            return text.is_empty().then_some(end).ok_or(Frame::Invalid);
        }
        at = value(bytes, at, depth)?;
        // An attribute is not an element.
        count = count.map(|count| count - usize::from(*kind != b'|'));
    }
    Ok(at)
}

/// Returns the end of the streamed string whose chunks begin at `at`.
fn chunks(bytes: &[u8], mut at: usize) -> Result<usize, Frame> {
    loop {
        let (_, text, start) = line(bytes, at, b";")?;
        at = match number(text)? {
            0 => return Ok(start),
            length => bulk(bytes, start, length)?,
        };
    }
}

/// Returns the end of a string of this length and the line end after it.
fn bulk(bytes: &[u8], at: usize, length: usize) -> Result<usize, Frame> {
    let end = at + length + 2;
    match bytes.get(end - 2..end) {
        Some(b"\r\n") => Ok(end),
        Some(_) => Err(Frame::Invalid),
        None if end > LONGEST => Err(Frame::TooLarge),
        None => Err(Frame::Incomplete),
    }
}

/// Returns the kind of the line at `at`, which must be one of `kinds`, the rest of the line, and
/// where the next one begins.
fn line<'a>(bytes: &'a [u8], at: usize, kinds: &[u8]) -> Result<(u8, &'a [u8], usize), Frame> {
    let kind = *bytes.get(at).ok_or(Frame::Incomplete)?;
    if !kinds.contains(&kind) {
        return Err(Frame::Invalid);
    }
    let length = bytes[at..].windows(2).position(|end| end == b"\r\n");
    let end = at + length.ok_or(Frame::Incomplete)?;
    Ok((kind, &bytes[at + 1..end], end + 2))
}

fn number(text: &[u8]) -> Result<usize, Frame> {
    let text = str::from_utf8(text).map_err(|_| Frame::Invalid)?;
    match text.parse() {
        Ok(number) if number <= LONGEST => Ok(number),
        Ok(_) => Err(Frame::TooLarge),
        Err(_) => Err(Frame::Invalid),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Texts separated by blanks, in which `/` stands for a line end.
    fn texts(list: &str) -> impl Iterator<Item = String> {
        list.split_whitespace()
            .map(|text| text.replace('/', "\r\n"))
    }

    /// Runs `find` on `text` and on each of its prefixes, which must agree.
    fn frame(text: &str) -> Frame {
        let bytes = text.as_bytes();
        let all = find(bytes);
        for end in 0..bytes.len() {
            let beginning = find(&bytes[..end]);
            match all {
                Frame::Complete(length) if end >= length => assert_eq!(beginning, all),
                Frame::TooLarge | Frame::Invalid if beginning == all => {}
                _ => assert_eq!(beginning, Frame::Incomplete, "{:?}", &text[..end]),
            }
        }
        all
    }

    #[test]
    fn complete_values_are_found_and_the_redis_crate_parses_them() {
        for value in texts(
            "+OK/ +/ :-7/ _/ $-1/ *-1/ ,-1.5e3/ ,inf/ #t/ #f/ (34928903284093850943850943825024385/ $0// \
             $4//// *0/ ~1/:1/ *3/*0/*1/:1/$1/*/ %1/+a/*1/_/ %2/+a/:1/+b/:2/ ~2/+a/#t/ =5/txt:x/ \
             >3/$7/message/$1/x/$1/y/ -ERR/ !3/ERR/",
        ) {
            let complete = Frame::Complete(value.len());
            assert_eq!(frame(&value), complete, "{value:?}");
            assert!(
                redis::parse_redis_value(value.as_bytes()).is_ok(),
                "{value:?}"
            );
            // Bytes after the value change nothing.
            for more in ["$", "\r\n", "+OK\r\n", "nonsense"] {
                assert_eq!(frame(&format!("{value}{more}")), complete, "{value:?}");
            }
        }
    }

    #[test]
    fn values_that_nobody_asks_for_have_an_end() {
        for value in texts(
            ">2/:1/:2/ |0/ |1/+ttl/:3600/ |1/+a/%1/+b/,0.1/ *2/|1/+ttl/:3600/:1/:2/ *1/|0/:1/ *?/./ \
             *?/:1/|1/+a/+b/*?/:2/././ ~?/+a/./ %?/+a/:1/./ $?/;0/ $?/;4/Hell/;6/o/rld/;0/ *2/$?/;1/./;0/:1/",
        ) {
            assert_eq!(frame(&value), Frame::Complete(value.len()), "{value:?}");
        }
    }

    #[test]
    fn a_deeper_value_than_all_expected_ones_is_refused() {
        for header in ["*1\r\n", "~1\r\n", ">1\r\n", "%1\r\n+a\r\n", "*?\r\n"] {
            let end = if header.contains('?') { ".\r\n" } else { "" };
            let deep = |depth| format!("{}:1\r\n{}", header.repeat(depth), end.repeat(depth));
            let deepest = deep(DEEPEST);
            assert_eq!(frame(&deepest), Frame::Complete(deepest.len()));
            for depth in [DEEPEST + 1, 100, 10_000] {
                assert_eq!(find(deep(depth).as_bytes()), Frame::TooLarge);
            }
        }
        // Siblings do not add depth.
        let wide = format!("*100\r\n{}", "*1\r\n:1\r\n".repeat(100));
        assert_eq!(frame(&wide), Frame::Complete(wide.len()));
    }

    #[test]
    fn a_longer_value_than_all_expected_ones_is_refused() {
        for header in texts("$99999999999/ =65537/ *99999999999/ %9223372036854775807/") {
            assert_eq!(frame(&header), Frame::TooLarge, "{header:?}");
        }
        let bulk = |size: usize| format!("${size}\r\n{}\r\n", "x".repeat(size)).into_bytes();
        let longest = bulk(LONGEST - 10);
        assert_eq!(find(&longest), Frame::Complete(LONGEST));
        assert_eq!(find(&longest[..LONGEST - 1]), Frame::Incomplete);
        assert_eq!(find(&bulk(LONGEST - 9)), Frame::TooLarge);
        // Values without an end.
        for (header, rest) in [("+", "x"), ("*60000/", ":1/"), ("*60000/", "$1/x/")] {
            let endless = format!("{header}{}", rest.repeat(LONGEST)).replace('/', "\r\n");
            let endless = endless.as_bytes();
            assert_eq!(
                find(&endless[..LONGEST - 1]),
                Frame::Incomplete,
                "{header:?}"
            );
            assert_eq!(find(endless), Frame::TooLarge);
        }
    }

    #[test]
    fn what_is_not_resp3_is_refused() {
        for invalid in texts(
            "HTTP / \0 $/ $x/ ./ ;1/ *1/./ *?/.1/ *?/;1/ $?/+a/ $?/;?/ =?/ |-1/ $-2/ $1/xx/ *-2/ *1.5/ *1/x \
             =-1/ %-1/ ~-1/ >-1/ $99999999999999999999999999/",
        ) {
            assert_eq!(frame(&invalid), Frame::Invalid, "{invalid:?}");
        }
    }
}
