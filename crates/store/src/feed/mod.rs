//! Feeds: users as a JSON array, or as JSON values one after the other, of any length.
//!
//! A feed is read in one pass: `elements` finds where each value ends, `user` makes a user of it
//! or says what is wrong with it. A value that is no user concerns nobody else; a feed that is no
//! JSON, or breaks off, ends there.

mod elements;
pub mod http;
pub mod source;
mod user;

use std::io::{self, Read};

use elements::{Element, Elements};
use shared::text::quoted;
pub use user::FeedUser;

/// The largest user in bytes, as JSON.
pub const LARGEST_USER: usize = 64 * 1024;

/// Reads the users of a feed.
pub struct Feed<R> {
    elements: Elements<R>,
}

/// A value of a feed: a user, or what is wrong with it.
pub type Value<'a> = Result<FeedUser<'a>, Refused>;

/// What is wrong with a value that is no user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The place of the value in the feed, from 1 on.
    pub number: u64,
    /// Its id, if that is known.
    pub id: Option<String>,
    /// The reason.
    pub why: &'static str,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "value {}", self.number)?;
        if let Some(id) = &self.id {
            write!(f, ", of the id {}", quoted(id.as_bytes()))?;
        }
        write!(f, ": {}", self.why)
    }
}

impl<R: Read> Feed<R> {
    /// Returns the feed in these bytes.
    pub fn new(reader: R) -> Self {
        Feed {
            elements: Elements::new(reader),
        }
    }

    /// Returns the next value, or `None` after the last.
    ///
    /// # Errors
    ///
    /// If reading fails, or what is read is no JSON or breaks off. The feed ends with it.
    pub fn next_value(&mut self) -> io::Result<Option<Value<'_>>> {
        let number = self.elements.count() + 1;
        let refused = |id, why| Err(Refused { number, id, why });
        Ok(match self.elements.next()? {
            None => None,
            Some(Element::TooLong) => Some(refused(None, "it has more than 65,536 bytes")),
            Some(Element::Value(json)) => {
                let user = FeedUser::parse(json);
                Some(user.or_else(|(id, why)| refused(id, why)))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the values of a feed, of which `at_once` bytes are read at a time.
    fn read(feed: &[u8], at_once: usize) -> Vec<String> {
        struct Slowly<'a>(&'a [u8], usize);
        impl Read for Slowly<'_> {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                let length = self.1.min(buffer.len()).min(self.0.len());
                buffer[..length].copy_from_slice(&self.0[..length]);
                self.0 = &self.0[length..];
                Ok(length)
            }
        }
        let mut feed = Feed::new(Slowly(feed, at_once));
        let mut all = Vec::new();
        loop {
            match feed.next_value() {
                Ok(None) => return all,
                Ok(Some(Ok(user))) => all.push(format!("{} {}", user.id, user.members)),
                Ok(Some(Err(refused))) => {
                    let id = refused.id.unwrap_or_default();
                    all.push(format!("{} {id}: {}", refused.number, refused.why));
                }
                Err(error) => {
                    all.push(error.to_string());
                    return all;
                }
            }
        }
    }

    #[test]
    fn arrays_and_lines_are_read_in_whatever_pieces_they_come() {
        let users = [
            "{\"id\":1}",
            "{\"id\":\"b]}\\\"\",\"x\":[{}, 2]}",
            "{\"id\":\"c\"}",
        ];
        let expected = ["1 {}", "b]}\" {\"x\":[{},2]}", "c {}"];
        for feed in [
            format!("[{}]", users.join(",")),
            format!(" \n[ {} ]\r\n", users.join(" ,\n ")),
            format!("\u{feff}[{}]", users.join(",")),
            users.join("\n"),
            users.join("\r\n") + "\n\n",
            users.concat(),
        ] {
            for at_once in 1..feed.len() + 1 {
                assert_eq!(
                    read(feed.as_bytes(), at_once),
                    expected,
                    "{feed} by {at_once}"
                );
            }
        }
        for empty in ["[]", " [ ] "] {
            assert_eq!(read(empty.as_bytes(), 1), [""; 0], "{empty}");
        }
    }

