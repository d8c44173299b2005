//! gRPC over HTTP/2 with prior knowledge. `docs/protocol.md` specifies it; frames are the package
//! `crates/http2`'s.

mod call;
mod descriptor;
mod health;
mod reflection;
mod status;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use http2::{Error, Event, Headers, Limits, Session, StreamId, code};
use shared::clock::Nanos;
use shared::command::user::{Failure, Part, UserStream};
use shared::command::{
    Argument, Call, CommandClass, CommandError, CommandSpec, ComputeLimiter, Outcome, ValueType,
};
use shared::schema::{decode_arguments, encode_user, encode_value};

use super::{Codec, Exchange, Goodbye, Input, Next, Progress, Protocol};
use call::{Method, Refusal, Stream, message, reply};
use health::Serving;
use status::{Code, Status};

/// Largest number of bytes that the codec keeps for its client: of requests that are not whole, and
/// of answers for which the windows have no room.
const MAX_HELD: usize = 1024 * 1024;

/// Time after which a request must be whole, and after which some of the answers must be taken.
const PATIENCE: Duration = Duration::from_secs(20);

/// Number of frames that a client may send in a second without asking anything.
const FRAMES_PER_SECOND: u32 = 10;

/// Frames that a call allows whose client gives it up at the end of its time: its headers, its reset
/// and two updates of windows.
const FRAMES_PER_LATE_CALL: u32 = 4;

/// Number of calls in a second that allow them.
const LATE_CALLS_PER_SECOND: u32 = 1000;

/// Number of bytes of users in a stream that wait for the client's windows.
const USERS_UNSENT: usize = 64 * 1024;

/// How long one call waits for the database, if it has no users for any stream.
const USERS_WAIT: Duration = Duration::from_millis(20);

/// Number of bytes of answers that allow a frame: with small windows, a client sends two updates for
/// each 16 KiB that it takes.
const BYTES_PER_FRAME: u64 = 4 * 1024;

/// Interval at which watched states are looked at.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);

/// Interval at which a client is looked at that takes no answers, or has not sent whole requests.
const STALL_INTERVAL: Duration = Duration::from_secs(1);

/// Time that a client has to answer the announcement of the end, and then to end its calls.
const LEAVE_TIME: Duration = Duration::from_millis(500);

/// Interval at which one of these times is looked at.
const LEAVE_INTERVAL: Duration = Duration::from_millis(50);

/// The ping after that announcement.
const LAST_PING: [u8; 8] = *b"last one";

/// The gRPC protocol.
pub struct GrpcProtocol;

impl Protocol for GrpcProtocol {
    fn scheme(&self) -> &'static str {
        "grpc"
    }

    fn open(&self, _: &[u8]) -> Box<dyn Codec> {
        Box::new(GrpcCodec::new())
    }

    /// Those that only ask for the server's health are no clients.
    fn counts_at_once(&self) -> bool {
        false
    }

    fn reject(&self, _: &CommandError<'_>, output: &mut Vec<u8>) {
        let mut session = Session::server(Limits::default());
        session.terminate(code::ENHANCE_YOUR_CALM);
        session.take_output(output);
    }
}

/// Codec of gRPC.
struct GrpcCodec {
    session: Session,
    /// The calls that are not answered.
    streams: BTreeMap<StreamId, Stream>,
    /// Those of them whose requests are whole.
    ready: VecDeque<StreamId>,
    /// Number of bytes of requests that are not executed.
    held: usize,
    /// The last call that was executed.
    answered: StreamId,
    /// The call that is executed.
    executing: Option<StreamId>,
    /// When the last computation ended: the next one waits for its turn since then.
    computed: Nanos,
    /// When the session was last allowed more frames, and unfinished requests were looked at.
    allowed: Nanos,
    /// Number of calls since then that were given up, and had a limited time.
    late_calls: u32,
    /// Number of bytes that the client had taken when it was last allowed frames for them.
    allowed_for: u64,
    /// While some of the answers wait for the client: how many bytes it had taken in all, and since
    /// when it takes no more.
    stalled: Option<(u64, Nanos)>,
    /// Whether all watches were told that the server drains.
    drain_is_told: bool,
    leaving: Leaving,
    /// Whether the client opens no more streams.
    client_leaves: bool,
}

/// How far the end of a connection has come.
#[derive(Clone, Copy, PartialEq)]
enum Leaving {
    No,
    /// The server wants to end it.
    Due,
    /// The client was told to open no more streams, and has not confirmed it.
    Announced(Nanos),
    /// Only the open streams are answered.
    Last(Nanos),
}

