//! JSON-RPC calls: the body of a request is one, or an array of them.

use std::borrow::Cow;
use std::io::Write as _;

use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::protocol::Exchange;
use shared::command::sets::users;
use shared::command::user::{User, UserStream};
use shared::command::{
    Argument, CommandClass, CommandError, CommandSpec, Count, ErrorCode, Line, MAX_ARGUMENTS,
    Parameter, ParameterType, Value, ValueType,
};

/// The most calls of a batch.
const MAX_CALLS: usize = 1000;

/// Length of the replies of a batch in bytes from which on its further calls are refused.
const LONGEST_REPLIES: usize = 2 * 1024 * 1024;

/// The deepest nesting of a body's arrays and objects.
const MAX_DEPTH: usize = 128;

// Codes of errors, by the specification, section 5.1; from -32000 down they are ours.
const PARSE_ERROR: i32 = -32700;
const INVALID_REQUEST: i32 = -32600;
const METHOD_NOT_FOUND: i32 = -32601;
const INVALID_PARAMS: i32 = -32602;
const INTERNAL_ERROR: i32 = -32603;

/// How far a body is answered.
pub enum Answered {
    /// All of it.
    Done,
    /// All of it, and the answer depends on the users, whose age the response says.
    Users,
    /// All of it but for the users of this stream, which the second text follows.
    Streams(Box<dyn UserStream>, String),
    /// Its first bytes, as many: the next call is deferred.
    Deferred(usize),
}

/// A call, as it is sent. A null in place of a member, but for the id, is the same as none.
#[derive(Deserialize)]
struct Call<'a> {
    #[serde(borrow, default)]
    jsonrpc: Option<&'a RawValue>,
    #[serde(borrow, default)]
    method: Option<&'a RawValue>,
    #[serde(borrow, default)]
    params: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    id: Option<&'a RawValue>,
}

/// Deserializes a member that is present, null included.
fn present<'de, D: Deserializer<'de>>(member: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(member).map(Some)
}

/// What the reply to a call depends on.
#[derive(Clone, Copy)]
struct Caller<'a> {
    /// Whether it has a `jsonrpc` member; otherwise the reply has both a result and an error.
    is_new: bool,
    /// Its id, or `None` if it takes no reply.
    id: Option<&'a str>,
}

/// Whose call can't be read.
const UNKNOWN: Caller<'_> = Caller {
    is_new: true,
    id: Some("null"),
};

/// Answers the calls of `body` after its first `answered` bytes. Appends their replies to the
/// output, which has the earlier ones from `start` on.
pub fn answer(body: &[u8], answered: usize, start: usize, exchange: &mut Exchange<'_>) -> Answered {
    let Ok(text) = std::str::from_utf8(body) else {
        return refuse(PARSE_ERROR, "the body is not UTF-8", body, exchange);
    };
    if text.trim_start().starts_with('[') {
        return answer_batch(text, answered, start, exchange);
    }
    if is_too_deep(body) {
        return refuse(PARSE_ERROR, "the body is nested too deeply", body, exchange);
    }
    match serde_json::from_str(text) {
        Ok(call) => answer_call(&call, Place::Alone, exchange),
        Err(_) if serde_json::from_str::<IgnoredAny>(text).is_err() => {
            refuse(PARSE_ERROR, "the body is not JSON", body, exchange)
        }
        Err(_) => refuse(INVALID_REQUEST, NO_CALL, body, exchange),
    }
}

/// Why JSON is no call.
const NO_CALL: &str = "a call is an object with a method, each member once";

fn answer_batch(
    text: &str,
    mut answered: usize,
    start: usize,
    exchange: &mut Exchange<'_>,
) -> Answered {
    let body = text.as_bytes();
    if answered == 0 {
        if is_too_deep(body) {
            return refuse(PARSE_ERROR, "the body is nested too deeply", body, exchange);
        }
        // A vector of nothing takes no memory: this counts.
        match serde_json::from_str::<Vec<IgnoredAny>>(text).map(|calls| calls.len()) {
            Err(_) => return refuse(PARSE_ERROR, "the body is not JSON", body, exchange),
            Ok(0) => return refuse(INVALID_REQUEST, "the batch is empty", body, exchange),
            Ok(..=MAX_CALLS) => {}
            Ok(_) => {
                let long = "a batch has at most 1000 calls";
                return refuse(INVALID_REQUEST, long, body, exchange);
            }
        }
        answered = text.len() - text.trim_start().len() + 1;
    }
    while let Some((value, rest)) = split_value(&text[answered..]) {
        let before = exchange.output.len();
        let separator = if before == start { b'[' } else { b',' };
        exchange.output.push(separator);
        let place = match before - start {
            ..LONGEST_REPLIES => Place::InBatch,
            _ => Place::InFullBatch,
        };
        let is_answered = match serde_json::from_str(value.get()) {
            // An array would be taken for the members in their order.
            Ok(call) if value.get().starts_with('{') => answer_call(&call, place, exchange),
            _ => refuse(INVALID_REQUEST, NO_CALL, value.get().as_bytes(), exchange),
        };
        if exchange.output.len() == before + 1 {
            exchange.output.truncate(before);
        }
        if let Answered::Deferred(_) = is_answered {
            return Answered::Deferred(answered);
        }
        answered = text.len() - rest.len() + usize::from(rest.starts_with(','));
    }
    if exchange.output.len() > start {
        exchange.output.push(b']');
    }
    Answered::Done
}

