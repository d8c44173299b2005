//! What a server's line says.

/// After these errors the connection goes on; after all others, those of later versions included, the server closes.
const GOING_ON: [&str; 4] = ["UNKNOWN", "USAGE", "BADINPUT", "UNAVAILABLE"];

/// Whether the server closes after an error of this word.
pub fn closes_after(word: &str) -> bool {
    !GOING_ON.contains(&word)
}

/// The reply to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The value.
    Value(String),
    /// `ERR`: why there is none.
    Refused {
        /// The word for programs, such as `USAGE`.
        word: String,
        /// The sentence for a person.
        sentence: String,
    },
}

impl Reply {
    /// Whether the server closes after it.
    pub fn closes(&self) -> bool {
        matches!(self, Reply::Refused { word, .. } if closes_after(word))
    }
}

impl From<Vec<u8>> for Reply {
    /// A server of ours sends printable ASCII; what else may come is replaced, so that it is harmless in a terminal.
    fn from(line: Vec<u8>) -> Self {
        let line = line.strip_suffix(b"\r").unwrap_or(&line);
        let text: String = line
            .iter()
            .map(|byte| match byte {
                b' '..=b'~' => char::from(*byte),
                _ => '?',
            })
            .collect();
        match text.strip_prefix("ERR ") {
            None => Reply::Value(text),
            Some(refusal) => {
                let (word, sentence) = refusal.split_once(' ').unwrap_or((refusal, ""));
                Reply::Refused {
                    word: word.to_string(),
                    sentence: sentence.to_string(),
                }
            }
        }
    }
}

impl std::fmt::Display for Reply {
    /// The line, as the server sent it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Reply::Value(value) => f.write_str(value),
            Reply::Refused { word, sentence } if sentence.is_empty() => write!(f, "ERR {word}"),
            Reply::Refused { word, sentence } => write!(f, "ERR {word} {sentence}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_a_value_or_says_why_not() {
        let reply = |line: &str| Reply::from(line.as_bytes().to_vec());
        assert_eq!(reply("42"), Reply::Value("42".to_string()));
        assert_eq!(reply("ERRATIC"), Reply::Value("ERRATIC".to_string()));
        assert_eq!(reply("1\u{1b}[2J"), Reply::Value("1?[2J".to_string()));
        let refused = |word: &str, sentence: &str| Reply::Refused {
            word: word.to_string(),
            sentence: sentence.to_string(),
        };
        assert_eq!(
            reply("ERR BUSY full, try again"),
            refused("BUSY", "full, try again")
        );
        assert_eq!(reply("ERR NEW"), refused("NEW", ""));
        for line in ["42", "ERR BUSY full", "ERR NEW"] {
            assert_eq!(reply(line).to_string(), line);
        }
    }
}