impl Codec for GrpcCodec {
    fn receive(&mut self, input: Input<'_>, exchange: &mut Exchange<'_>) -> Progress {
        self.allow_updates();
        let received = match input.bytes {
            [] => Ok(()),
            bytes => self.session.receive(bytes),
        };
        let next = match received {
            Ok(()) => self.answer(exchange),
            Err(Error::Flood) => Next::CloseFlood,
            Err(Error::Broken(_)) => Next::CloseBroken,
        };
        self.session.take_output(exchange.output);
        let next = match next {
            Next::More | Next::MoreWithin(_) if self.session.is_over() => {
                match self.client_leaves || self.leaving != Leaving::No {
                    _ if self.session.is_calmed() => Next::CloseFlood,
                    true => Next::Close,
                    false => Next::CloseBroken,
                }
            }
            Next::More => self.pause(exchange.read_at),
            next => next,
        };
        if next == Next::CloseFlood {
            self.session.take_output(exchange.output);
        }
        Progress {
            used: input.bytes.len(),
            next,
        }
    }

    fn goodbye(&mut self, why: Goodbye, output: &mut Vec<u8>) {
        if why == Goodbye::Panicked
            && let Some(stream) = self.executing.take()
        {
            self.end(stream, &CommandError::Internal.into());
            // The end of the connection would overtake it.
            self.session.take_output(output);
            self.session.terminate(code::INTERNAL_ERROR);
        }
        self.session.go_away();
        self.session.take_output(output);
    }

    fn is_movable(&self) -> bool {
        false
    }

    fn drain(&mut self) -> bool {
        self.leaving = Leaving::Due;
        true
    }
}

impl GrpcCodec {
    fn new() -> Self {
        GrpcCodec {
            session: Session::server(Limits::default()),
            streams: BTreeMap::new(),
            ready: VecDeque::new(),
            held: 0,
            answered: 0,
            executing: None,
            computed: Nanos::START,
            allowed: Nanos::START,
            late_calls: 0,
            allowed_for: 0,
            stalled: None,
            drain_is_told: false,
            leaving: Leaving::No,
            client_leaves: false,
        }
    }

    /// Answers what is whole, as far as this thread may.
    fn answer(&mut self, exchange: &mut Exchange<'_>) -> Next {
        let now = exchange.read_at;
        self.check(now);
        while let Some(event) = self.session.next_event() {
            self.take(event, exchange);
        }
        // The calls that are answered later wait for the client to take the answers before.
        while self.session.unsent() < MAX_HELD
            && let Some(stream) = self.ready.pop_front()
        {
            let computes = self.computes(stream);
            if !self.execute(stream, exchange) {
                self.ready.push_front(stream);
                return Next::Defer;
            }
            if computes {
                self.computed = Nanos::now();
                if !self.ready.is_empty() {
                    // Its answer leaves now, and pings are answered before the next one.
                    return Next::Again;
                }
            }
        }
        self.watch(exchange);
        let is_sending = self.send_users(now);
        match self.leave(exchange) {
            Next::More if is_sending => Next::Again,
            next => next,
        }
    }

    fn take(&mut self, event: Event, exchange: &mut Exchange<'_>) {
        match event {
            Event::Headers(stream, headers) => self.begin(stream, &headers, exchange),
            Event::Data(stream, bytes) => self.extend(stream, bytes, exchange),
            Event::End(stream) => {
                if let Some(call) = self.streams.get_mut(&stream) {
                    call.is_whole = true;
                    call.asked = exchange.read_at;
                    self.ready.push_back(stream);
                }
            }
            Event::Closed(stream, _) => self.close(stream),
            Event::Pong(LAST_PING) if matches!(self.leaving, Leaving::Announced(_)) => {
                self.go_away(StreamId::MAX, exchange.read_at);
            }
            Event::GoAway { .. } => self.client_leaves = true,
            Event::Pong(_) => {}
        }
    }

    /// Begins a call.
    fn begin(&mut self, stream: StreamId, headers: &Headers, exchange: &mut Exchange<'_>) {
        if self.streams.contains_key(&stream) {
            // Trailers, of which gRPC has none in requests.
            return;
        }
        match Stream::new(headers, exchange) {
            Ok(call) => drop(self.streams.insert(stream, call)),
            Err(Refusal::Http(fields)) => {
                let error = CommandError::Malformed("no call of gRPC");
                exchange.refuse(headers.get(":path").unwrap_or_default(), &error);
                self.session.respond(stream, &fields, true);
                self.session.stop(stream);
            }
            Err(Refusal::Status(status)) => {
                let error = CommandError::Unnamed;
                exchange.refuse(headers.get(":path").unwrap_or_default(), &error);
                self.end(stream, &status);
            }
        }
    }

