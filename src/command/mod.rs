//! What may be asked: a request is parsed against a table of commands and executed. Pure: no socket, no protocol.
//!
//! A set of commands is a file in `sets` with a `pub const SET`, and has its name; what is listed in a [`Table`] answers on
//! every protocol and shows in `HELP`.

mod batch_counters;
mod command_sets;
mod compute_limiter;
#[cfg(test)]
mod example;
mod key;
mod refusal;

/// The commands themselves. `build.rs` finds the files.
pub mod sets {
    include!(concat!(env!("OUT_DIR"), "/sets.rs"));
}

use std::sync::Arc;

use uuid::Uuid;

pub use self::batch_counters::{BatchCounters, MOST_COMMANDS, OUTCOMES, Outcome, SLOTS};
pub use self::command_sets::CommandSets;
pub use self::compute_limiter::{ComputeLimiter, Permit};
use self::key::Key;
pub use self::key::Line;
pub use self::refusal::{BadHeader, CommandError, Quoted};
pub use self::sets::SETS;
use crate::clock::Nanos;
use crate::cluster::Census;
use crate::sync::atomic::AtomicUsize;

/// One command: how it is called, what it is for, and what answers it.
pub struct CommandSpec {
    /// Its name, in capital letters.
    pub name: &'static str,
    /// Its arguments as `HELP` shows them, or nothing.
    pub arguments: &'static str,
    /// What it does: a phrase for `HELP`.
    pub summary: &'static str,
    /// What else it takes to answer it.
    pub kind: CommandClass,
    /// Answers it.
    pub execute: for<'a> fn(&'a Context, &Request<'a>) -> Result<Reply<'a>, CommandError<'a>>,
}

/// What it takes to answer a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandClass {
    /// Nothing: it only asks.
    Query,
    /// A turn ([`ComputeLimiter`]). How long it takes depends on what is asked.
    Compute,
    /// That the server closes the connection after the value.
    Quit,
}

/// Commands that are offered together.
pub type CommandSet = &'static [CommandSpec];

/// What a command may look at to find its answer.
#[derive(Clone)]
pub struct Context {
    /// The number of clients connected to this server.
    pub clients: Arc<AtomicUsize>,
    /// Tells how many there are in the cluster.
    pub census: Census,
    /// The id of this server, as it is answered.
    pub id: String,
    /// All commands.
    pub table: Table,
    /// Where a command that computes takes a turn.
    pub limiter: ComputeLimiter,
}

impl Context {
    /// What the commands of `sets` may look at.
    pub fn new(clients: Arc<AtomicUsize>, id: Uuid, sets: &[CommandSet]) -> Self {
        Context {
            clients,
            census: Census::Alone,
            id: id.hyphenated().to_string(),
            table: Table::new(sets),
            limiter: ComputeLimiter::for_this_machine(),
        }
    }

    /// The same, as a member of a cluster.
    pub fn in_cluster(self, census: Census) -> Self {
        Context { census, ..self }
    }

    /// What the request `line` asks for, which was read at this moment; nothing if it is blank.
    #[inline]
    pub fn parse<'a>(
        &self,
        line: Line<'a>,
        asked: Nanos,
    ) -> Option<Result<Request<'a>, CommandError<'a>>> {
        // Most requests are a name and nothing else.
        if let Some((index, entry)) = self.table.find(line) {
            let rest = b"";
            return Some(Ok(Request {
                entry,
                index,
                rest,
                asked,
            }));
        }
        self.parse_words(line.text(), asked)
    }

    fn parse_words<'a>(
        &self,
        line: &'a [u8],
        asked: Nanos,
    ) -> Option<Result<Request<'a>, CommandError<'a>>> {
        let (name, rest) = split_word(line)?;
        let found = self.table.find(Line::new(name));
        let is_text = || line.iter().all(|byte| is_text(*byte));
        Some(match found {
            Some((index, entry)) if rest.is_empty() || is_text() => Ok(Request {
                entry,
                index,
                rest,
                asked,
            }),
            None if is_text() => Err(CommandError::Unknown(name)),
            _ => Err(CommandError::BadInput(line)),
        })
    }
}

/// The commands that there are, ready to be looked up: a name is compared as a number.
#[derive(Clone)]
pub struct Table(Vec<(Key, &'static CommandSpec)>);

impl Table {
    fn new(sets: &[CommandSet]) -> Self {
        let entries = sets.iter().copied().flatten();
        let table: Vec<_> = entries.map(|entry| (Key::new(entry.name), entry)).collect();
        // What the sets hold is known when the program is built: it would fail at its first start.
        assert!(table.len() <= MOST_COMMANDS, "too many to be counted");
        Table(table)
    }

    /// All commands, in the order in which `HELP` names them.
    pub fn entries(&self) -> impl Iterator<Item = &'static CommandSpec> {
        self.0.iter().map(|(_, entry)| *entry)
    }

    /// The command of this name, in whatever case, and its place.
    #[inline]
    pub fn find(&self, name: Line<'_>) -> Option<(usize, &'static CommandSpec)> {
        let mut entries = self.0.iter().enumerate();
        let (index, (_, entry)) = entries.find(|(_, (key, _))| key.is(name))?;
        Some((index, entry))
    }
}

/// A command with its arguments.
pub struct Request<'a> {
    /// The command.
    pub entry: &'static CommandSpec,
    /// Its place in the table.
    pub index: usize,
    rest: &'a [u8],
    /// When it was read.
    pub asked: Nanos,
}

impl<'a> Request<'a> {
    /// Answers it.
    #[inline]
    pub fn execute(&self, context: &'a Context) -> Result<Reply<'a>, CommandError<'a>> {
        if self.entry.kind == CommandClass::Compute {
            context.limiter.look()?;
        }
        (self.entry.execute)(context, self)
    }

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
    pub fn take<const N: usize>(&self) -> Result<[&'a [u8]; N], CommandError<'a>> {
        let mut words = [&b""[..]; N];
        let mut given = self.arguments();
        for word in &mut words {
            *word = given.next().ok_or(CommandError::Usage(self.entry))?;
        }
        match given.next() {
            None => Ok(words),
            Some(_) => Err(CommandError::Usage(self.entry)),
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
