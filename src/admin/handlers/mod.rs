//! Handlers of the admin HTTP server: liveness, readiness, metrics, the cluster's census, and a
//! status page. They turn a request into a response and touch no socket.

mod exposition;
mod history;
mod page;
mod process;

use std::sync::Arc;
use std::time::{Duration, Instant};

use self::history::History;
use store::{PullStats, Store};

use crate::cluster::{self, Member, Stats};
use crate::metrics::{Metrics, MetricsSnapshot};
use crate::protocol::http::{Request, Response};
use crate::server::health::{Health, Load};
use rustix::time::{ClockId, Timespec, clock_gettime};
use shared::command::{CommandSet, Draining};

pub use self::history::INTERVAL;

/// What the handlers report on.
pub struct Context {
    /// Load and liveness of the server.
    pub health: Arc<Health>,
    /// Its metrics.
    pub metrics: Arc<Metrics>,
    /// Schemes of the protocols that it listens for.
    pub protocols: Vec<String>,
    /// The sets of commands that it offers.
    pub commands: Vec<CommandSet>,
    /// Its identity, also as a member of a cluster.
    pub member: Member,
    /// State of its connection to the cluster.
    pub cluster: Arc<Stats>,
    /// The store, if there is one, and the pulls into it, if there is a feed.
    pub store: Option<(Store, Option<Arc<PullStats>>)>,
    /// Whether it is ready only while the store answers.
    pub ready_needs_store: bool,
    /// Set when it begins to drain.
    pub draining: Draining,
}

/// Status codes of the responses here and of [`Problem::response`](crate::protocol::http::Problem::response).
const CODES: [u16; 10] = [200, 400, 404, 405, 408, 413, 431, 501, 503, 505];

/// Handlers of one server.
pub struct Handlers {
    context: Context,
    /// When they were made.
    since: Timespec,
    history: History,
    /// Number of responses with each of [`CODES`].
    answered: [u64; CODES.len()],
}

impl Handlers {
    /// Returns handlers whose uptime begins now.
    pub fn new(context: Context) -> Self {
        Handlers {
            context,
            since: clock_gettime(ClockId::Boottime),
            history: History::default(),
            answered: [0; CODES.len()],
        }
    }

    /// Returns the response to `request`, or `None` if [`Handlers::checked`] makes it of a health
    /// check.
    pub fn answer(&self, request: &Request) -> Option<Response> {
        Some(match request.path.as_str() {
            "/livez" => return None,
            "/readyz" => self.readiness(request),
            "/metrics" => exposition::response(&self.state(), request),
            "/census" => self.census(),
            "/" => page::response(&self.state(), &self.history),
            _ => Response::text(404, "there are /, /livez, /readyz, /metrics and /census"),
        })
    }

    /// Returns the response to a request for `/livez`, given the result of the health check.
    pub fn checked(&self, request: &Request, health: Result<(), &'static str>) -> Response {
        let text = match health {
            Ok(()) => "live: clients are being served".to_string(),
            Err(why) => format!("not live: {why}"),
        };
        verdict(request, "live", health.err(), "", &text)
    }

    /// Returns the response to a census request of another server.
    fn census(&self) -> Response {
        let clients = self.context.health.clients();
        // Read the count before this test: the server deregisters before it releases its first
        // client, so the count is complete if it has not deregistered yet.
        if self.context.cluster.is_deregistered() {
            return Response::text(503, "this server speaks no more for its clients");
        }
        Response::text(200, &cluster::answer(self.context.member, clients))
    }

    fn readiness(&self, request: &Request) -> Response {
        let state = self.state();
        let Load {
            clients,
            workers,
            waiting,
            queue,
            ..
        } = state.load;
        let refusal = state.refusal();
        let ready = refusal.map_or("ready".to_string(), |why| format!("not ready: {why}"));
        let room = state.load.room();
        verdict(
            request,
            "ready",
            refusal,
            &format!(
                r#","clients":{clients},"limit":{workers},"waiting":{waiting},"queue":{queue}"#
            ),
            &format!(
                "{ready}; clients: {clients}, {waiting} of them waiting; room for {room} more"
            ),
        )
    }

    /// Counts a response with this status code.
    pub fn count_response(&mut self, status: u16) {
        if let Some(index) = CODES.iter().position(|code| *code == status) {
            self.answered[index] += 1;
        }
    }

    /// Adds a sample to the history. Call it every [`INTERVAL`].
    pub fn sample(&mut self) {
        let clients = self.context.health.load().clients;
        let requests = self.context.metrics.sums().requests();
        self.history.add(Instant::now(), clients, requests);
    }

    fn state(&self) -> State<'_> {
        State {
            context: &self.context,
            load: self.context.health.load(),
            sums: self.context.metrics.sums(),
            draining: self.context.draining.get().map(Instant::elapsed),
            up: elapsed(self.since),
            answered: self.answered,
        }
    }
}

/// Snapshot of the server for one response.
struct State<'a> {
    context: &'a Context,
    load: Load,
    sums: MetricsSnapshot,
    draining: Option<Duration>,
    /// Uptime; changes of the system clock do not affect it.
    up: Duration,
    answered: [u64; CODES.len()],
}

impl State<'_> {
    /// Returns why no clients should be sent to this server, or `None` if it is ready.
    fn refusal(&self) -> Option<&'static str> {
        match self.draining {
            Some(_) => Some("draining"),
            None if self.load.room() == 0 => Some("full"),
            None if self.needs_store() => Some("the store is away"),
            None => None,
        }
    }

    /// Returns whether it is not ready for want of the store.
    fn needs_store(&self) -> bool {
        let is_away = |(store, _): &(Store, _)| !store.is_up();
        self.context.ready_needs_store && self.context.store.as_ref().is_some_and(is_away)
    }
}

/// Returns the time since a moment, including time in which the machine was suspended.
fn elapsed(since: Timespec) -> Duration {
    let passed = clock_gettime(ClockId::Boottime) - since;
    Duration::try_from(passed).unwrap_or_default()
}

/// Returns the response that the server is `what`, or why it is not: in JSON with `more` fields, or
/// as text.
fn verdict(
    request: &Request,
    what: &str,
    refusal: Option<&'static str>,
    more: &str,
    text: &str,
) -> Response {
    let status = if refusal.is_none() { 200 } else { 503 };
    if !request.prefers("application/json", "text/plain") {
        return Response::text(status, text);
    }
    let is_so = refusal.is_none();
    let reason = refusal.map_or(String::new(), |why| format!(r#","reason":"{why}""#));
    Response {
        status,
        media_type: "application/json",
        body: format!("{{\"{what}\":{is_so}{reason}{more}}}\n"),
    }
}
