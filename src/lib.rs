//! `blockchain-tcpd` answers one-line commands on a TCP port. This is the map of the house.
//!
//! # The floors
//!
//! A module uses those of the floors below its own, and no other: `tests/project.rs` sees to it.
//!
//! ```text
//! main                                        options, log, run, one error, exit status
//! daemon                                      the life of the process
//! server     http                             opened, served and left, sees all the options; who looks after it, by HTTP
//! notify     monitor                          what systemd is told; what those are answered who look after it
//! health                                      whether clients are being served
//! handover                                    what comes from the last process and goes to the next
//! usher                                       serves all clients while the workers are being started
//! acceptor   pool       reaper     signals    clients come in; are served; are ended; what the system says
//! session    options    greeter               the service of one client; every setting; load balancers' PROXY headers
//! connection linger     protocol              a client as a value; sockets that are leaving; requests and replies as bytes
//! request_log metrics                         what each client asked and was answered; what is counted
//! command    identity   listener   logging    the answers; the id; sockets that listen; the log
//! cluster                                     how many clients all servers have together
//! clients    scoreboard episode    limits     the count; who does what; trouble said once; what the system has room for
//! pack                                        live connections on their way to the next process
//! queue      thread     clock      bell       where jobs wait for workers; names and wakes; moments; what is rung and polled
//! network    dial                             ranges of addresses; names, connections, and the way to a server
//! error      sync       stdio                 why it failed, with which status; what is waited for; what is printed and read
//! sys                                         the one room for unsafe code
//! ```
//!
//! # The way of a byte
//!
//! The kernel keeps a new client until an [`acceptor`] takes it, gives it a place in the count ([`clients`]) and puts it
//! on the bounded channel to the [`pool`] ([`queue`]) as a [`connection`]. A worker takes it and begins a [`session`]: it
//! blocks in `recv`, with room for one request on its stack. [`protocol::line`] finds whole lines in what was read;
//! [`command`] parses and executes each, without knowing of sockets or lines; the replies gather in one buffer, which
//! goes out in one `send` for all that was read. The worker notes on its line of the [`scoreboard`] that something was
//! answered, and in its share of the [`metrics`] what it came to, and blocks again. No lock, no allocation and no further system call is on this way.
//!
//! # The way of a client behind a load balancer
//!
//! If a connection comes from a network of `--proxy-from`, the acceptor leaves it to the [`proxy_filter`], whose thread polls all
//! those that have not said yet whose they are. When the PROXY header is whole ([`protocol::proxy`]), the client is let in by
//! the same door as others, with its own address; what it has sent behind the header waits unread in the socket.
//!
//! # The way of a scrape
//!
//! [`http`] serves all who look after the server in one thread, beside the acceptors and the workers and without them: it
//! polls their sockets, finds whole requests ([`protocol::http`]) and has [`monitor`] answer them, from what everybody has
//! noted in [`metrics`] and from [`health`], whose checks have a thread of their own.
//!
//! # The way of a WHO
//!
//! It is answered from the count of [`clients`], and in a [`cluster`] by its census. One over Redis adds what another thread has heard
//! of the other servers. For one over etcd the worker waits for a round: a thread reads there who belongs to the cluster, asks all
//! by their [`http`], and tells all workers that wait the sum, or why there is none.
//!
//! # The way of an NP
//!
//! What computes ([`command::ComputeLimiter`]) waits in its worker for a turn, of which there are as many as half of the cores, and rests
//! as long as it computes, so that whoever only asks finds a core. Where no turns are given, the request is deferred: the session
//! lets go of its connection with it, and a worker answers it before it reads on.
//!
//! # The way of a client that must go
//!
//! The [`reaper`] reads the scoreboard. When a client has been idle or not reading for too long, or when another waits
//! for a worker, it marks the line and interrupts the worker's thread by a signal whose handler does nothing
//! ([`sys`]): the blocked call fails with `EINTR`, and the worker looks at its orders. Whatever the client does in
//! between voids the order. Told goodbye, the socket is left to [`linger`], so that the last words arrive.
//!
//! # The way of a SIGTERM
//!
//! [`signals`] passes it to [`daemon`], which has `/readyz` say so for a while if it is to, and closes the door: the acceptors end
//! and with them the listeners. The scoreboard's phase becomes `Finish` and the reaper interrupts all blocked workers; each reads what has arrived by
//! then, answers it, says goodbye and takes the next from the queue, until the queue is empty and the workers end. At the
//! deadline the phase becomes `Cut`. A second signal ends the process at once.
//!
//! # The way of a SIGUSR2
//!
//! [`daemon`] has the new program try itself out ([`handover`]). Then [`http`] answers who has connected, the door
//! closes, the phase becomes `Release`, no more turns are given, and the workers let go: the connections come out of
//! the [`server`] as values, open and unread. They go into a [`pack`] with the listening sockets and those who linger,
//! and the new program, executed in the same process, begins with what it finds there: the [`interim`] serves everybody
//! who only asks until all workers are started, and [`http`]. If it can't be executed after all, this program begins
//! anew in the same way. At a SIGTERM under systemd, if it keeps a descriptor that is stored for a trial ([`notify`]), the phase
//! is `Pack`, which answers what has arrived and then lets go, and the pack is stored with systemd for the next process.
//!
//! # The other programs
//!
//! `src/bin/blockchain-tcp` is the client for people and scripts, `src/bin/check_blockchain_tcp` the monitoring plugin: no part of
//! the daemon. They stand where `main` stands, reach a server by [`dial`], and share with the daemon what an id looks like,
//! which commands there are and how the system's errors are worded.

pub mod acceptor;
pub mod admin;
pub mod clients;
pub mod clock;
pub mod cluster;
pub mod command;
pub mod connection;
pub mod daemon;
pub mod dial;
pub mod error;
pub mod handover;
pub mod handover_state;
pub mod health;
pub mod identity;
pub mod interim;
pub mod limits;
pub mod lingering_close;
pub mod listener;
pub mod log_throttle;
pub mod logging;
pub mod metrics;
pub mod network;
pub mod notify;
pub mod options;
pub mod pool;
pub mod protocol;
pub mod proxy_filter;
pub mod queue;
pub mod reaper;
pub mod request_log;
pub mod scoreboard;
pub mod server;
pub mod session;
pub mod signals;
pub mod stdio;
pub mod sync;
pub mod sys;
pub mod thread;
pub mod waker;
