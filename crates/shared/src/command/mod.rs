//! Commands: a request is parsed against a table of commands and executed. Commands know no socket
//! and no wire format.
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
pub mod user;
mod value;

use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use uuid::Uuid;

pub use self::batch_counters::{BatchCounters, MAX_COMMANDS, OUTCOMES, Outcome, SLOTS};
pub use self::command_sets::CommandSets;
pub use self::compute_limiter::{ComputeLimiter, Permit};
pub use self::error::{BadHeader, CommandError, ErrorCode, NoRoom, Quoted, Unavailable};
use self::key::Key;
pub use self::key::Line;
pub use self::sets::SETS;
use self::user::{UserStore, ascii};
pub use self::value::{Argument, Count, LONGEST_ID, Parameter, ParameterType, Value, ValueType};
use crate::clock::Nanos;
use crate::sync::atomic::AtomicUsize;

/// A command: its declaration and its handler.
pub struct CommandSpec {
    /// Its name, in capital letters.
    pub name: &'static str,
    /// Its arguments.
    pub parameters: &'static [Parameter],
    /// The type of its result.
    pub result: ValueType,
    /// What it does, as a phrase for `HELP`.
    pub summary: &'static str,
    /// Its class.
    pub class: CommandClass,
    /// How protobuf and gRPC name it; `None`: it has no place there.
    pub rpc: Option<Rpc>,
    /// Handler: returns the result or the error.
    pub execute: for<'a> fn(&'a Context, &Call<'a>) -> Result<Value<'a>, CommandError<'a>>,
}

impl CommandSpec {
    /// Returns its arguments as `HELP` shows them, or an empty text.
    pub fn arguments(&self) -> String {
        let arguments = self.parameters.iter().map(Parameter::to_string);
        // What may be left out, may be so only with all that follows.
        let text = arguments.collect::<Vec<_>>().join(" ");
        let nested = text.matches("] [").count();
        text.replace("] [", " [") + &"]".repeat(nested)
    }

    /// Parses the words of `text` as the arguments.
    fn parse<'a>(&'static self, text: &'a [u8]) -> Result<Vec<Argument<'a>>, CommandError<'a>> {
        self.check_count(words(text).count())?;
        let arguments = words(text).zip(self.each_parameter());
        let arguments = arguments.map(|(given, parameter)| {
            let argument = parameter.parse(given);
            let wanted = &parameter.kind;
            let given = given.into();
            argument.ok_or(CommandError::Argument { wanted, given })
        });
        arguments.collect()
    }

    /// Returns a call with these arguments, of a request that was read at `asked`. Fails if the
    /// command does not take them.
    pub fn call<'a>(
        &'static self,
        arguments: Vec<Argument<'a>>,
        asked: Nanos,
    ) -> Result<Call<'a>, CommandError<'a>> {
        self.check_count(arguments.len())?;
        for (argument, parameter) in arguments.iter().zip(self.each_parameter()) {
            if !parameter.takes(argument) {
                return Err(CommandError::Argument {
                    wanted: &parameter.kind,
                    given: match argument {
                        Argument::Integer(number) => number.to_string().into_bytes().into(),
                        Argument::Word(word) => (*word).into(),
                        Argument::Text(text) => text.to_string().into_bytes().into(),
                    },
                });
            }
        }
        Ok(Call {
            spec: self,
            arguments,
            asked,
            patience: ComputeLimiter::MAX_WAIT,
        })
    }

    fn check_count<'a>(&'static self, given: usize) -> Result<(), CommandError<'a>> {
        let is_optional = |parameter: &&Parameter| parameter.count == Count::Optional;
        let least = self.parameters.len() - self.parameters.iter().filter(is_optional).count();
        let most = match self.parameters.last().map(|last| last.count) {
            Some(Count::Repeated) => usize::MAX,
            _ => self.parameters.len(),
        };
        if !(least..=most).contains(&given) {
            return Err(CommandError::Usage(self));
        }
        if given > MAX_ARGUMENTS {
            return Err(CommandError::TooManyArguments);
        }
        Ok(())
    }

    /// Returns the parameter of each argument: the last one takes all further arguments.
    fn each_parameter(&'static self) -> impl Iterator<Item = &'static Parameter> {
        let last = self.parameters.last().into_iter().cycle();
        self.parameters.iter().chain(last)
    }
}

