//! The workers, the reaper and the drain, in one order of threads after the other; `tests/check-models` runs this.
//!
//! What runs is the code of the daemon: scoreboard, pool, reaper, session, the count, the door's queue. What stands for
//! the system below them is in `model.rs`; the sockets are here. A check fails when an assertion does, when
//! all threads wait for each other, or when some turn in circles; then shuttle prints the schedule, and
//! `shuttle::replay` runs it again.
#![allow(missing_docs)]

use std::collections::{BTreeSet, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard};
use std::time::Duration;

use blockchain_tcpd::metrics::Metrics;
use blockchain_tcpd::protocol::PROTOCOLS;
use blockchain_tcpd::server::admission::Admission;
use blockchain_tcpd::server::pool;
use blockchain_tcpd::server::queue::{self, Job};
use blockchain_tcpd::server::reaper::{MINIMUM_IDLE, Reaper};
use blockchain_tcpd::session::scoreboard::{Activity, Phase, ReaperWaker, Scoreboard};
use blockchain_tcpd::session::{CloseReason, Service, Shared};
use blockchain_tcpd::transport::clients::Clients;
use blockchain_tcpd::transport::connection::{Connection, Transport};
use blockchain_tcpd::transport::lingering_close::LingeringClose;
use crossbeam_channel::{Receiver, TryRecvError};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use shared::clock::Millis;
use shared::command::Context;
use shared::command::NoRoom;
use shared::command::sets::server;
use shared::sync::model::call;
use shuttle::rand::{Rng, thread_rng};
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::thread::{self, JoinHandle};
use uuid::Uuid;

const REQUEST: &[u8] = b"WHY\n";
const REPLY: &[u8] = b"42\n";
const NEVER: Duration = Duration::ZERO;

/// Runs `check` with threads that take turns by chance, and with threads that are now and then not let on for long.
fn check(check: impl Fn() + Send + Sync + 'static) {
    let schedules = std::env::var("BLOCKCHAIN_TCPD_TEST_SCHEDULES")
        .map_or(500, |number| number.parse().unwrap());
    // No check needs more steps than some thousands; who turns in circles takes them all.
    let mut config = shuttle::Config::new();
    config.stack_size = 256 * 1024;
    config.max_steps = shuttle::MaxSteps::FailAfter(200_000);
    config.silence_warnings = true;
    let check = Arc::new(check);
    let again = check.clone();
    shuttle::Runner::new(RandomScheduler::new(schedules), config.clone()).run(move || again());
    shuttle::Runner::new(PctScheduler::new(3, schedules), config).run(move || check());
}

/// What is between a client and the server. Nobody holds the lock from one step to the next.
#[derive(Default)]
struct Wire {
    to_server: VecDeque<u8>,
    to_client: Vec<u8>,
    /// How much of `to_client` there is room for.
    room: usize,
    /// The client sends no more.
    shut: bool,
    /// The server has closed.
    closed: bool,
    /// When the server last had a whole request.
    asked: Option<Millis>,
    /// When the server first found no room.
    stuck: Option<Millis>,
}

/// A client, which the server knows by its number.
#[derive(Clone)]
struct Client {
    number: u64,
    wire: Arc<Mutex<Wire>>,
}

impl Client {
    fn wire(&self) -> MutexGuard<'_, Wire> {
        self.wire.lock().unwrap()
    }

    /// Sends `bytes`, in pieces.
    fn send(&self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(thread_rng().gen_range(1..=rest.len()));
            call(true, || {
                self.wire().to_server.extend(piece);
                Some(())
            })
            .unwrap();
            rest = after;
        }
    }

    fn shut(&self) {
        call(true, || {
            self.wire().shut = true;
            Some(())
        })
        .unwrap();
    }

    /// Waits for `count` replies; returns whether they came before the end.
    fn replies(&self, count: usize) -> bool {
        call(true, || {
            let wire = self.wire();
            if wire.to_client.len() >= count * REPLY.len() {
                Some(true)
            } else {
                wire.closed.then_some(false)
            }
        })
        .unwrap()
    }

    /// Takes `bytes` more.
    fn make_room(&self, bytes: usize) {
        call(true, || {
            self.wire().room += bytes;
            Some(())
        })
        .unwrap();
    }

    /// Waits for the end; returns how many replies came, all of them right and the last one whole.
    fn end(&self) -> usize {
        call(true, || self.wire().closed.then_some(())).unwrap();
        let received = self.wire().to_client.clone();
        let (replies, rest) = received.as_chunks::<{ REPLY.len() }>();
        assert!(replies.iter().all(|reply| reply == REPLY));
        assert_eq!(rest, b"", "a reply was cut");
        replies.len()
    }
}

