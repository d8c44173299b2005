//! Users, the records of the set `users`.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::time::Duration;

use super::Unavailable;

/// The most users of a page.
pub const LONGEST_PAGE: usize = 1000;

/// The most bytes of a page as JSON: it ends early before more, but has at least one user.
pub const LARGEST_PAGE: usize = 512 * 1024;

/// A user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// Identifies the user. Users are ordered by the bytes of this.
    pub id: String,
    /// The name, if there is one.
    pub name: Option<String>,
    /// The e-mail address, if there is one.
    pub email: Option<String>,
    /// All further members, as a JSON object.
    pub members: String,
    /// When the user was inserted, in microseconds since 1970.
    pub created_at: i64,
    /// When the user was last changed, in microseconds since 1970.
    pub updated_at: i64,
}

impl User {
    /// Appends the user as a JSON object.
    pub fn write_json(&self, to: &mut String) {
        let quoted = |text: &Option<String>| serde_json::to_string(text).unwrap_or_default();
        let id = Some(self.id.clone());
        let (id, name, email) = (quoted(&id), quoted(&self.name), quoted(&self.email));
        // Writing into a String can't fail.
        let _ = write!(to, "{{\"id\":{id},\"name\":{name},\"email\":{email}");
        let members = self.members.strip_prefix('{');
        let members = members.and_then(|rest| rest.strip_suffix('}'));
        if let Some(members) = members.map(str::trim).filter(|all| !all.is_empty()) {
            to.push(',');
            to.push_str(members);
        }
        let (created, updated) = (self.created_at, self.updated_at);
        let _ = write!(to, ",\"created_at\":{created},\"updated_at\":{updated}}}");
    }

    /// Returns the user as a JSON object.
    pub fn to_json(&self) -> String {
        let mut json = String::new();
        self.write_json(&mut json);
        json
    }
}

/// Returns JSON in printable ASCII: every other character is escaped, which only strings have, and a
/// line break or a tab, which no string has, is a blank.
pub fn ascii(json: &str) -> Cow<'_, str> {
    if json.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        return json.into();
    }
    let mut escaped = String::with_capacity(json.len() + 16);
    for letter in json.chars() {
        match letter {
            ' '..='~' => escaped.push(letter),
            '\n' | '\r' | '\t' => escaped.push(' '),
            _ => {
                for unit in letter.encode_utf16(&mut [0; 2]) {
                    // Writing into a String can't fail.
                    let _ = write!(escaped, "\\u{unit:04x}");
                }
            }
        }
    }
    escaped.into()
}

/// A part of a stream of users.
pub enum Part {
    /// Further users, encoded one after the other.
    Users(Vec<u8>),
    /// There are none yet.
    Pending,
    /// There are no more.
    End,
    /// The stream ends before its end.
    Failed(Failure),
}

/// Why a stream ends early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The client has taken more time than a stream has.
    Slow,
    /// The database failed.
    Unavailable,
}

/// A stream of users, which are encoded as they come. Dropped, it ends.
pub trait UserStream: Send {
    /// Returns the next part. Waits for it, but not longer than this.
    fn next(&mut self, wait: Duration) -> Part;
}

/// Appends an encoded user.
pub type Encode = fn(&User, &mut Vec<u8>);

/// A store of users.
pub trait UserStore: Send + Sync {
    /// Returns the number of users.
    fn count(&self) -> Result<u64, Unavailable>;

    /// Returns the user of this id, if there is one.
    fn user(&self, id: &str) -> Result<Option<User>, Unavailable>;

    /// Returns the users after this id, ordered, up to `limit` and [`LARGEST_PAGE`].
    fn page(&self, after: &str, limit: usize) -> Result<Vec<User>, Unavailable>;

    /// Returns all users after this id, ordered, of one moment.
    fn stream(&self, after: &str, encode: Encode) -> Result<Box<dyn UserStream>, Unavailable>;

    /// Returns the time since the users were last as their feed has them, if this server has a feed
    /// and they ever were.
    fn age(&self) -> Option<Duration>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_a_json_object_with_its_further_members() {
        let mut user = User {
            id: "7\"".to_string(),
            name: Some("J\u{f6}rg \u{1f600}".to_string()),
            members: "{\"n\":18446744073709551615,\"o\":{\"a\":{}}}".to_string(),
            created_at: 1,
            updated_at: 2,
            ..User::default()
        };
        let json = "{\"id\":\"7\\\"\",\"name\":\"J\u{f6}rg \u{1f600}\",\"email\":null,\
                    \"n\":18446744073709551615,\"o\":{\"a\":{}},\"created_at\":1,\"updated_at\":2}";
        assert_eq!(user.to_json(), json);
        let line = ascii(json);
        assert!(line.contains("J\\u00f6rg \\ud83d\\ude00\""), "{line}");
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&line).unwrap()["name"],
            *user.name.as_deref().unwrap()
        );
        assert_eq!(
            ascii("{\r\n\t\"\u{e9}\\n\": 1\n}"),
            "{   \"\\u00e9\\n\": 1 }"
        );
        for members in ["{}", "{ }"] {
            user.members = members.to_string();
            assert!(user.to_json().contains("null,\"created_at\""));
        }
    }
}
