//! Interim server: one thread serves all clients while the workers start. A thousand threads take
//! longer to start than a client should wait.
//!
//! It works in rounds: it answers what has arrived from one client, then from the next. Once the
//! workers run, each takes one client and stays with it. The interim server defers requests that
//! compute, since all clients would wait for them. The workers begin all at once: a worker that
//! already served would slow down the start of the others.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::error::Error;
use crate::server::pool;
use crate::server::queue::{Job, Jobs, Queue};
use crate::session::scoreboard::{Phase, Scoreboard};
use crate::session::{CloseReason, Service, Shared};
use crate::thread::{self, Thread};
use crate::transport::connection::Connection;
use shared::command::{ComputeLimiter, Context};

/// Pause between two rounds, which leaves the processor to the starting workers.
const PAUSE: Duration = Duration::from_micros(200);

/// Barrier at which the workers wait until they may begin.
#[derive(Clone, Default)]
pub struct StartBarrier(Arc<OnceLock<()>>);

impl StartBarrier {
    /// Waits until the interim server has ended.
    pub fn wait(&self) {
        self.0.wait();
    }
}

/// The running interim server.
pub struct InterimServer {
    thread: Thread,
    over: Arc<AtomicBool>,
    barrier: StartBarrier,
}

impl InterimServer {
    /// Starts to serve `clients` and the queued ones as `service` does, but without waiting for any
    /// of them.
    pub fn start(
        service: &Service,
        mut clients: Vec<Connection>,
        queue: Queue<Connection>,
        jobs: Jobs<Connection>,
    ) -> Result<Self, Error> {
        let scoreboard = Arc::new(Scoreboard::new(1));
        scoreboard.set_phase(Phase::ServeRound);
        let service = Service {
            shared: Shared {
                scoreboard,
                ..service.shared.clone()
            },
            context: Context {
                limiter: ComputeLimiter::none(),
                ..service.context.clone()
            },
            ..service.clone()
        };
        let over = Arc::new(AtomicBool::new(false));
        let barrier = StartBarrier::default();
        let (is_over, opened) = (over.clone(), barrier.clone());
        let thread = thread::spawn("interim", move || {
            while !is_over.load(Ordering::Relaxed) {
                let here = clients.into_iter().map(Job::Serve);
                // At most the clients that are queued now: a flood of new ones would starve the
                // others.
                let new = std::iter::from_fn(|| jobs.try_take()).take(jobs.len());
                clients = serve_round(&service, here.chain(new), &is_over);
                std::thread::park_timeout(PAUSE);
            }
            for client in clients {
                // The queue has room for every admitted connection.
                let _ = queue.put(Job::Serve(client));
            }
            // Opened in this thread, so that no client is unserved until another thread is
            // scheduled.
            opened.0.get_or_init(|| ());
        })?;
        Ok(InterimServer {
            thread,
            over,
            barrier,
        })
    }

    /// Returns the barrier for the workers.
    pub fn barrier(&self) -> StartBarrier {
        self.barrier.clone()
    }

    /// Hands the clients over to the workers.
    pub fn end(self) {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join();
    }
}

