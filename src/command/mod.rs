//! What may be asked: a request is parsed against a table of commands and executed. Pure: no socket, no protocol.
//!
//! A set of commands is a file of this folder with a `pub const SET`; what is listed in a [`Table`] answers on every
//! protocol and shows in `HELP`.

mod key;
pub mod server;

use std::fmt;
use std::sync::Arc;

use uuid::Uuid;

use self::key::Key;
use crate::protocol::line::Quoted;
use crate::sync::atomic::AtomicUsize;

/// One command: how it is called, what it is for, and what answers it.
pub struct Entry {
    /// Its name, in capital letters.
    pub name: &'static str,
    /// Its arguments as `HELP` shows them, or nothing.
    pub arguments: &'static str,
    /// What it does: a phrase for `HELP`.
    pub summary: &'static str,
    /// Answers it.
    pub execute: for<'a> fn(&'a Context, &Request<'a>) -> Result<Answer<'a>, Refusal<'a>>,
}

/// Commands that are offered together.
pub type Set = &'static [Entry];

/// What a command may look at to find its answer.
pub struct Context {
    /// The number of clients connected.
    pub clients: Arc<AtomicUsize>,
    /// The id of this server, as it is answered.
    pub id: String,
    /// All commands.
    pub table: Table,
}

impl Context {
    /// What the commands of `sets` may look at.
    pub fn new(clients: Arc<AtomicUsize>, id: Uuid, sets: &[Set]) -> Self {
        Context {
            clients,
            id: id.hyphenated().to_string(),
            table: Table::new(sets),
        }
    }

    /// Answers the request `line`, which is without its end; nothing if it is blank.
    #[inline]
    pub fn answer<'a>(&'a self, line: &'a [u8]) -> Option<Result<Answer<'a>, Refusal<'a>>> {
        // Most requests are a name and nothing else.
        if let Some(entry) = self.table.find(line) {
            return Some(self.execute(entry, b""));
        }
        let (name, rest) = split_word(line)?;
        Some(match self.table.find(name) {
            Some(entry) if rest.is_empty() => self.execute(entry, rest),
            found => match line.iter().find(|byte| !is_text(**byte)) {
                Some(_) => Err(Refusal::BadInput(line)),
                None => match found {
                    Some(entry) => self.execute(entry, rest),
                    None => Err(Refusal::Unknown(name)),
                },
            },
        })
    }

    #[inline]
    fn execute<'a>(
        &'a self,
        entry: &'static Entry,
        rest: &'a [u8],
    ) -> Result<Answer<'a>, Refusal<'a>> {
        (entry.execute)(self, &Request { entry, rest })
    }
}

/// The commands that there are, ready to be looked up: a name is compared as a number.
pub struct Table(Vec<(Key, &'static Entry)>);

impl Table {
    fn new(sets: &[Set]) -> Self {
        let entries = sets.iter().copied().flatten();
        Table(
            entries
                .map(|entry| (Key::of(entry.name.as_bytes()), entry))
                .collect(),
        )
    }

    /// All commands, in the order in which `HELP` names them.
    pub fn entries(&self) -> impl Iterator<Item = &'static Entry> {
        self.0.iter().map(|(_, entry)| *entry)
    }

    /// The command of this name, in whatever case.
    #[inline]
    pub fn find(&self, name: &[u8]) -> Option<&'static Entry> {
        let wanted = Key::of(name);
        let (_, entry) = self.0.iter().find(|(key, entry)| {
            *key == wanted && (name.len() <= 8 || entry.name.as_bytes().eq_ignore_ascii_case(name))
        })?;
        Some(entry)
    }
}

/// A command with its arguments.
pub struct Request<'a> {
    /// The command.
    pub entry: &'static Entry,
    rest: &'a [u8],
}

impl<'a> Request<'a> {
    /// The arguments, word by word.
    pub fn arguments(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let mut rest = self.rest;
        std::iter::from_fn(move || {
            let (word, after) = split_word(rest)?;
            rest = after;
            Some(word)
        })
    }