/// The server's side of a wire.
struct End(Client);

impl Transport for End {
    fn read(&mut self, buffer: &mut [u8], flags: RecvFlags) -> Result<usize, Errno> {
        call(!flags.contains(RecvFlags::DONTWAIT), || {
            let mut wire = self.0.wire();
            if wire.to_server.is_empty() {
                return wire.shut.then_some(0);
            }
            // As little as it may be, for what arrives is often read by more than one call.
            let read = thread_rng().gen_range(1..=buffer.len().min(wire.to_server.len()));
            for (place, byte) in buffer.iter_mut().zip(wire.to_server.drain(..read)) {
                *place = byte;
            }
            if buffer[..read].contains(&b'\n') {
                wire.asked = Some(Millis::now());
            }
            Some(read)
        })
    }

    fn write(&mut self, bytes: &[u8], flags: SendFlags) -> Result<usize, Errno> {
        call(!flags.contains(SendFlags::DONTWAIT), || {
            let mut wire = self.0.wire();
            let written = bytes.len().min(wire.room - wire.to_client.len());
            wire.to_client.extend(&bytes[..written]);
            if written < bytes.len() {
                wire.stuck.get_or_insert_with(Millis::now);
            }
            (written > 0).then_some(written)
        })
    }

    fn wait(&self, _: Duration) -> Result<bool, Errno> {
        Ok(true)
    }

    fn unread(&self) -> Result<u64, Errno> {
        call(true, || Some(self.0.wire().to_server.len() as u64))
    }

    fn is_movable(&self) -> bool {
        true
    }
}

impl Drop for End {
    fn drop(&mut self) {
        // Nobody waits while a failed check is cleared away.
        if !std::thread::panicking() {
            call(true, || {
                self.0.wire().closed = true;
                Some(())
            })
            .unwrap();
        }
    }
}

/// What came of the clients.
#[derive(Default)]
struct Book {
    /// The numbers of those that were served to their end.
    ended: BTreeSet<u64>,
    /// The numbers of those that were told to go.
    told: BTreeSet<u64>,
    /// Those that were let go of.
    released: Vec<Connection<End>>,
}

/// The server, without listeners.
struct Server {
    admission: Admission<End>,
    workers: Receiver<()>,
    scoreboard: Arc<Scoreboard>,
    reaper: JoinHandle<()>,
    book: Arc<Mutex<Book>>,
}

/// Takes no part.
static METRICS: LazyLock<Arc<Metrics>> = LazyLock::new(Arc::default);

impl Server {
    fn start(workers: usize, queue: usize, idle: Duration, write: Duration) -> Self {
        let clients = Arc::new(Clients::new(workers + queue, 0));
        let (reaper_waker, wakes) = ReaperWaker::new();
        let shared = Shared {
            scoreboard: Arc::new(Scoreboard::new(workers)),
            reaper_waker,
            incidents: Arc::default(),
            metrics: METRICS.clone(),
            linger: LingeringClose::default(),
        };
        let scoreboard = shared.scoreboard.clone();
        let book = Arc::<Mutex<Book>>::default();
        let service = Service {
            context: Context::new(clients.count(), Uuid::nil(), &[server::SET]),
            shared: shared.clone(),
            released: crossbeam_channel::unbounded().0,
            idle_timeout: idle,
        };
        let writes = book.clone();
        let (queue, jobs) = queue::bounded(workers + queue);
        let running = pool::start(
            &jobs,
            &scoreboard,
            || {},
            move |connection: &mut Connection<End>, slot| service.serve(connection, slot),
            move |connection, ended| note(&writes, connection, ended, idle, write),
        )
        .unwrap();
        let reaper = Reaper {
            scoreboard: scoreboard.clone(),
            waiting: jobs,
            idle_timeout: idle,
            write_timeout: write,
            incidents: shared.incidents.clone(),
        };
        let reaper = thread::spawn(move || reaper.run(&wakes));
        let admission = Admission {
            clients,
            workers,
            queue,
            shared,
            protocols: PROTOCOLS,
            closed: AtomicBool::new(false),
        };
        Server {
            admission,
            workers: running,
            scoreboard,
            reaper,
            book,
        }
    }