    /// Adds a part of the request to a call.
    fn extend(&mut self, stream: StreamId, mut bytes: Vec<u8>, exchange: &mut Exchange<'_>) {
        let Some(call) = self.streams.get_mut(&stream) else {
            return;
        };
        self.held += bytes.len();
        match call.body.is_empty() {
            true => call.body = bytes,
            false => call.body.append(&mut bytes),
        }
        let part = match self.held > MAX_HELD {
            true => Err(Status::new(
                Code::ResourceExhausted,
                "too many bytes of requests wait on this connection",
            )),
            false => call::size(&call.body).and_then(|size| match (&call.method, size) {
                (Method::Reflection, _) => {
                    self.ready.push_back(stream);
                    Ok(())
                }
                (_, Some(size)) if size < call.body.len() => message(&call.body).map(drop),
                _ => Ok(()),
            }),
        };
        if let Err(status) = part {
            let error = match status.code {
                Code::ResourceExhausted => CommandError::TooLong(call::MAX_MESSAGE),
                _ => CommandError::Malformed("not one message"),
            };
            exchange.refuse(b"(no message)", &error);
            self.end(stream, &status);
        }
    }

    /// Ends a call with a status, wherever its request and its answer are.
    fn end(&mut self, stream: StreamId, status: &Status) {
        match self.streams.get(&stream) {
            Some(call) if call.is_begun => self.session.finish(stream, status.trailers()),
            _ => drop(self.session.respond(stream, &status.fields(), true)),
        }
        self.session.stop(stream);
        self.forget(stream);
    }

    fn forget(&mut self, stream: StreamId) -> Option<Stream> {
        let call = self.streams.remove(&stream)?;
        self.held -= call.body.len();
        Some(call)
    }

    /// Forgets a call that the client has given up. That costs nothing if its time was limited:
    /// while a computation keeps this thread from reading, the time of many calls may end.
    fn close(&mut self, stream: StreamId) {
        let call = self.forget(stream);
        let is_limited = call.is_some_and(|call| call.timeout.is_some());
        if is_limited && self.late_calls < LATE_CALLS_PER_SECOND {
            self.late_calls += 1;
            self.session.allow(FRAMES_PER_LATE_CALL);
        }
    }

    /// Gives a call back that has not begun: the client may ask elsewhere.
    fn give_back(&mut self, stream: StreamId, now: Nanos) {
        if stream > self.answered {
            self.go_away(self.answered, now);
        } else {
            self.session.reset(stream, code::REFUSED_STREAM);
            self.forget(stream);
        }
    }

    fn computes(&self, stream: StreamId) -> bool {
        let method = self.streams.get(&stream).map(|call| &call.method);
        let is_compute = |spec: &CommandSpec| spec.class == CommandClass::Compute;
        matches!(method, Some(Method::Command(_, spec)) if is_compute(spec))
    }

    /// Executes a call. Returns whether it is done: otherwise this thread may not.
    fn execute(&mut self, stream: StreamId, exchange: &mut Exchange<'_>) -> bool {
        self.executing = Some(stream);
        let is_done = match self.streams.get_mut(&stream) {
            // It was reset since.
            None => true,
            Some(call) => match call.method {
                Method::Users(_) => true,
                Method::Command(index, spec) => {
                    self.execute_command(stream, (index, spec), exchange)
                }
                Method::HealthCheck | Method::HealthList => {
                    let answer = message(&call.body).and_then(|message| match call.method {
                        Method::HealthList => Ok(health::list(exchange.context)),
                        _ => health::check(message, exchange.context),
                    });
                    exchange.counters.note(Outcome::BLANK);
                    self.end_call(stream, answer);
                    true
                }
                Method::HealthWatch(_) => {
                    exchange.counters.note(Outcome::BLANK);
                    self.begin_watch(stream, exchange);
                    true
                }
                Method::Reflection => {
                    self.reflect(stream, exchange);
                    true
                }
            },
        };
        self.executing = None;
        is_done
    }

