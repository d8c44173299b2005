//! Commands: a request is parsed against a table of commands and executed. This module is pure: it
//! knows no socket and no protocol.
//!
//! A set of commands is a file in `sets` with a `pub const SET`; the name of the file is the name
//! of the set. Every command of a [`Table`] answers on every protocol and is listed by `HELP`.

mod batch_counters;
mod command_sets;
mod compute_limiter;
mod error;
#[cfg(test)]
mod example;
mod key;

pub mod sets;

use std::sync::Arc;

use uuid::Uuid;

pub use self::batch_counters::{BatchCounters, MOST_COMMANDS, OUTCOMES, Outcome, SLOTS};
pub use self::command_sets::CommandSets;
pub use self::compute_limiter::{ComputeLimiter, Permit};
pub use self::error::{BadHeader, CommandError, NoRoom, Quoted, Unavailable};
use self::key::Key;
pub use self::key::Line;
pub use self::sets::SETS;
use crate::clock::Nanos;
use crate::sync::atomic::AtomicUsize;

/// A command: its name, its description and its handler.
pub struct CommandSpec {
    /// Its name, in capital letters.
    pub name: &'static str,
    /// Its arguments as `HELP` shows them, or an empty text.
    pub arguments: &'static str,
    /// What it does, as a phrase for `HELP`.
    pub summary: &'static str,
    /// Its class.
    pub kind: CommandClass,
    /// Handler: returns the reply or the error.
    pub execute: for<'a> fn(&'a Context, &Request<'a>) -> Result<Reply<'a>, CommandError<'a>>,
}

/// Class of a command: what the server must do besides calling its handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandClass {
    /// A query: nothing else is needed.
    Query,
    /// A computation: it needs a permit of the [`ComputeLimiter`]. Its duration depends on its
    /// arguments.
    Compute,
    /// The end of the connection: the server closes it after the reply.
    Quit,
}

/// A set of commands, offered together.
pub type CommandSet = &'static [CommandSpec];

/// A cluster's number of clients.
pub trait Census: Send + Sync {
    /// Returns the number of clients in the cluster. `here` is this server's own count; `asked` is
    /// when the request was read.
    fn clients(&self, here: u64, asked: Nanos) -> Result<u64, Unavailable>;
}

/// The state that handlers of commands may read.
#[derive(Clone)]
pub struct Context {
    /// Number of clients connected to this server.
    pub clients: Arc<AtomicUsize>,
    /// Counts the clients of the whole cluster, if there is one.
    pub census: Option<Arc<dyn Census>>,
    /// The id of this server, as a reply shows it.
    pub id: String,
    /// Table of the commands on offer.
    pub table: Table,
    /// Limiter of commands that compute.
    pub limiter: ComputeLimiter,
}

impl Context {
    /// Returns the context of a server that offers these sets and is in no cluster.
    pub fn new(clients: Arc<AtomicUsize>, id: Uuid, sets: &[CommandSet]) -> Self {
        Context {
            clients,
            census: None,
            id: id.hyphenated().to_string(),
            table: Table::new(sets),
            limiter: ComputeLimiter::for_this_machine(),
        }
    }

    /// Returns the same context for a member of a cluster.
    pub fn in_cluster(self, census: impl Census + 'static) -> Self {
        let census: Option<Arc<dyn Census>> = Some(Arc::new(census));
        Context { census, ..self }
    }

    /// Parses the request `line`, which was read at `asked`. Returns `None` if it is blank.
    #[inline]
    pub fn parse<'a>(
        &self,
        line: Line<'a>,
        asked: Nanos,
    ) -> Option<Result<Request<'a>, CommandError<'a>>> {
        // Fast path: most requests are a name without arguments.
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

/// Table of commands, prepared for lookup: names are compared as integers.
#[derive(Clone)]
pub struct Table(Vec<(Key, &'static CommandSpec)>);

impl Table {
    fn new(sets: &[CommandSet]) -> Self {
        let entries = sets.iter().copied().flatten();
        let table: Vec<_> = entries.map(|entry| (Key::new(entry.name), entry)).collect();
        // The sets are known at build time, so this can only fail at the first start of a new
        // build.
        assert!(table.len() <= MOST_COMMANDS, "too many to be counted");
        Table(table)
    }

    /// Returns all commands, in the order in which `HELP` lists them.
    pub fn entries(&self) -> impl Iterator<Item = &'static CommandSpec> {
        self.0.iter().map(|(_, entry)| *entry)
    }

    /// Returns the command of this name, ignoring case, and its index in the table.
    #[inline]
    pub fn find(&self, name: Line<'_>) -> Option<(usize, &'static CommandSpec)> {
        let mut entries = self.0.iter().enumerate();
        let (index, (_, entry)) = entries.find(|(_, (key, _))| key.is(name))?;
        Some((index, entry))
    }
}

/// A request: a command with its arguments.
pub struct Request<'a> {
    /// The command.
    pub entry: &'static CommandSpec,
    /// Its index in the table.
    pub index: usize,
    rest: &'a [u8],
    /// When it was read.
    pub asked: Nanos,
}

impl<'a> Request<'a> {
    /// Executes the command.
    #[inline]
    pub fn execute(&self, context: &'a Context) -> Result<Reply<'a>, CommandError<'a>> {
        if self.entry.kind == CommandClass::Compute {
            context.limiter.look()?;
        }
        (self.entry.execute)(context, self)
    }

    /// Returns the arguments, word by word.
    pub fn arguments(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let mut rest = self.rest;
        std::iter::from_fn(move || {
            let (word, after) = split_word(rest)?;
            rest = after;
            Some(word)
        })
    }

    /// Returns the arguments if there are exactly `N`, otherwise an error.
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

/// The value that a command returns.
#[derive(Debug, PartialEq, Eq)]
pub enum Reply<'a> {
    /// A number.
    Number(u64),
    /// Borrowed text of printable ASCII.
    Text(&'a str),
    /// Text of printable ASCII made for this reply.
    Owned(String),
}

/// Splits off the first word of `text`. Returns it and the rest, both without blanks around them,
/// or `None` if there is no word.
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

#[cfg(test)]
impl Context {
    /// Returns the reply to a request as a line shows it, or nothing if the request is blank.
    fn reply_to(&self, request: &str) -> String {
        let request = self.parse(Line::new(request.as_bytes()), Nanos::now());
        match request.map(|request| request?.execute(self)) {
            None => String::new(),
            Some(Ok(Reply::Number(number))) => number.to_string(),
            Some(Ok(Reply::Text(text))) => text.to_string(),
            Some(Ok(Reply::Owned(text))) => text,
            Some(Err(error)) => format!("ERR {error:?}"),
        }
    }
}