    /// Lets a client in, as the front does.
    fn connect(&self, number: u64) -> Result<Client, NoRoom> {
        let peer = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        let place = self.admission.clients.admit(peer.ip(), true)?;
        let client = Client {
            number,
            wire: Arc::default(),
        };
        client.wire().room = 1000;
        let connection = Connection::new(
            number,
            PROTOCOLS.default(),
            End(client.clone()),
            peer,
            place,
        );
        self.admission.enqueue(connection);
        Ok(client)
    }

    /// Ends all workers in this way, in the order in which the daemon does it. With `cut`, what is not done then.
    fn stop(self, phase: Phase, cut: bool) -> Book {
        let Admission {
            clients,
            queue,
            shared,
            ..
        } = self.admission;
        let reaper_waker = shared.reaper_waker;
        drop(queue);
        self.scoreboard.set_phase(phase);
        reaper_waker.wake();
        let ended = self.workers;
        if cut {
            self.scoreboard.set_phase(Phase::Abort);
            reaper_waker.wake();
        }
        while ended.try_recv() != Err(TryRecvError::Disconnected) {
            thread::yield_now();
        }
        drop(reaper_waker);
        self.reaper.join().unwrap();
        let book = std::mem::take(&mut *self.book.lock().unwrap());
        let count = clients.count().load(std::sync::atomic::Ordering::SeqCst);
        assert_eq!(count, book.released.len(), "of the clients that count");
        for slot in self.scoreboard.slots() {
            assert_eq!(slot.state().activity(), Activity::Vacant);
        }
        book
    }
}

/// Ends a connection, and checks what can be checked by then.
fn note(
    book: &Mutex<Book>,
    connection: Connection<End>,
    ended: Option<CloseReason>,
    idle: Duration,
    write: Duration,
) {
    let number = connection.client.number;
    let fresh = book.lock().unwrap().ended.insert(number);
    assert!(fresh, "client {number} was served twice");
    let now = Millis::now();
    let ended = ended.expect("a session must not panic");
    match ended {
        CloseReason::Idle(time) => {
            let least = if idle.is_zero() {
                MINIMUM_IDLE
            } else {
                idle.min(MINIMUM_IDLE)
            };
            assert!(time >= least, "ended after {time:?}");
            if let Some(asked) = connection.transport().0.wire().asked {
                let quiet = now.since(asked);
                assert!(quiet >= least, "ended {quiet:?} after a request");
            }
            book.lock().unwrap().told.insert(number);
        }
        CloseReason::Aborted => {
            let stuck = connection.transport().0.wire().stuck;
            assert!(write.is_zero() || now.since(stuck.expect("a reader was cut off")) >= write);
            book.lock().unwrap().told.insert(number);
        }
        CloseReason::Released => {
            book.lock().unwrap().released.push(connection);
            return;
        }
        CloseReason::PeerClosed | CloseReason::Finished { .. } => {}
        CloseReason::ByCommand
        | CloseReason::ProtocolError
        | CloseReason::Broken(_)
        | CloseReason::Deferred
        | CloseReason::TurnOver => panic!("{ended:?}"),
    }
    connection.close();
}