    #[test]
    fn a_value_that_is_no_user_is_refused_and_the_next_ones_are_read() {
        let deep = format!("{{\"id\":3,\"a\":{}{}}}", "[".repeat(200), "]".repeat(200));
        let long = format!("{{\"id\":4,\"a\":\"{}\"}}", "x".repeat(LARGEST_USER));
        let id = format!("{{\"id\":\"{}\"}}", "x".repeat(2001));
        for (value, expected) in [
            ("5", "it is no object"),
            ("null", "it is no object"),
            ("\"x\"", "it is no object"),
            ("[{}]", "it is no object"),
            ("{}", "it has no id"),
            ("{\"id\":null}", "an id is a text or a whole number"),
            ("{\"id\":1.5}", "an id is a text or a whole number"),
            ("{\"id\":\"\"}", "the id is empty"),
            (&id, "the id has more than 2,000 bytes"),
            ("{\"id\":\"a\\u0000\"}", "a text has the character 0"),
            ("{\"id\":1,\"name\":5}", "1: name is no text"),
            ("{\"id\":1,\"email\":{}}", "1: email is no text"),
            ("{\"id\":1,\"a\":\"\\ud800\"}", "1: a text is not Unicode"),
            (
                "{\"id\":1,\"a\":[\"\\u0000\"]}",
                "1: a text has the character 0",
            ),
            (
                "{\"id\":1,\"a\":1,\"\\u0061\":2}",
                "1: a member comes twice",
            ),
            ("{\"id\":1,\"id\":1}", "a member comes twice"),
            (
                "{\"id\":1,\"a\":{\"b\":1,\"b\":1}}",
                "1: a member comes twice",
            ),
            ("{\"id\":1,\"a\":1e400}", "1: a number is too large"),
            ("{\"id\":1,\"a\":tru}", "it is no JSON"),
            ("{\"id\":1,\"a\"}", "it is no JSON"),
            (&deep, "3: it is nested too deeply"),
            (&long, "it has more than 65,536 bytes"),
        ] {
            let feed = format!("[{{\"id\":0}},{value},{{\"id\":9}}]");
            let found = read(feed.as_bytes(), 4096);
            assert_eq!(
                (&*found[0], &*found[2], found.len()),
                ("0 {}", "9 {}", 3),
                "{value}"
            );
            assert!(
                found[1].starts_with("2 ") && found[1].ends_with(expected),
                "{value}: {}",
                found[1]
            );
        }
    }

    #[test]
    fn a_feed_that_is_no_json_or_breaks_off_ends_there() {
        for (feed, expected) in [
            ("[{\"id\":1}", "the feed breaks off after 1 of its values"),
            ("[{\"id\":1},", "the feed breaks off after 1 of its values"),
            (
                "[{\"id\":1},{\"id\"",
                "the feed breaks off within a value, after 1 before it",
            ),
            (
                "{\"id\":1}\n{\"id\":\"",
                "the feed breaks off within a value, after 1 before it",
            ),
            (
                "[{\"id\":1}{\"id\":2}]",
                "the feed is no JSON: after 1 values comes '{'",
            ),
            (
                "[{\"id\":1},]",
                "the feed is no JSON: after 1 values comes ']'",
            ),
            (
                "[{\"id\":1}] x",
                "the feed is no JSON: after 1 values comes 'x'",
            ),
            ("<html>", "the feed is no JSON: after 0 values comes '<'"),
            ("[", "the feed breaks off after 0 of its values"),
            ("", "the feed breaks off before its first value"),
            ("\n", "the feed breaks off before its first value"),
        ] {
            let found = read(feed.as_bytes(), 3);
            assert_eq!(found.last().map(|last| &**last), Some(expected), "{feed}");
        }
    }

    #[test]
    fn members_are_kept_as_they_are() {
        let user = r#"{"id":7,"name":"J\u00f6rg","email":null,"n":18446744073709551615,"f":1.0,
            "k\u00e9y":{"z" : [ 1 , "a b" ],"a":{}},"created_at":5,"updated_at":6}"#;
        let mut feed = Feed::new(user.as_bytes());
        let user = feed.next_value().unwrap().unwrap().unwrap();
        assert_eq!(
            (&*user.id, user.name.as_deref(), user.email),
            ("7", Some("Jörg"), None)
        );
        assert_eq!(
            user.members,
            "{\"n\":18446744073709551615,\"f\":1.0,\"kéy\":{\"z\":[1,\"a b\"],\"a\":{}}}"
        );
    }
}