    fn execute_command(
        &mut self,
        stream: StreamId,
        command: (usize, &'static CommandSpec),
        exchange: &mut Exchange<'_>,
    ) -> bool {
        let Some(call) = self.streams.get(&stream) else {
            return true;
        };
        exchange.guard.count();
        let (asked, left) = (
            call.asked.max(self.computed),
            call.time_left(exchange.read_at),
        );
        let waited = Duration::from_nanos(asked.until(exchange.read_at));
        // Its time to wait for a permit, if that is shorter than others have.
        let patience = left.map(|left| waited + left);
        let patience = patience.filter(|patience| *patience < ComputeLimiter::MAX_WAIT);
        let is_over = left == Some(Duration::ZERO);
        let answer = match message(&call.body) {
            Err(status) => {
                exchange.refuse(b"(no message)", &CommandError::Malformed("no message"));
                Err(status)
            }
            Ok(message) => {
                let arguments = decode_arguments(command.1, message).map_err(CommandError::from);
                let call = arguments.and_then(|arguments| command.1.call(arguments, asked));
                if let Ok(call) = &call
                    && let Some(after) = all_users(command.1, &call.arguments)
                {
                    let Some(users) = exchange.stream(command, after, encode_user) else {
                        return false;
                    };
                    self.begin_users(stream, users);
                    return true;
                }
                let call = match is_over {
                    true => Err(CommandError::ComputeBusy),
                    false => call.map(|call| Call {
                        patience: patience.unwrap_or(call.patience),
                        ..call
                    }),
                };
                match exchange.execute(command, call) {
                    None if !exchange.context.may_wait => return false,
                    // The connection can't go to the next process, but the call can.
                    None => {
                        self.give_back(stream, exchange.read_at);
                        return true;
                    }
                    Some(Ok(value)) => Ok(reply(|to| encode_value(&value, to))),
                    Some(Err(CommandError::ComputeBusy)) if is_over || patience.is_some() => Err(
                        Status::new(Code::DeadlineExceeded, "the time of the call is over"),
                    ),
                    Some(Err(error)) => Err(error.into()),
                }
            }
        };
        self.end_call(stream, answer);
        true
    }

    /// Ends a call with a message or a status.
    fn end_call(&mut self, stream: StreamId, answer: Result<Vec<u8>, Status>) {
        self.answered = self.answered.max(stream);
        match answer {
            Ok(message) => {
                if self.session.respond(stream, &call::HEADERS, false) {
                    self.session.send(stream, message);
                    self.session.finish(stream, Status::OK.trailers());
                }
                self.forget(stream);
            }
            Err(status) => self.end(stream, &status),
        }
    }

    /// Begins an answer with many messages.
    fn begin_users(
        &mut self,
        stream: StreamId,
        users: Result<Box<dyn UserStream>, CommandError<'_>>,
    ) {
        match (users, self.streams.get_mut(&stream)) {
            (Ok(users), Some(call)) => {
                self.answered = self.answered.max(stream);
                self.held -= std::mem::take(&mut call.body).len();
                call.is_begun = true;
                call.method = Method::Users(users);
                self.session.respond(stream, &call::HEADERS, false);
            }
            (Err(error), _) => self.end_call(stream, Err(error.into())),
            (Ok(_), None) => {}
        }
    }

    /// Allows the client the updates of windows for what it has taken.
    fn allow_updates(&mut self) {
        let frames = (self.session.taken() - self.allowed_for) / BYTES_PER_FRAME;
        self.allowed_for += frames * BYTES_PER_FRAME;
        self.session
            .allow(u32::try_from(frames).unwrap_or(u32::MAX));
    }

    /// Sends users as far as the client takes them. Returns whether there may be more at once.
    fn send_users(&mut self, now: Nanos) -> bool {
        let is_stream = |call: &Stream| matches!(call.method, Method::Users(_));
        let streams = self.streams.iter().filter(|(_, call)| is_stream(call));
        let streams: Vec<_> = streams.map(|(stream, _)| *stream).collect();
        let (mut has_sent, mut waiting) = (false, None);
        for stream in streams {
            match self.send_users_of(stream, Duration::ZERO, now) {
                Part::Pending => waiting = waiting.or(Some(stream)),
                part => has_sent |= matches!(part, Part::Users(_)),
            }
        }
        if let (false, Some(stream)) = (has_sent, waiting) {
            self.send_users_of(stream, USERS_WAIT, now);
        }
        has_sent || waiting.is_some()
    }

    /// Sends the next users of a stream, for which it waits so long, if the client takes them.
    /// Returns what came, without the users, or an end.
    fn send_users_of(&mut self, stream: StreamId, wait: Duration, now: Nanos) -> Part {
        let Some(call) = self.streams.get_mut(&stream) else {
            return Part::End;
        };
        let is_over = call.time_left(now) == Some(Duration::ZERO);
        let Method::Users(users) = &mut call.method else {
            return Part::End;
        };
        let status = match is_over {
            true => Status::new(Code::DeadlineExceeded, "the time of the call is over"),
            false if self.session.unsent_in(stream) >= USERS_UNSENT => return Part::End,
            false => match users.next(wait) {
                Part::Users(users) => {
                    let message = reply(|to| to.extend_from_slice(&users));
                    self.session.send(stream, message);
                    return Part::Users(Vec::new());
                }
                Part::Pending => return Part::Pending,
                Part::End => Status::OK,
                Part::Failed(Failure::Slow) => {
                    let slow = "the users were not taken in time";
                    Status::new(Code::ResourceExhausted, slow)
                }
                Part::Failed(Failure::Unavailable) => {
                    let failed = "the database has failed, try again";
                    Status::new(Code::Unavailable, failed)
                }
            },
        };
        self.end(stream, &status);
        Part::End
    }

    fn is_sending_users(&self) -> bool {
        let mut calls = self.streams.values();
        calls.any(|call| matches!(call.method, Method::Users(_)))
    }

    /// Answers the whole messages of a stream of questions about the schema.
    fn reflect(&mut self, stream: StreamId, exchange: &mut Exchange<'_>) {
        let Some(call) = self.streams.get_mut(&stream) else {
            return;
        };
        self.answered = self.answered.max(stream);
        loop {
            let (answer, rest) = match call::split(&call.body) {
                Ok(None) => break,
                Ok(Some(_)) if self.session.unsent() > MAX_HELD => (
                    Err(Status::new(
                        Code::ResourceExhausted,
                        "the client does not take its answers",
                    )),
                    Vec::new(),
                ),
                Ok(Some((message, rest))) => (
                    reflection::answer(message, &exchange.context.table),
                    rest.to_vec(),
                ),
                Err(status) => (Err(status), Vec::new()),
            };
            self.held -= call.body.len() - rest.len();
            call.body = rest;
            call.asked = exchange.read_at;
            exchange.counters.note(Outcome::BLANK);
            match answer {
                Ok(answer) => {
                    if !std::mem::replace(&mut call.is_begun, true) {
                        self.session.respond(stream, &call::HEADERS, false);
                    }
                    self.session.send(stream, answer);
                }
                Err(status) => return self.end(stream, &status),
            }
        }
        if call.is_whole {
            self.end(stream, &Status::OK);
        }
    }

    /// Begins to watch the health of a service.
    fn begin_watch(&mut self, stream: StreamId, exchange: &Exchange<'_>) {
        let Some(call) = self.streams.get_mut(&stream) else {
            return;
        };
        match message(&call.body).and_then(health::service) {
            Ok(service) => {
                let serving = Serving::of(&service, exchange.context);
                self.answered = self.answered.max(stream);
                self.held -= std::mem::take(&mut call.body).len();
                call.is_begun = true;
                call.method = Method::HealthWatch(Some(serving));
                self.session.respond(stream, &call::HEADERS, false);
                self.session.send(stream, serving.message());
            }
            Err(status) => self.end_call(stream, Err(status)),
        }
    }

    /// Tells the watches of the drain, which is the only change there is.
    fn watch(&mut self, exchange: &Exchange<'_>) {
        if self.drain_is_told || exchange.context.draining.get().is_none() {
            return;
        }
        self.drain_is_told = true;
        for (stream, call) in &mut self.streams {
            if let Method::HealthWatch(Some(told @ Serving::Yes)) = &mut call.method {
                *told = Serving::No;
                self.session.send(*stream, told.message());
            }
        }
    }

    fn is_watching(&self) -> bool {
        let mut calls = self.streams.values();
        calls.any(|call| matches!(call.method, Method::HealthWatch(_)))
    }

    /// Goes on with the end of the connection.
    fn leave(&mut self, exchange: &Exchange<'_>) -> Next {
        let now = exchange.read_at;
        let is_over = |since: Nanos| Duration::from_nanos(since.until(now)) >= LEAVE_TIME;
        match self.leaving {
            Leaving::Due => {
                self.session.announce_end(LAST_PING);
                self.leaving = Leaving::Announced(now);
            }
            Leaving::Announced(since) if is_over(since) => {
                self.go_away(StreamId::MAX, now);
            }
            // A handover waits no longer, but a drain does for what the client is still to take.
            Leaving::Last(since) if is_over(since) => {
                let has_more = self.session.unsent() > 0 || self.is_sending_users();
                if !has_more || exchange.context.draining.get().is_none() {
                    self.end_all("the server stops", |method| {
                        matches!(method, Method::Users(_))
                    });
                    return Next::Close;
                }
            }
            _ => {}
        }
        Next::More
    }

    /// Takes no more calls, and gives back those after `last`.
    fn go_away(&mut self, last: StreamId, now: Nanos) {
        self.session.go_away_after(last);
        self.leaving = Leaving::Last(now);
        self.end_all("the server stops", |method| {
            matches!(method, Method::HealthWatch(_))
        });
    }

    /// Ends all calls of such methods: there is no answer now, for this reason.
    fn end_all(&mut self, why: &'static str, is_one: impl Fn(&Method) -> bool) {
        let calls = self.streams.iter().filter(|(_, call)| is_one(&call.method));
        for stream in calls.map(|(stream, _)| *stream).collect::<Vec<_>>() {
            self.end(stream, &Status::new(Code::Unavailable, why));
        }
    }

    /// Once a second: allows more frames, and ends calls whose requests take too long.
    fn check(&mut self, now: Nanos) {
        let seconds = Duration::from_nanos(self.allowed.until(now)).as_secs();
        if seconds == 0 {
            return;
        }
        self.allowed = now;
        self.late_calls = 0;
        let seconds = u32::try_from(seconds).unwrap_or(u32::MAX);
        self.session
            .allow(seconds.saturating_mul(FRAMES_PER_SECOND));
        let is_late = |call: &Stream| {
            !call.is_whole && Duration::from_nanos(call.asked.until(now)) >= PATIENCE
        };
        let late = self.streams.iter().filter(|(_, call)| is_late(call));
        for stream in late.map(|(stream, _)| *stream).collect::<Vec<_>>() {
            let status = Status::new(Code::DeadlineExceeded, "the request is not whole in time");
            self.end(stream, &status);
        }
    }

    /// Returns how long to wait for input.
    fn pause(&mut self, now: Nanos) -> Next {
        let taken = self.session.taken();
        self.stalled = match self.stalled {
            _ if self.session.unsent() == 0 => None,
            Some((before, since)) if before == taken => Some((before, since)),
            _ => Some((taken, now)),
        };
        let is_stalled = |since: Nanos| Duration::from_nanos(since.until(now)) >= PATIENCE;
        if self.stalled.is_some_and(|(_, since)| is_stalled(since)) {
            self.session.terminate(code::ENHANCE_YOUR_CALM);
            return Next::CloseFlood;
        }
        if self.leaving != Leaving::No {
            Next::MoreWithin(LEAVE_INTERVAL)
        } else if self.is_watching() {
            Next::MoreWithin(WATCH_INTERVAL)
        } else if self.stalled.is_some() || self.streams.values().any(|call| !call.is_whole) {
            Next::MoreWithin(STALL_INTERVAL)
        } else {
            Next::More
        }
    }
}

/// Returns after which id a call wants all users, if it does: without a limit, they are a stream.
fn all_users<'a>(spec: &CommandSpec, arguments: &'a [Argument<'_>]) -> Option<&'a str> {
    match arguments {
        _ if spec.result != ValueType::Users => None,
        [] => Some(""),
        [Argument::Text(after)] => Some(after),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_panics_and_the_connection_hear_of_it() {
        let mut codec = GrpcCodec::new();
        let mut client = Session::client(Limits::default());
        let fields = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/"),
            (":authority", "a"),
        ];
        let fields = fields.map(|(name, value)| http2::Field::new(name, value));
        codec.executing = client.request(&fields, true);
        let (mut asked, mut said) = (Vec::new(), Vec::new());
        client.take_output(&mut asked);
        codec.session.receive(&asked).unwrap();
        codec.goodbye(Goodbye::Panicked, &mut said);
        client.receive(&said).unwrap();
        let heard = std::iter::from_fn(|| client.next_event()).filter_map(|event| match event {
            Event::Headers(_, headers) => headers.get("grpc-status").map(<[u8]>::to_vec),
            Event::GoAway { code, .. } => Some(format!("goaway {code}").into_bytes()),
            _ => None,
        });
        assert_eq!(heard.collect::<Vec<_>>(), [&b"13"[..], b"goaway 2"]);
    }
}