/// Each job waits for all the others to be taken, so that one which is left lying while a worker sleeps ends in a deadlock.
#[test]
fn no_job_is_left_lying_while_a_worker_sleeps() {
    check(|| {
        const JOBS: usize = 3;
        let taken = Arc::new((shuttle::sync::Mutex::new(0), shuttle::sync::Condvar::new()));
        let (queue, jobs) = queue::bounded(JOBS);
        let workers: Vec<_> = (0..JOBS)
            .map(|_| {
                let (jobs, taken) = (jobs.clone(), taken.clone());
                thread::spawn(move || {
                    let worker = jobs.worker();
                    let mut done = 0;
                    while worker.take().is_some() {
                        done += 1;
                        let mut count = taken.0.lock().unwrap();
                        *count += 1;
                        taken.1.notify_all();
                        while *count < JOBS {
                            count = taken.1.wait(count).unwrap();
                        }
                    }
                    done
                })
            })
            .collect();
        let other = queue.clone();
        let putting = thread::spawn(move || other.put(Job::Serve(())).unwrap());
        queue.put(Job::Serve(())).unwrap();
        queue.put(Job::Serve(())).unwrap();
        putting.join().unwrap();
        // The end of the queue wakes all workers: before that they must have been woken for the jobs.
        let mut count = taken.0.lock().unwrap();
        while *count < JOBS {
            count = taken.1.wait(count).unwrap();
        }
        drop(count);
        drop(queue);
        let done: usize = workers
            .into_iter()
            .map(|worker| worker.join().unwrap())
            .sum();
        assert_eq!(done, JOBS);
    });
}

/// One that was idle for the idle time-out is told so, however the interrupts fall; one that asks is not.
#[test]
fn idle_clients_are_ended_and_no_others() {
    check(|| {
        let server = Server::start(2, 0, Duration::from_millis(20), NEVER);
        let clients: Vec<_> = (1..=2)
            .map(|number| {
                let client = server.connect(number).unwrap();
                thread::spawn(move || {
                    let requests = thread_rng().gen_range(0..4);
                    for asked in 1..=requests {
                        client.send(REQUEST);
                        if !client.replies(asked) {
                            return;
                        }
                    }
                    if thread_rng().r#gen() {
                        client.shut();
                    }
                    assert_eq!(client.end(), requests);
                })
            })
            .collect();
        for client in clients {
            client.join().unwrap();
        }
        assert_eq!(
            server.stop(Phase::Drain, false).ended,
            BTreeSet::from([1, 2])
        );
    });
}

/// With all workers taken, an idle client makes room for one that waits; with the queue full, nobody is let in.
#[test]
fn an_idle_client_makes_room() {
    check(|| {
        let server = Server::start(1, 1, NEVER, NEVER);
        let first = server.connect(1).unwrap();
        first.send(REQUEST);
        let second = server.connect(2).unwrap();
        match server.connect(3) {
            // Unless the first has been ended already.
            Ok(third) => third.shut(),
            Err(no_room) => assert!(matches!(no_room, NoRoom::Here { .. })),
        }
        second.send(REQUEST);
        second.shut();
        let answered = second.end();
        first.end();
        let book = server.stop(Phase::Drain, false);
        assert!(book.told.contains(&1));
        assert!(answered == 1 || book.told.contains(&2));
    });
}

/// Workers blocked on clients that send nothing, or about to be, learn that they are to stop.
#[test]
fn a_stop_reaches_every_blocked_worker() {
    check(|| {
        let server = Server::start(2, 0, NEVER, NEVER);
        let clients = [1, 2].map(|number| server.connect(number).unwrap());
        for _ in 0..thread_rng().gen_range(0..20) {
            thread::yield_now();
        }
        let release = thread_rng().r#gen();
        let phase = if release { Phase::Detach } else { Phase::Drain };
        let book = server.stop(phase, false);
        assert_eq!(book.ended, BTreeSet::from([1, 2]));
        assert_eq!(book.released.len(), if release { 2 } else { 0 });
        for client in clients {
            assert_ne!(client.wire().closed, release);
        }
    });
}

