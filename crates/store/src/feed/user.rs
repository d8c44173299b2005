//! Users of a feed, and what is wrong with what is none.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use shared::command::LONGEST_ID;

/// A user of a feed.
#[derive(Debug, PartialEq, Eq)]
pub struct FeedUser<'a> {
    /// The id: a text, or the digits of a whole number.
    pub id: Cow<'a, str>,
    /// The name, if there is one.
    pub name: Option<Cow<'a, str>>,
    /// The e-mail address, if there is one.
    pub email: Option<Cow<'a, str>>,
    /// All further members but for the times that the store has itself, as a JSON object without
    /// blanks between its parts. Numbers are as they came.
    pub members: String,
}

/// The members that the store has itself.
const OWN: [&str; 2] = ["created_at", "updated_at"];

const NO_JSON: &str = "it is no JSON";
const TWICE: &str = "a member comes twice";
const ZERO: &str = "a text has the character 0";
const NO_TEXT: &str = "a text is not Unicode";
const TOO_LARGE: &str = "a number is too large";
const TOO_DEEP: &str = "it is nested too deeply";

/// What is wrong with a value, and its id if that is known.
type Wrong = (Option<String>, &'static str);

/// The members of an object, in their order.
struct Members<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(Key(key)) = map.next_key()? {
                    members.push((key, map.next_value()?));
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

/// A text, borrowed if it has no escapes.
#[derive(Deserialize)]
#[serde(transparent)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'a> FeedUser<'a> {
    /// Parses a value.
    pub fn parse(json: &'a [u8]) -> Result<Self, Wrong> {
        if json.first() != Some(&b'{') {
            return Err((None, "it is no object"));
        }
        let text = std::str::from_utf8(json).map_err(|_| (None, NO_TEXT))?;
        let parsed = serde_json::from_str(text);
        let Members(all) = parsed.map_err(|error| (None, reason(&error)))?;
        let mut user = FeedUser {
            id: Cow::Borrowed(""),
            name: None,
            email: None,
            members: String::with_capacity(text.len()),
        };
        user.members.push('{');
        let ids = all.iter().filter(|(key, _)| key == "id");
        match &ids.map(|(_, value)| *value).collect::<Vec<_>>()[..] {
            [] => return Err((None, "it has no id")),
            [raw] => user.id = id(raw).map_err(|why| (None, why))?,
            _ => return Err((None, TWICE)),
        }
        let result = user.take(&all);
        result.map_err(|why| (Some(user.id.to_string()), why))?;
        user.members.push('}');
        Ok(user)
    }

    /// Takes all members but for the id.
    fn take(&mut self, all: &[(Cow<'a, str>, &'a RawValue)]) -> Result<(), &'static str> {
        for (index, (key, value)) in all.iter().enumerate() {
            if all[..index].iter().any(|(before, _)| before == key) {
                return Err(TWICE);
            }
            if key.contains('\0') {
                return Err(ZERO);
            }
            match &**key {
                "id" => {}
                "name" => self.name = optional(value, "name is no text")?,
                "email" => self.email = optional(value, "email is no text")?,
                key if OWN.contains(&key) => {}
                key => {
                    check(value)?;
                    if self.members.len() > 1 {
                        self.members.push(',');
                    }
                    self.members
                        .push_str(&serde_json::to_string(key).map_err(|_| NO_JSON)?);
                    self.members.push(':');
                    push_compact(value.get(), &mut self.members);
                }
            }
        }
        Ok(())
    }
}

/// Returns an id.
fn id<'a>(raw: &'a RawValue) -> Result<Cow<'a, str>, &'static str> {
    let id = match raw.get().as_bytes() {
        [b'"', ..] => text(raw)?,
        [b'-' | b'0'..=b'9', rest @ ..] if rest.iter().all(u8::is_ascii_digit) => raw.get().into(),
        _ => return Err("an id is a text or a whole number"),
    };
    match id.len() {
        0 => Err("the id is empty"),
        1..=LONGEST_ID => Ok(id),
        _ => Err("the id has more than 2,000 bytes"),
    }
}

/// Returns a text, or none if it is null.
fn optional<'a>(
    raw: &'a RawValue,
    no_text: &'static str,
) -> Result<Option<Cow<'a, str>>, &'static str> {
    match raw.get().as_bytes() {
        b"null" => Ok(None),
        [b'"', ..] => text(raw).map(Some),
        _ => Err(no_text),
    }
}

fn text(raw: &RawValue) -> Result<Cow<'_, str>, &'static str> {
    let Key(text) = serde_json::from_str(raw.get()).map_err(|error| reason(&error))?;
    match text.contains('\0') {
        true => Err(ZERO),
        false => Ok(text),
    }
}

/// Returns what is wrong with JSON that serde_json does not take. It has no codes for that: what it
/// can't say by its category is told by its words, which tests hold.
fn reason(error: &serde_json::Error) -> &'static str {
    let words = error.to_string();
    [TWICE, ZERO]
        .into_iter()
        .find(|own| words.starts_with(own))
        .unwrap_or(if words.starts_with("recursion limit") {
            TOO_DEEP
        } else if words.starts_with("number out of range") {
            TOO_LARGE
        } else if words.contains("surrogate")
            || words.contains("unicode")
            || words.contains("hex escape")
        {
            NO_TEXT
        } else {
            NO_JSON
        })
}

/// Checks a value that is kept as it is: databases and other programs must be able to read it.
fn check(raw: &RawValue) -> Result<(), &'static str> {
    match raw.get().as_bytes() {
        // Most values, and nothing can be wrong with them.
        [b't' | b'f' | b'n', ..] => Ok(()),
        [b'"', rest @ ..] if !rest.contains(&b'\\') => Ok(()),
        _ => {
            let checked = serde_json::from_str(raw.get());
            checked.map(|Checked| ()).map_err(|error| reason(&error))
        }
    }
}

/// A value in which no member comes twice, no text has a zero, and all numbers can be read.
struct Checked;

impl<'de> Deserialize<'de> for Checked {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Checked)
    }
}

impl<'de> Visitor<'de> for Checked {
    type Value = Checked;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Checked, E> {
        Ok(Checked)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Checked, E> {
        Ok(Checked)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Checked, E> {
        Ok(Checked)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Checked, E> {
        Ok(Checked)
    }

    fn visit_unit<E>(self) -> Result<Checked, E> {
        Ok(Checked)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Checked, E> {
        match text.contains('\0') {
            true => Err(E::custom(ZERO)),
            false => Ok(Checked),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut all: A) -> Result<Checked, A::Error> {
        while all.next_element::<Checked>()?.is_some() {}
        Ok(Checked)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Checked, A::Error> {
        let mut keys = std::collections::HashSet::new();
        while let Some(Key(key)) = map.next_key()? {
            if key.contains('\0') {
                return Err(serde::de::Error::custom(ZERO));
            }
            if !keys.insert(key) {
                return Err(serde::de::Error::custom(TWICE));
            }
            map.next_value::<Checked>()?;
        }
        Ok(Checked)
    }
}

/// Appends JSON without the blanks between its parts.
fn push_compact(json: &str, to: &mut String) {
    let (mut is_text, mut is_escaped) = (false, false);
    let mut from = 0;
    for (index, byte) in json.bytes().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = is_text,
            b'"' => is_text = !is_text,
            b' ' | b'\n' | b'\r' | b'\t' if !is_text => {
                to.push_str(&json[from..index]);
                from = index + 1;
            }
            _ => {}
        }
    }
    to.push_str(&json[from..]);
}