/// Answers what has arrived, until `is_over`, and returns the connections that continue.
fn serve_round(
    service: &Service,
    jobs: impl Iterator<Item = Job<Connection>>,
    is_over: &AtomicBool,
) -> Vec<Connection> {
    let slot = &service.shared.scoreboard.slots()[0];
    let left = RefCell::new(Vec::new());
    let serve = |connection: &mut Connection, slot: &_| service.serve(connection, slot);
    let end = |connection, ended| match ended {
        Some(CloseReason::Released) => left.borrow_mut().push(connection),
        ended => service.end(connection, ended),
    };
    for job in jobs {
        match job {
            Job::Serve(client) if is_over.load(Ordering::Relaxed) => left.borrow_mut().push(client),
            job => pool::do_job(job, slot, &serve, &end),
        }
    }
    left.into_inner()
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::protocol::line::LineProtocol;
    use crate::server::queue;
    use crate::session::scoreboard::ReaperWaker;
    use crate::transport::clients::Clients;
    use crate::transport::lingering_close::LingeringClose;
    use shared::command::sets::server;
    use shared::command::{CommandClass, CommandSet, CommandSpec, Value, ValueType};

    /// COMPUTE answers with the name of the thread that computes.
    const COMPUTE: CommandSet = &[CommandSpec {
        name: "COMPUTE",
        parameters: &[],
        result: ValueType::Text,
        summary: "the name of the thread",
        class: CommandClass::Compute,
        execute: |context, request| {
            let _permit = context.limiter.take(request)?;
            let thread = std::thread::current();
            Ok(Value::from(thread.name().unwrap_or_default().to_string()))
        },
    }];

    fn service(clients: &Clients) -> Service {
        let sets = [server::SET, COMPUTE];
        Service {
            context: Context::new(clients.count(), uuid::Uuid::new_v4(), &sets),
            shared: Shared {
                scoreboard: Arc::new(Scoreboard::new(1)),
                reaper_waker: ReaperWaker::new().0,
                incidents: Arc::default(),
                metrics: Arc::default(),
                linger: LingeringClose::start(1).unwrap().0,
            },
            released: crossbeam_channel::unbounded().0,
            idle_timeout: Duration::ZERO,
        }
    }

    /// Opens `number` connections; returns their clients' and the server's ends.
    fn connect(clients: &Clients, number: u64) -> (Vec<BufReader<TcpStream>>, Vec<Connection>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let connect = |number| {
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let patience = Some(Duration::from_secs(30));
            client.set_read_timeout(patience).unwrap();
            let (stream, peer) = listener.accept().unwrap();
            let guard = clients.admit(peer.ip()).unwrap();
            let connection = Connection::new(number, &LineProtocol, stream, peer, guard);
            (BufReader::new(client), connection)
        };
        (0..number).map(connect).unzip()
    }

    fn send(client: &mut BufReader<TcpStream>, requests: &str) {
        client.get_mut().write_all(requests.as_bytes()).unwrap();
    }

    /// Returns the next `number` replies.
    fn replies(client: &mut BufReader<TcpStream>, number: usize) -> String {
        let mut lines = String::new();
        for _ in 0..number {
            client.read_line(&mut lines).unwrap();
        }
        lines
    }

    #[test]
    fn clients_are_served_before_there_is_any_worker() {
        const CLIENTS: usize = 10;
        let clients = Clients::new(CLIENTS, 0);
        let (queue, jobs) = queue::bounded(CLIENTS);
        let (mut streams, connections) = connect(&clients, CLIENTS as u64);
        let service = service(&clients);
        let interim = InterimServer::start(&service, connections, queue, jobs.clone()).unwrap();
        for (requests, expected) in [
            ("WHO\nW", "10\n"),
            ("HY\nWHO\nPI", "42\n10\n"),
            ("NG\n", "PONG\n"),
        ] {
            for client in &mut streams {
                send(client, requests);
            }
            for client in &mut streams {
                assert_eq!(replies(client, expected.lines().count()), expected);
            }
        }
        streams.truncate(CLIENTS - 1);
        while clients.count().load(shared::sync::atomic::Ordering::SeqCst) == CLIENTS {
            std::thread::yield_now();
        }
        interim.end();
        assert_eq!(
            jobs.len(),
            CLIENTS - 1,
            "all that are left wait for a worker"
        );
    }

    #[test]
    fn what_computes_is_left_to_the_workers_with_all_that_follows_it() {
        let clients = Clients::new(2, 0);
        let (queue, jobs) = queue::bounded(2);
        let (mut streams, connections) = connect(&clients, 2);
        let service = service(&clients);
        let interim = InterimServer::start(&service, connections, queue, jobs.clone()).unwrap();
        let [computing, asking] = &mut streams[..] else {
            panic!("two clients");
        };
        // The interim server works in rounds: two replies to one client mean that it has visited
        // the other in between.
        send(computing, "WHY\nCOMPUTE\nPING\nCOMP");
        assert_eq!(replies(computing, 1), "42\n");
        send(computing, "UTE\n");
        for _ in 0..3 {
            send(asking, "WHO\n");
            assert_eq!(replies(asking, 1), "2\n");
        }
        interim.end();
        let Some(Job::Serve(mut connection)) = jobs.try_take() else {
            panic!("it waits for a worker");
        };
        assert_eq!(connection.client.read_buffer, b"COMPUTE\nPING\nCOMP");
        service.shared.scoreboard.set_phase(Phase::DrainThenDetach);
        let worker = std::thread::Builder::new().name("worker".to_string());
        let worker = worker.spawn(move || {
            let slot = &service.shared.scoreboard.slots()[0];
            service.serve(&mut connection, slot)
        });
        assert!(matches!(worker.unwrap().join(), Ok(CloseReason::Released)));
        assert_eq!(replies(computing, 3), "worker\nPONG\nworker\n");
    }
}
