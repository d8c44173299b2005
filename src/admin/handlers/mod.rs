//! What the operator's tools ask and are answered: is it well, is there room, what is counted, and a page for people.
//! A request in, a response out; the sockets are elsewhere.

mod exposition;
mod history;
mod page;
mod process;

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use self::history::History;
use crate::cluster::{self, Member, Stats};
use crate::command::CommandSet;
use crate::health::{Health, Load};
use crate::metrics::{Metrics, MetricsSnapshot};
use crate::protocol::http::{CODES, Request, Response};
use rustix::time::{ClockId, Timespec, clock_gettime};

pub use self::history::INTERVAL;

/// What is being watched.
pub struct Context {
    /// Tells how full it is, and whether it serves.
    pub health: Arc<Health>,
    /// What it counts.
    pub metrics: Arc<Metrics>,
    /// The sets of commands that it offers.
    pub commands: Vec<CommandSet>,
    /// Who it is, in its cluster too.
    pub member: Member,
    /// How it goes with its cluster.
    pub cluster: Arc<Stats>,
    /// Set when it begins to drain.
    pub draining: Draining,
}

/// Since when a server has been draining, if it has.
pub type Draining = Arc<OnceLock<Instant>>;

/// What a request is answered.
pub enum Answer {
    /// This.
    Now(Response),
    /// What [`Handlers::checked`] makes of a check of the health that begins after the request has come.
    AfterCheck,
}

/// Watches one server.
pub struct Handlers {
    context: Context,
    /// When it began.
    since: Timespec,
    history: History,
    /// How many requests were answered with each of [`CODES`].
    answered: [u64; CODES.len()],
}

impl Handlers {
    /// Begins to watch.
    pub fn new(context: Context) -> Self {
        Handlers {
            context,
            since: clock_gettime(ClockId::Boottime),
            history: History::default(),
            answered: [0; CODES.len()],
        }
    }

    /// Answers `request`.
    pub fn answer(&self, request: &Request) -> Answer {
        Answer::Now(match request.path.as_str() {
            "/livez" => return Answer::AfterCheck,
            "/readyz" => self.readiness(request),
            "/metrics" => exposition::response(&self.state(), request),
            "/census" => self.census(),
            "/" => page::response(&self.state(), &self.history),
            _ => Response::text(404, "there are /, /livez, /readyz, /metrics and /census"),
        })
    }

    /// Answers a request for `/livez` with what a check has come to.
    pub fn checked(&self, request: &Request, health: Result<(), &'static str>) -> Response {
        let status = if health.is_ok() { 200 } else { 503 };
        if wants_json(request) {
            return json(
                status,
                match health {
                    Ok(()) => r#"{"live":true}"#.to_string(),
                    Err(why) => format!(r#"{{"live":false,"reason":"{why}"}}"#),
                },
            );
        }
        match health {
            Ok(()) => Response::text(status, "live: clients are being served"),
            Err(why) => Response::text(status, &format!("not live: {why}")),
        }
    }

    /// What the other servers of the cluster ask.
    fn census(&self) -> Response {
        let clients = self.context.health.clients();
        // In this order: it withdraws before it gives up the first client's place.
        if self.context.cluster.is_withdrawn() {
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
        } = state.load;
        let refusal = state.refusal();
        let status = if refusal.is_none() { 200 } else { 503 };
        if wants_json(request) {
            let reason = refusal.map_or(String::new(), |why| format!(r#","reason":"{why}""#));
            return json(
                status,
                format!(
                    r#"{{"ready":{}{reason},"clients":{clients},"limit":{workers},"waiting":{waiting},"queue":{queue}}}"#,
                    refusal.is_none()
                ),
            );
        }
        let verdict = refusal.map_or("ready".to_string(), |why| format!("not ready: {why}"));
        Response::text(
            status,
            &format!(
                "{verdict}; clients: {clients}, of whom {waiting} wait; room for {} more",
                state.load.room()
            ),
        )
    }

    /// A request was answered with this status code.
    pub fn note(&mut self, status: u16) {
        if let Some(index) = CODES.iter().position(|code| *code == status) {
            self.answered[index] += 1;
        }
    }

    /// Remembers how it is now. Call it every [`INTERVAL`].
    pub fn sample(&mut self) {
        let clients = self.context.health.load().clients;
        self.history
            .add(clients, self.context.metrics.sums().requests());
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

/// How everything is at one moment.
struct State<'a> {
    context: &'a Context,
    load: Load,
    sums: MetricsSnapshot,
    draining: Option<Duration>,
    /// For how long it has served, whatever became of the time of day.
    up: Duration,
    answered: [u64; CODES.len()],
}

impl State<'_> {
    /// Why no clients should be sent here, if so.
    fn refusal(&self) -> Option<&'static str> {
        match self.draining {
            Some(_) => Some("draining"),
            None if self.load.room() == 0 => Some("full"),
            None => None,
        }
    }
}

/// The time since a moment, with that in which the machine slept.
fn elapsed(since: Timespec) -> Duration {
    let passed = clock_gettime(ClockId::Boottime) - since;
    Duration::try_from(passed).unwrap_or_default()
}

fn wants_json(request: &Request) -> bool {
    request.prefers("application/json", "text/plain")
}

fn json(status: u16, body: String) -> Response {
    Response {
        status,
        media_type: "application/json",
        body: body + "\n",
    }
}