    /// The arguments, if there are exactly `N`.
    pub fn take<const N: usize>(&self) -> Result<[&'a [u8]; N], Refusal<'a>> {
        let mut words = [&b""[..]; N];
        let mut given = self.arguments();
        for word in &mut words {
            *word = given.next().ok_or(Refusal::Usage(self.entry))?;
        }
        match given.next() {
            None => Ok(words),
            Some(_) => Err(Refusal::Usage(self.entry)),
        }
    }
}

/// The value that a command answers.
#[derive(Debug, PartialEq, Eq)]
pub enum Reply<'a> {
    /// A number.
    Number(u64),
    /// A text of printable ASCII that was there before.
    Text(&'a str),
    /// A text of printable ASCII made for this reply.
    Owned(String),
}

/// What a command answers, and what becomes of the connection then.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer<'a> {
    /// The value.
    pub reply: Reply<'a>,
    /// Whether the server closes after it.
    pub close: bool,
}

impl<'a> From<Reply<'a>> for Answer<'a> {
    fn from(reply: Reply<'a>) -> Self {
        Answer {
            reply,
            close: false,
        }
    }
}

/// Why there is no value: the word is for programs, `Display` is the sentence for a person.
pub enum Refusal<'a> {
    /// There is no command of this name.
    Unknown(&'a [u8]),
    /// The command takes other arguments.
    Usage(&'static Entry),
    /// This line holds a byte that is not text.
    BadInput(&'a [u8]),
    /// The line is longer than this many bytes.
    TooLong(usize),
    /// Everyone that the server may serve is served, and as many wait as may.
    Full {
        /// How many clients there are.
        clients: usize,
    },
    /// This many clients of the same address are as many as may be.
    FullForAddress(usize),
    /// The client idled for too long.
    Idle,
    /// The client made room for another.
    MadeRoom,
    /// The server failed.
    Internal,
}

impl Refusal<'_> {
    /// The word after `ERR`. All of them are in `docs/protocol.md`.
    pub fn word(&self) -> &'static str {
        match self {
            Refusal::Unknown(_) => "UNKNOWN",
            Refusal::Usage(_) => "USAGE",
            Refusal::BadInput(_) => "BADINPUT",
            Refusal::TooLong(_) => "TOOLONG",
            Refusal::Full { .. } | Refusal::FullForAddress(_) => "BUSY",
            Refusal::Idle | Refusal::MadeRoom => "TIMEOUT",
            Refusal::Internal => "INTERNAL",
        }
    }
}

impl fmt::Display for Refusal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Unknown(name) => write!(f, "no such command: {} (try HELP)", Quoted(name)),
            Refusal::Usage(entry) if entry.arguments.is_empty() => {
                write!(f, "{} takes no arguments", entry.name)
            }
            Refusal::Usage(entry) => write!(f, "usage: {} {}", entry.name, entry.arguments),
            Refusal::BadInput(line) => write!(f, "not printable ASCII: {}", Quoted(line)),
            Refusal::TooLong(limit) => write!(f, "a request has at most {limit} bytes"),
            Refusal::Full { clients } => write!(f, "full with {clients} clients, try again later"),
            Refusal::FullForAddress(limit) => {
                write!(f, "{limit} clients of your address are the limit")
            }
            Refusal::Idle => write!(f, "no request for too long"),
            Refusal::MadeRoom => write!(f, "idle while others wait, try again later"),
            Refusal::Internal => write!(f, "the server failed at this, its log says more"),
        }
    }
}

impl fmt::Debug for Refusal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {self}", self.word())
    }
}

/// The first word of `text` and what follows it, without the blanks around it; nothing if there is no word.
#[inline]
fn split_word(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let start = text.iter().position(|&byte| !is_blank(byte))?;
    let text = &text[start..];
    let end = text
        .iter()
        .position(|&byte| is_blank(byte))
        .unwrap_or(text.len());
    let rest = &text[end..];
    let next = rest
        .iter()
        .position(|&byte| !is_blank(byte))
        .unwrap_or(rest.len());
    Some((&text[..end], &rest[next..]))
}

#[inline]
fn is_blank(byte: u8) -> bool {
    byte == b' ' || byte == b'\t'
}

#[inline]
fn is_text(byte: u8) -> bool {
    matches!(byte, b' '..=b'~' | b'\t')
}
