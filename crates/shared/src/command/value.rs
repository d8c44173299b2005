//! Types of arguments and results, so that each protocol can encode them.

use std::borrow::Cow;
use std::fmt;

use super::join;
use super::user::{User, ascii};

/// Declares an argument of a command.
#[derive(Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Its name, as `HELP` shows it.
    pub name: &'static str,
    /// Its type.
    pub kind: ParameterType,
    /// How often it is given.
    pub count: Count,
}

/// Type of an argument. `Display` writes a noun.
#[derive(Debug, PartialEq, Eq)]
pub enum ParameterType {
    /// A whole number in this range.
    Integer {
        /// The least value.
        from: i64,
        /// The greatest value.
        to: i64,
    },
    /// Any word without blanks.
    Word,
    /// The id of a user: any text of this many bytes at most. On a line it is a word, or a JSON
    /// string, in quotes.
    Id,
}

/// The longest id of a user in bytes.
pub const LONGEST_ID: usize = 2000;

/// How often an argument is given. Only the last argument of a command may be repeated, and none that
/// is mandatory follows one that is optional.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// Once.
    One,
    /// Once, or not at all.
    Optional,
    /// Once or more often.
    Repeated,
}

impl Parameter {
    /// Returns a mandatory whole number of 64 bits.
    pub const fn integer(name: &'static str) -> Self {
        Parameter::integer_between(name, i64::MIN, i64::MAX)
    }

    /// Returns a mandatory whole number in this range.
    pub const fn integer_between(name: &'static str, from: i64, to: i64) -> Self {
        let (kind, count) = (ParameterType::Integer { from, to }, Count::One);
        Parameter { name, kind, count }
    }

    /// Returns a mandatory word.
    pub const fn word(name: &'static str) -> Self {
        let (kind, count) = (ParameterType::Word, Count::One);
        Parameter { name, kind, count }
    }

    /// Returns a mandatory id.
    pub const fn id(name: &'static str) -> Self {
        let (kind, count) = (ParameterType::Id, Count::One);
        Parameter { name, kind, count }
    }

    /// Returns the same argument, given so often.
    pub const fn given(self, count: Count) -> Self {
        let Parameter { name, kind, .. } = self;
        Parameter { name, kind, count }
    }

    /// Returns the same argument, which need not be given.
    pub const fn optional(self) -> Self {
        self.given(Count::Optional)
    }

    /// Parses a word as a value of this argument.
    pub(super) fn parse<'a>(&self, word: &'a [u8]) -> Option<Argument<'a>> {
        match self.kind {
            ParameterType::Word => Some(Argument::Word(word)),
            ParameterType::Id => {
                let text = match word {
                    [b'"', ..] => serde_json::from_slice::<String>(word).ok()?.into(),
                    word => std::str::from_utf8(word).ok()?.into(),
                };
                let argument = Argument::Text(text);
                self.takes(&argument).then_some(argument)
            }
            ParameterType::Integer { from, to } => {
                let number = std::str::from_utf8(word).ok()?.parse().ok()?;
                (from..=to)
                    .contains(&number)
                    .then_some(Argument::Integer(number))
            }
        }
    }
}

impl Parameter {
    /// Returns whether `argument` is a value of this one.
    pub(super) fn takes(&self, argument: &Argument<'_>) -> bool {
        match (argument, &self.kind) {
            (Argument::Integer(number), ParameterType::Integer { from, to }) => {
                (from..=to).contains(&number)
            }
            (Argument::Word(word), ParameterType::Word) => {
                !word.is_empty() && word.iter().all(u8::is_ascii_graphic)
            }
            // No database holds a zero in a text.
            (Argument::Text(id), ParameterType::Id) => id.len() <= LONGEST_ID && !id.contains('\0'),
            _ => false,
        }
    }
}

impl fmt::Display for Parameter {
    /// Writes the argument as `HELP` shows it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name;
        match self.count {
            Count::One => f.write_str(name),
            Count::Optional => write!(f, "[{name}]"),
            Count::Repeated => write!(f, "{name} [{name} ...]"),
        }
    }
}

impl fmt::Display for ParameterType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ParameterType::Integer {
                from: i64::MIN,
                to: i64::MAX,
            } => f.write_str("a whole number of 64 bits"),
            ParameterType::Integer { from, to } => write!(f, "a whole number from {from} to {to}"),
            ParameterType::Word => f.write_str("a word"),
            ParameterType::Id => f.write_str("an id"),
        }
    }
}

/// An argument of a call, of the type that the command declares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Argument<'a> {
    /// A whole number.
    Integer(i64),
    /// A word.
    Word(&'a [u8]),
    /// A text.
    Text(Cow<'a, str>),
}

/// Type of the result of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueType {
    /// A whole number.
    Integer,
    /// A list of whole numbers.
    Integers,
    /// A text of printable ASCII.
    Text,
    /// A user.
    User,
    /// A page of users.
    Users,
}

/// The result of a command, of the type that it declares.
#[derive(Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// A whole number.
    Integer(i64),
    /// A list of whole numbers.
    Integers(Vec<i64>),
    /// A text of printable ASCII.
    Text(Cow<'a, str>),
    /// A user.
    User(Box<User>),
    /// A page of users.
    Users(Vec<User>),
}

impl Value<'_> {
    /// Returns its type.
    pub fn kind(&self) -> ValueType {
        match self {
            Value::Integer(_) => ValueType::Integer,
            Value::Integers(_) => ValueType::Integers,
            Value::Text(_) => ValueType::Text,
            Value::User(_) => ValueType::User,
            Value::Users(_) => ValueType::Users,
        }
    }
}

impl fmt::Display for Value<'_> {
    /// Writes the value as a line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Integer(number) => number.fmt(f),
            Value::Integers(numbers) => f.write_str(&join(numbers)),
            Value::Text(text) => f.write_str(text),
            Value::User(user) => f.write_str(&ascii(&user.to_json())),
            Value::Users(users) => {
                f.write_str("[")?;
                for (index, user) in users.iter().enumerate() {
                    f.write_str(if index == 0 { "" } else { "," })?;
                    f.write_str(&ascii(&user.to_json()))?;
                }
                f.write_str("]")
            }
        }
    }
}

impl From<u64> for Value<'_> {
    /// Saturates: no count comes near 2^63.
    #[inline]
    fn from(count: u64) -> Self {
        Value::Integer(i64::try_from(count).unwrap_or(i64::MAX))
    }
}

impl<'a> From<&'a str> for Value<'a> {
    #[inline]
    fn from(text: &'a str) -> Self {
        Value::Text(Cow::Borrowed(text))
    }
}

impl From<String> for Value<'_> {
    fn from(text: String) -> Self {
        Value::Text(Cow::Owned(text))
    }
}
