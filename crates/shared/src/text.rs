//! Escaping of text from outside, for a terminal, for JSON, and in a quotation.

use std::io;

/// The most bytes of a reply or a request that a message quotes.
const LONGEST_QUOTE: usize = 80;

/// Escapes the characters that are special, each byte as in `\x1b`.
pub fn escape(text: &str, is_special: impl Fn(char) -> bool) -> String {
    replace(text, is_special, |c| {
        c.encode_utf8(&mut [0; 4])
            .bytes()
            .map(hexadecimal)
            .collect()
    })
}

/// Escapes control characters beyond ASCII in a JSON text, which serde_json leaves unescaped: a
/// terminal may interpret them.
pub fn escape_json(json: &str) -> String {
    replace(json, char::is_control, |c| {
        format!("\\u{:04x}", u32::from(c))
    })
}

/// Returns a reply or a request, truncated, with all characters escaped that a terminal, a
/// monitoring system, its shell or its web pages could interpret.
pub fn excerpt(text: impl AsRef<[u8]>) -> String {
    let bytes = text.as_ref();
    let mut text = String::new();
    for &byte in bytes.iter().take(LONGEST_QUOTE) {
        match byte {
            b'|' | b'\\' | b'"' | b'\'' | b'`' | b'$' | b'&' | b'<' | b'>' => {
                text += &hexadecimal(byte)
            }
            b' '..=b'~' => text.push(char::from(byte)),
            _ => text += &hexadecimal(byte),
        }
    }
    if bytes.len() > LONGEST_QUOTE {
        text += "...";
    }
    text
}

/// Returns an [`excerpt`] in double quotes.
pub fn quoted(text: &[u8]) -> String {
    format!("\"{}\"", excerpt(text))
}

fn replace(
    text: &str,
    is_special: impl Fn(char) -> bool,
    escaped: impl Fn(char) -> String,
) -> String {
    let shown = |c| match is_special(c) {
        true => escaped(c),
        false => c.to_string(),
    };
    text.chars().map(shown).collect()
}

fn hexadecimal(byte: u8) -> String {
    format!("\\x{byte:02x}")
}

/// Describes a system error without the number that std appends:
/// `Address already in use (os error 98)`.
pub fn without_errno(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_string(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn special_characters_are_escaped_byte_by_byte() {
        let text = "a|b\n\u{1b}\u{9b}é";
        assert_eq!(escape(text, char::is_control), r"a|b\x0a\x1b\xc2\x9bé");
        assert_eq!(escape(text, |c| c == '|'), "a\\x7cb\n\u{1b}\u{9b}é");
    }

    #[test]
    fn no_control_character_is_left_in_json() {
        let object = json!({ "request": "\u{1b}[31m\u{7f}\u{9b}é" });
        let text = escape_json(&object.to_string());
        assert_eq!(text, r#"{"request":"\u001b[31m\u007f\u009bé"}"#);
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), object);
    }

    #[test]
    fn what_is_quoted_is_harmless_and_short() {
        assert_eq!(
            quoted(b"ERR BUSY no room; try again"),
            "\"ERR BUSY no room; try again\""
        );
        assert_eq!(
            quoted(b"1|time=0\n\x1b[2J\xff\"$(x)"),
            r#""1\x7ctime=0\x0a\x1b[2J\xff\x22\x24(x)""#
        );
        assert_eq!(quoted(&[b'x'; 80]).len(), 82);
        assert_eq!(quoted(&[b'x'; 81]), format!("\"{}...\"", "x".repeat(80)));
        assert!(quoted(&[b'|'; 100_000]).len() < 400);
    }
}