/// Splits off the first value of `text`, the rest of an array or object. Returns it and the text
/// from the separator after it on, or `None` at the end.
fn split_value(text: &str) -> Option<(&RawValue, &str)> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<&RawValue>();
    let value = values.next()?.ok()?;
    Some((value, text[values.byte_offset()..].trim_start()))
}

/// Returns whether arrays and objects are nested too deeply in `body`, which may be any bytes.
fn is_too_deep(body: &[u8]) -> bool {
    // Most bodies are too short for that.
    if body.len() <= 2 * MAX_DEPTH {
        return false;
    }
    let (mut depth, mut is_text, mut is_escaped) = (0_usize, false, false);
    body.iter().any(|byte| {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = is_text,
            b'"' => is_text = !is_text,
            b'[' | b'{' if !is_text => depth += 1,
            b']' | b'}' if !is_text => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth > MAX_DEPTH
    })
}

/// Where a call is.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    Alone,
    InBatch,
    /// In a batch that has no room for its reply.
    InFullBatch,
}

/// Answers a call.
#[inline(never)]
fn answer_call(call: &Call<'_>, place: Place, exchange: &mut Exchange<'_>) -> Answered {
    let is_new = match call.jsonrpc.map(RawValue::get) {
        Some("\"2.0\"") => Some(true),
        None | Some("\"1.0\"" | "\"1.1\"") => Some(false),
        Some(_) => None,
    };
    let method = call.method.and_then(text);
    let id = call.id.map(RawValue::get);
    let is_id = |id: &str| id.starts_with(|first: char| "\"-0123456789n".contains(first));
    let caller = match (is_new, id) {
        // In version 1.0, it is the null that says that a call takes no reply.
        (Some(false), Some("null")) => Caller {
            is_new: false,
            id: None,
        },
        (_, Some(id)) if !is_id(id) => UNKNOWN,
        _ => Caller {
            is_new: is_new.unwrap_or(true) || method.is_none(),
            id,
        },
    };
    let problem = match (&method, call.params.map(RawValue::get)) {
        _ if is_new.is_none() => "jsonrpc must be \"2.0\"",
        _ if !id.is_none_or(is_id) => "an id is a string, a number or null",
        (None, _) => NO_CALL,
        (_, Some(params)) if !params.starts_with(['[', '{']) => "params are an array or an object",
        _ => "",
    };
    if !problem.is_empty() {
        let caller = Caller {
            id: caller.id.or(Some("null")),
            ..caller
        };
        let error = CommandError::Malformed(problem);
        exchange.refuse(id.unwrap_or("(no id)").as_bytes(), &error);
        write_error(caller, INVALID_REQUEST, &error, exchange.output);
        return Answered::Done;
    }
    let method = method.unwrap_or_default();
    let found = exchange.context.table.find(Line::new(method.as_bytes()));
    let is_offered = |(_, spec): &(usize, &CommandSpec)| {
        spec.class != CommandClass::Quit && !method.bytes().any(|byte| byte.is_ascii_uppercase())
    };
    let Some((index, spec)) = found.filter(is_offered) else {
        let error = CommandError::Unknown(method.as_bytes());
        exchange.refuse(method.as_bytes(), &error);
        write_error(caller, METHOD_NOT_FOUND, &error, exchange.output);
        return Answered::Done;
    };
    let given = call
        .params
        .map_or(Ok(Vec::new()), |params| given(spec, params));
    let called = match &given {
        Ok(given) => arguments(spec, given),
        Err(Usage) => Err(CommandError::Usage(spec)),
    };
    let wants_all = |arguments: &Vec<_>| spec.result == ValueType::Users && arguments.is_empty();
    let called = match (place, called) {
        (Place::Alone, Ok(arguments)) if wants_all(&arguments) && caller.id.is_some() => {
            return match exchange.stream((index, spec), "", encode_user) {
                None => Answered::Deferred(0),
                Some(Ok(stream)) => {
                    write_before_result(caller, exchange.output);
                    exchange.output.push(b'[');
                    let mut end = vec![b']'];
                    write_after_result(caller, &mut end);
                    // Both are ASCII, or JSON from a text.
                    Answered::Streams(stream, String::from_utf8(end).unwrap_or_default())
                }
                Some(Err(error)) => {
                    write_error(caller, server_code(error.code()), &error, exchange.output);
                    Answered::Done
                }
            };
        }
        (Place::InBatch, Ok(arguments)) if wants_all(&arguments) => Err(CommandError::OutOfRange(
            "all users at once are not for a batch: ask for pages, with after and limit",
        )),
        (Place::InFullBatch, Ok(_)) => Err(CommandError::NotNow(
            "the replies before it in its batch are too long, ask again",
        )),
        (_, called) => called,
    };
    let called = called.and_then(|arguments| spec.call(arguments, exchange.read_at));
    match exchange.execute((index, spec), called) {
        None => return Answered::Deferred(0),
        Some(Ok(value)) => {
            write_result(caller, &value, exchange.output);
            if users::has(spec) {
                return Answered::Users;
            }
        }
        Some(Err(error)) => {
            let code = match error.code() {
                ErrorCode::Unknown | ErrorCode::Usage | ErrorCode::BadInput => INVALID_PARAMS,
                code => server_code(code),
            };
            write_error(caller, code, &error, exchange.output);
            if error.code() == ErrorCode::NotFound {
                return Answered::Users;
            }
        }
    }
    Answered::Done
}