/// Largest number of arguments of a call.
pub const MAX_ARGUMENTS: usize = 1024;

/// How protobuf and gRPC name a command.
#[derive(Debug)]
pub struct Rpc {
    /// The gRPC service.
    pub service: &'static str,
    /// The method of the service, and the beginning of the names of its messages.
    pub method: &'static str,
    /// The number of its field in requests and responses. It never changes.
    pub number: u32,
}

impl Rpc {
    /// Returns these names.
    pub const fn new(service: &'static str, method: &'static str, number: u32) -> Self {
        Rpc {
            service,
            method,
            number,
        }
    }

    /// Returns the name of its field: the method's in small letters and underscores.
    pub fn field(&self) -> String {
        let mut field = String::new();
        for letter in self.method.chars() {
            if letter.is_ascii_uppercase() && !field.is_empty() {
                field.push('_');
            }
            field.push(letter.to_ascii_lowercase());
        }
        field
    }
}

/// Class of a command: what the server must do besides calling its handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandClass {
    /// A query: nothing else is needed. It waits for nothing but the cluster.
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

    /// Returns whether an answer may have to wait for other servers.
    fn waits(&self) -> bool;
}

/// Since when a server has been draining, if it has.
pub type Draining = Arc<OnceLock<Instant>>;

/// The state that handlers of commands may read.
#[derive(Clone)]
pub struct Context {
    /// Number of clients connected to this server.
    pub clients: Arc<AtomicUsize>,
    /// Counts the clients of the whole cluster, if there is one.
    pub census: Option<Arc<dyn Census>>,
    /// The users, if there is a store.
    pub users: Option<Arc<dyn UserStore>>,
    /// The id of this server, as a reply shows it.
    pub id: String,
    /// Table of the commands on offer.
    pub table: Table,
    /// Limiter of commands that compute.
    pub limiter: ComputeLimiter,
    /// Since when the server has announced that it stops.
    pub draining: Draining,
    /// Whether a command may wait for something. Otherwise it is deferred: one thread serves many
    /// clients.
    pub may_wait: bool,
}

impl Context {
    /// Returns the context of a server that offers these sets and is in no cluster.
    pub fn new(clients: Arc<AtomicUsize>, id: Uuid, sets: &[CommandSet]) -> Self {
        Context {
            clients,
            census: None,
            users: None,
            id: id.hyphenated().to_string(),
            table: Table::new(sets),
            limiter: ComputeLimiter::for_this_machine(),
            draining: Draining::default(),
            may_wait: true,
        }
    }

    /// Returns the same context for a member of a cluster.
    pub fn in_cluster(self, census: impl Census + 'static) -> Self {
        let census: Option<Arc<dyn Census>> = Some(Arc::new(census));
        Context { census, ..self }
    }

    /// Returns the same context with these users.
    pub fn with_users(self, users: Option<Arc<dyn UserStore>>) -> Self {
        Context { users, ..self }
    }

