//! Tables of cases in text files: bytes sent and replies read; wrong settings and what is said of them.

use super::{fails_with, program};

/// The bytes of a text with `\n`, `\r`, `\t`, `\\` and `\xNN` in it, and `{TEXT*N}` for N times that text.
pub fn bytes(text: &str) -> Vec<u8> {
    expand(text, unescape)
}

fn expand(text: &str, piece: impl Fn(&str) -> Vec<u8>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some((before, repeated)) = rest.split_once('{') {
        let (repeated, after) = repeated.split_once('}').expect("a closing brace");
        let (repeated, times) = repeated.rsplit_once('*').expect("TEXT*N");
        bytes.extend(piece(before));
        bytes.extend(piece(repeated).repeat(times.parse().expect("a number")));
        rest = after;
    }
    bytes.extend(piece(rest));
    bytes
}

fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let (byte, after) = match (first, after) {
            (b'\\', [b'n', after @ ..]) => (b'\n', after),
            (b'\\', [b'r', after @ ..]) => (b'\r', after),
            (b'\\', [b't', after @ ..]) => (b'\t', after),
            (b'\\', [b'\\', after @ ..]) => (b'\\', after),
            (b'\\', [b'x', high, low, after @ ..]) => {
                let digits = [*high, *low].map(char::from).iter().collect::<String>();
                (u8::from_str_radix(&digits, 16).expect("\\xNN"), after)
            }
            (byte, after) => (*byte, after),
        };
        bytes.push(byte);
        rest = after;
    }
    bytes
}

/// The lines of a table, without those that are blank or comments.
pub fn lines(table: &str) -> impl Iterator<Item = &str> {
    let lines = table.lines();
    lines.filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// What is sent in one connection, and all that is read from it.
#[derive(Default)]
pub struct Exchange {
    pub sent: Vec<u8>,
    /// A `…` at the end of a reply stands for any other ending.
    replies: Vec<String>,
    /// How often both are repeated.
    times: usize,
}

impl Exchange {
    /// Checks that these are the replies.
    pub fn check(&self, read: &str) {
        let sent = String::from_utf8_lossy(&self.sent[..self.sent.len().min(200)]);
        let replies: Vec<&str> = read.split_terminator('\n').collect();
        assert_eq!(replies.len(), self.replies.len() * self.times, "{sent:?}");
        assert!(read.is_empty() || read.ends_with('\n'), "{read:?}");
        for (reply, expected) in replies.iter().zip(self.replies.iter().cycle()) {
            let is_right = match expected.strip_suffix('…') {
                Some(beginning) => reply.starts_with(beginning) && reply.len() > beginning.len(),
                None => reply == expected,
            };
            assert!(is_right, "{sent:?} -> {reply:?}, not {expected:?}");
        }
    }
}

/// The exchanges of a transcript, with the arguments of the daemons that answer so.
///
/// Each line `> BYTES` is a connection, which is half-closed then, and each line `< REPLY` below it a reply in it; `>*N`
/// repeats bytes and replies N times. The lines `daemon: ARGUMENTS` above say by which daemons.
pub fn exchanges(transcript: &str) -> Vec<(Vec<&str>, Vec<Exchange>)> {
    let mut groups: Vec<(Vec<&str>, Vec<Exchange>)> = vec![Default::default()];
    for line in lines(transcript) {
        let (daemons, exchanges) = groups.last_mut().expect("one at least");
        if let Some(arguments) = line.strip_prefix("daemon: ") {
            match exchanges.is_empty() {
                true => daemons.push(arguments),
                false => groups.push((vec![arguments], Vec::new())),
            }
        } else if let Some(text) = line.strip_prefix('>') {
            let (times, sent) = text.split_once(' ').unwrap_or((text, ""));
            let times = times.strip_prefix('*').unwrap_or("1");
            exchanges.push(Exchange {
                sent: bytes(sent).repeat(times.parse().expect("a number")),
                replies: Vec::new(),
                times: times.parse().expect("a number"),
            });
        } else if let Some(reply) = line.strip_prefix("< ") {
            let reply = expand(reply, |raw| raw.as_bytes().to_vec());
            let exchange = exchanges.last_mut().expect("> BYTES above");
            exchange
                .replies
                .push(String::from_utf8(reply).expect("UTF-8"));
        }
    }
    groups
}

/// Runs the daemon for each line `STATUS | WORDS | SAID | …` of a table: it must end with this status and say all that.
///
/// Words like `NAME=value` before the flags are variables; `replace` has what stands for which word in braces.
pub fn check_refusals(table: &str, replace: &[(&str, &str)]) {
    for line in lines(table) {
        let mut text = line.to_string();
        for (name, value) in replace {
            text = text.replace(&format!("{{{name}}}"), value);
        }
        let mut cells = text.split('|').map(str::trim);
        let status = cells.next().and_then(|status| status.parse().ok());
        let mut words = cells.next().expect("words").split_whitespace().peekable();
        let mut command = program();
        while let Some(variable) =
            words.next_if(|word| !word.starts_with('-') && word.contains('='))
        {
            let (name, value) = variable.split_once('=').expect("NAME=value");
            command.env(name, value);
        }
        command.args(words);
        let said: Vec<&str> = cells.collect();
        fails_with(command, status.expect("a status"), &said);
    }
}