/// Appends a user of a stream, behind a comma.
fn encode_user(user: &User, to: &mut Vec<u8>) {
    to.push(b',');
    to.extend_from_slice(user.to_json().as_bytes());
}

/// Returns the code of an error that concerns no call.
fn server_code(code: ErrorCode) -> i32 {
    match code {
        ErrorCode::Unknown => METHOD_NOT_FOUND,
        ErrorCode::Usage => INVALID_PARAMS,
        ErrorCode::BadInput => INVALID_REQUEST,
        ErrorCode::Internal => INTERNAL_ERROR,
        ErrorCode::Unavailable => -32000,
        ErrorCode::Busy => -32001,
        ErrorCode::Timeout => -32002,
        ErrorCode::TooLong => -32003,
        ErrorCode::NotFound => -32004,
    }
}

/// The params are not those of the command.
struct Usage;

/// Returns the text of a JSON string.
fn text(value: &RawValue) -> Option<Cow<'_, str>> {
    let inner = value.get().strip_prefix('"')?.strip_suffix('"')?;
    match inner.contains('\\') {
        false => Some(inner.into()),
        // It may be half of a surrogate pair.
        true => serde_json::from_str(value.get()).ok().map(Cow::Owned),
    }
}

/// A param, unescaped if it is a string.
enum Given<'a> {
    Text(Cow<'a, str>),
    Other(&'a str),
}

impl<'a> Given<'a> {
    fn new(value: &'a RawValue) -> Self {
        text(value).map_or(Given::Other(value.get()), Given::Text)
    }
}

/// Returns the params in the order of the command's parameters: those of an array as they are, those
/// of an object by their names.
fn given<'a>(spec: &CommandSpec, params: &'a RawValue) -> Result<Vec<Given<'a>>, Usage> {
    if params.get().starts_with('[') {
        return Ok(elements(params));
    }
    let mut named = vec![None; spec.parameters.len()];
    let mut rest = &params.get()[1..];
    while let Some((name, after)) = split_value(rest) {
        let name = text(name).ok_or(Usage)?;
        let is_name = |known: &str| {
            name.bytes()
                .eq(known.bytes().map(|b| b.to_ascii_lowercase()))
        };
        let mut parameters = spec.parameters.iter();
        let place = parameters.position(|parameter| is_name(parameter.name));
        let (value, after) = after.strip_prefix(':').and_then(split_value).ok_or(Usage)?;
        if named[place.ok_or(Usage)?].replace(value).is_some() {
            return Err(Usage);
        }
        rest = after.strip_prefix(',').unwrap_or("");
    }
    let mut given = Vec::new();
    for (place, value) in named.iter().enumerate() {
        match *value {
            Some(list) if is_list(spec, place) && list.get().starts_with('[') => {
                given.extend(elements(list));
            }
            Some(value) => given.push(Given::new(value)),
            // Those that may be left out may be so before others, too.
            None if named[place..].iter().any(Option::is_some) => match spec.parameters[place] {
                Parameter {
                    kind: ParameterType::Id,
                    count: Count::Optional,
                    ..
                } => given.push(Given::Text("".into())),
                _ => return Err(Usage),
            },
            None => break,
        }
    }
    Ok(given)
}