/// When it drains, the server answers all that has arrived, and ends each client that was let in, once.
#[test]
fn a_drain_answers_what_has_arrived_and_ends() {
    check(|| {
        let server = Server::start(2, 1, NEVER, NEVER);
        let clients: Vec<_> = (1..=4)
            .filter_map(|number| server.connect(number).ok())
            .collect();
        let numbers: BTreeSet<_> = clients.iter().map(|client| client.number).collect();
        let senders: Vec<_> = clients
            .iter()
            .map(|client| {
                let client = client.clone();
                thread::spawn(move || {
                    for _ in 0..thread_rng().gen_range(0..4) {
                        client.send(REQUEST);
                    }
                    if thread_rng().r#gen() {
                        client.shut();
                    }
                })
            })
            .collect();
        for _ in 0..thread_rng().gen_range(0..50) {
            thread::yield_now();
        }
        let arrived: Vec<_> = clients
            .iter()
            .map(|client| {
                let wire = client.wire();
                let unread = wire.to_server.iter().filter(|byte| **byte == b'\n').count();
                (unread > 0, wire.to_client.len() / REPLY.len() + unread)
            })
            .collect();
        let book = server.stop(Phase::Drain, false);
        assert_eq!(book.ended, numbers);
        for (client, (waiting, arrived)) in clients.iter().zip(arrived) {
            let answered = client.end();
            if !(waiting && book.told.contains(&client.number)) {
                assert!(answered >= arrived, "{answered} of {arrived}");
            }
        }
        for sender in senders {
            sender.join().unwrap();
        }
    });
}

/// Let go of, connections come out open, and all that their clients sent has been answered or is still there.
#[test]
fn a_release_reaches_every_worker_and_loses_nothing() {
    check(|| {
        let server = Server::start(2, 1, NEVER, NEVER);
        let clients: Vec<_> = (1..=3)
            .map(|number| server.connect(number).unwrap())
            .collect();
        let senders: Vec<_> = clients
            .iter()
            .map(|client| {
                let client = client.clone();
                thread::spawn(move || {
                    let requests = thread_rng().gen_range(0..3);
                    for _ in 0..requests {
                        client.send(REQUEST);
                    }
                    requests
                })
            })
            .collect();
        let book = server.stop(Phase::Detach, false);
        assert_eq!(book.ended, BTreeSet::from([1, 2, 3]));
        let sent: Vec<_> = senders
            .into_iter()
            .map(|sender| sender.join().unwrap())
            .collect();
        assert_eq!(book.released.len() + book.told.len(), 3);
        for connection in &book.released {
            let client = &connection.transport().0;
            let mut wire = client.wire();
            assert!(!wire.closed);
            let mut left = connection.client.read_buffer.clone();
            left.extend(wire.to_server.make_contiguous().iter());
            let answered = wire.to_client.len() / REPLY.len();
            let sent = REQUEST.repeat(sent[client.number as usize - 1]);
            assert_eq!(left, &sent[answered * REQUEST.len()..]);
        }
    });
}

/// A client that takes nothing is cut off after the write time-out, and one that takes its replies late has them all.
#[test]
fn who_takes_no_replies_is_cut_off() {
    check(|| {
        let server = Server::start(1, 0, NEVER, Duration::from_millis(20));
        let client = server.connect(1).unwrap();
        client.wire().room = 2 * REPLY.len();
        client.send(&REQUEST.repeat(5));
        client.shut();
        let late: bool = thread_rng().r#gen();
        if late {
            client.make_room(1000);
        }
        let answered = client.end();
        let book = server.stop(Phase::Drain, false);
        assert_eq!(answered, if book.told.is_empty() { 5 } else { 2 });
        assert!(late || !book.told.is_empty());
    });
}

/// At the deadline of a drain those go too that take nothing and may take their time.
#[test]
fn the_deadline_of_a_drain_cuts_everybody_off() {
    check(|| {
        let server = Server::start(2, 1, NEVER, NEVER);
        let clients: Vec<_> = (1..=3)
            .map(|number| server.connect(number).unwrap())
            .collect();
        for client in &clients {
            client.wire().room = REPLY.len();
            client.send(&REQUEST.repeat(2));
        }
        assert_eq!(
            server.stop(Phase::Drain, true).ended,
            BTreeSet::from([1, 2, 3])
        );
        for client in clients {
            assert!(client.end() <= 1);
        }
    });
}