    /// Parses the request `line`, which was read at `asked`. Returns `None` if it is blank.
    #[inline]
    pub fn parse<'a>(
        &self,
        line: Line<'a>,
        asked: Nanos,
    ) -> Option<Result<Request<'a>, CommandError<'a>>> {
        // Fast path: most requests are a name without arguments.
        if let Some((index, spec)) = self.table.find(line) {
            let rest = b"";
            return Some(Ok(Request {
                spec,
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
            Some((index, spec)) if rest.is_empty() || is_text() => Ok(Request {
                spec,
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
        let table: Vec<_> = entries.map(|spec| (Key::new(spec.name), spec)).collect();
        // The sets are known at build time, so this can only fail at the first start of a new
        // build.
        assert!(table.len() <= MAX_COMMANDS, "too many to be counted");
        Table(table)
    }

    /// Returns all commands, in the order in which `HELP` lists them.
    pub fn entries(&self) -> impl Iterator<Item = &'static CommandSpec> {
        self.0.iter().map(|(_, spec)| *spec)
    }

    /// Returns the command of this name, ignoring case, and its index in the table.
    #[inline]
    pub fn find(&self, name: Line<'_>) -> Option<(usize, &'static CommandSpec)> {
        let mut entries = self.0.iter().enumerate();
        let (index, (_, spec)) = entries.find(|(_, (key, _))| key.is(name))?;
        Some((index, spec))
    }

    /// Returns the first command whose names in protobuf and gRPC are so, and its index in the
    /// table.
    #[inline]
    pub fn find_rpc(&self, is: impl Fn(&Rpc) -> bool) -> Option<(usize, &'static CommandSpec)> {
        let mut entries = self.entries().enumerate();
        entries.find(|(_, spec)| spec.rpc.as_ref().is_some_and(&is))
    }
}

/// A request of a text protocol: a command with its arguments as words.
pub struct Request<'a> {
    /// The command.
    pub spec: &'static CommandSpec,
    /// Its index in the table.
    pub index: usize,
    rest: &'a [u8],
    /// When it was read.
    pub asked: Nanos,
}

impl<'a> Request<'a> {
    /// Parses the arguments.
    #[inline]
    pub fn call(&self) -> Result<Call<'a>, CommandError<'a>> {
        let Request { spec, asked, .. } = *self;
        let arguments = match self.rest.is_empty() && spec.parameters.is_empty() {
            true => Vec::new(),
            false => spec.parse(self.rest)?,
        };
        Ok(Call {
            spec,
            arguments,
            asked,
            patience: ComputeLimiter::MAX_WAIT,
        })
    }

    /// Parses the arguments and executes the command.
    #[inline]
    pub fn execute(&self, context: &'a Context) -> Result<Value<'a>, CommandError<'a>> {
        self.call()?.execute(context)
    }
}

/// A call of a command, with typed arguments.
pub struct Call<'a> {
    /// The command.
    pub spec: &'static CommandSpec,
    /// Its arguments, as many and of such types as it declares.
    pub arguments: Vec<Argument<'a>>,
    /// When the request was read.
    pub asked: Nanos,
    /// How long after that a permit to compute is of use.
    pub patience: Duration,
}

impl<'a> Call<'a> {
    /// Executes the command.
    #[inline]
    pub fn execute(&self, context: &'a Context) -> Result<Value<'a>, CommandError<'a>> {
        if self.spec.class == CommandClass::Compute {
            if !context.may_wait {
                return Err(CommandError::Deferred);
            }
            context.limiter.check_open()?;
        }
        (self.spec.execute)(context, self)
    }
}

impl fmt::Display for Call<'_> {
    /// Writes the call as a line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.spec.name)?;
        for argument in &self.arguments {
            match argument {
                Argument::Integer(number) => write!(f, " {number}")?,
                Argument::Word(word) => write!(f, " {}", word.escape_ascii())?,
                Argument::Text(text) => write!(f, " {}", text_word(text))?,
            }
        }
        Ok(())
    }
}

/// Returns a text as a word of a line: a JSON string unless it is a word.
fn text_word(text: &str) -> Cow<'_, str> {
    let is_word = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    if is_word && !text.starts_with('"') {
        return text.into();
    }
    let json = serde_json::to_string(text).unwrap_or_default();
    ascii(&json).replace(' ', "\\u0020").into()
}

/// Returns the words of `text`.
fn words(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let words = text.split(|byte| is_blank(*byte));
    words.filter(|word| !word.is_empty())
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

/// Returns the numbers in decimal digits, separated by blanks.
pub fn join(numbers: &[i64]) -> String {
    let words: Vec<String> = numbers.iter().map(i64::to_string).collect();
    words.join(" ")
}

#[cfg(test)]
impl Context {
    /// Returns the reply to a request as a line shows it, or nothing if the request is blank.
    fn reply_to(&self, request: &str) -> String {
        let request = self.parse(Line::new(request.as_bytes()), Nanos::now());
        match request.map(|request| request?.execute(self)) {
            None => String::new(),
            Some(Ok(value)) => value.to_string(),
            Some(Err(error)) => format!("ERR {error:?}"),
        }
    }
}