fn is_list(spec: &CommandSpec, place: usize) -> bool {
    spec.parameters[place].count == Count::Repeated
}

/// Returns the elements of an array: at most one more than a call takes, so that it is refused.
fn elements(array: &RawValue) -> Vec<Given<'_>> {
    let mut rest = &array.get()[1..];
    let elements = std::iter::from_fn(|| {
        let (value, after) = split_value(rest)?;
        rest = after.strip_prefix(',').unwrap_or("");
        Some(Given::new(value))
    });
    elements.take(MAX_ARGUMENTS + 1).collect()
}

/// Returns the params as arguments. What has another type becomes a word, which the command refuses.
fn arguments<'a>(
    spec: &'static CommandSpec,
    given: &'a [Given<'a>],
) -> Result<Vec<Argument<'a>>, CommandError<'a>> {
    let parameter = |place| spec.parameters.get(place).or(spec.parameters.last());
    let arguments = given.iter().enumerate().map(|(place, given)| {
        match (given, parameter(place).map(|parameter| &parameter.kind)) {
            (Given::Text(text), Some(ParameterType::Id)) => Ok(Argument::Text((&**text).into())),
            (Given::Other(raw), Some(wanted @ (ParameterType::Word | ParameterType::Id))) => {
                let given = raw.as_bytes().into();
                Err(CommandError::Argument { wanted, given })
            }
            (Given::Other(raw), _) => Ok(match raw.parse() {
                Ok(number) => Argument::Integer(number),
                Err(_) => Argument::Word(raw.as_bytes()),
            }),
            (Given::Text(text), _) => Ok(Argument::Word(text.as_bytes())),
        }
    });
    arguments.collect()
}

/// Refuses a body, or a part of it, that is no call.
#[cold]
fn refuse(code: i32, why: &'static str, body: &[u8], exchange: &mut Exchange<'_>) -> Answered {
    let error = CommandError::Malformed(why);
    exchange.refuse(&body[..body.len().min(256)], &error);
    write_error(UNKNOWN, code, &error, exchange.output);
    Answered::Done
}

/// Appends the reply to whatever was sent, which is not known.
pub fn write_refusal(error: &CommandError<'_>, output: &mut Vec<u8>) {
    write_error(UNKNOWN, server_code(error.code()), error, output);
}

fn write_result(caller: Caller<'_>, value: &Value<'_>, output: &mut Vec<u8>) {
    if caller.id.is_some() {
        write_before_result(caller, output);
        write_value(value, output);
        write_after_result(caller, output);
    }
}

fn write_before_result(caller: Caller<'_>, output: &mut Vec<u8>) {
    output.extend_from_slice(match caller.is_new {
        true => b"{\"jsonrpc\":\"2.0\",\"result\":",
        false => b"{\"result\":",
    });
}

fn write_after_result(caller: Caller<'_>, output: &mut Vec<u8>) {
    output.extend_from_slice(match caller.is_new {
        true => b",\"id\":",
        false => b",\"error\":null,\"id\":",
    });
    output.extend_from_slice(caller.id.unwrap_or("null").as_bytes());
    output.push(b'}');
}

fn write_value(value: &Value<'_>, output: &mut Vec<u8>) {
    // Writing into a Vec can't fail.
    let _ = match value {
        Value::Integer(number) => serde_json::to_writer(output, number),
        Value::Integers(numbers) => serde_json::to_writer(output, numbers),
        Value::Text(text) => serde_json::to_writer(output, text),
        Value::User(user) => output
            .write_all(user.to_json().as_bytes())
            .map_err(serde_json::Error::io),
        Value::Users(users) => {
            output.push(b'[');
            for (index, user) in users.iter().enumerate() {
                if index > 0 {
                    output.push(b',');
                }
                output.extend_from_slice(user.to_json().as_bytes());
            }
            output.push(b']');
            Ok(())
        }
    };
}

#[cold]
fn write_error(caller: Caller<'_>, code: i32, error: &CommandError<'_>, output: &mut Vec<u8>) {
    let Some(id) = caller.id else {
        return;
    };
    output.extend_from_slice(match caller.is_new {
        true => b"{\"jsonrpc\":\"2.0\",",
        false => b"{\"result\":null,",
    });
    // Writing into a Vec can't fail.
    let _ = write!(output, "\"error\":{{\"code\":{code},\"message\":");
    write_value(&Value::from(error.to_string()), output);
    let word = error.word();
    let _ = write!(output, ",\"data\":\"{word}\"}},\"id\":{id}}}");
}
