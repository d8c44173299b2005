//! `blockchain-tcpd` answers one-line commands on a TCP port. This is the map of the code.
//!
//! # Layers
//!
//! A module imports only modules of the layers below its own; `tests/project.rs` checks this.
//!
//! ```text
//! main                                        options, log, run, one error, exit status
//! daemon                                      process life cycle: serve, shut down, hot restart
//! server     admin                            one server: start, drain, handover; admin HTTP
//! notify                                      sd_notify: service notifications, descriptor store
//! health                                      liveness check of acceptors, workers and reaper
//! handover                                    sockets and clients for the next process
//! interim                                     serves all clients while the workers start
//! acceptor   pool       reaper     signals    accept loop; worker pool; timeouts; signals
//! session    options    proxy_filter          one client's requests; settings; PROXY filter
//! connection lingering_close protocol         connection values; lingering close; wire formats
//! request_log metrics                         log of requests and replies; counters, histograms
//! command    identity   listener   logging    commands; server id; listening sockets; log
//! cluster                                     census: number of clients of all servers
//! clients    scoreboard log_throttle limits   limits; worker slots; incidents; system limits
//! handover_state                              encoded state of live connections
//! queue      thread     clock      waker      job queue; named threads; clocks; eventfd, poll
//! network    dial                             address ranges; client library with DNS
//! error      sync       stdio      text       errors; primitives; standard streams; escaping
//! sys                                         the only module with unsafe code
//! ```
//!
//! # How a request is served
//!
//! The kernel keeps a new client in the backlog until an [`acceptor`] accepts it, counts it
//! ([`clients`]) and puts it as a [`connection`] into the bounded [`queue`] of the worker [`pool`].
//! A worker takes it and starts a [`session`], which blocks in `recv` with a buffer for one request
//! on its stack. [`protocol::line`] finds whole lines in the bytes read; [`command`] parses and
//! executes each line and knows neither sockets nor the protocol. The replies to all lines of one
//! read collect in one buffer and leave in one `send`. The worker then records its activity in its
//! slot of the [`scoreboard`] and the results in its shard of the [`metrics`], and blocks again.
//! This path takes no lock, allocates nothing and makes no other system call.
//!
//! # How a load balancer's connection is admitted
//!
//! An acceptor passes a connection from a `--proxy-from` network to the [`proxy_filter`], whose
//! thread polls all connections with an incomplete PROXY header. When the header
//! ([`protocol::proxy`]) is whole, the client is admitted as any other, with its own address. The
//! bytes after the header stay unread in the socket.
//!
//! # How a scrape is answered
//!
//! The [`admin`] HTTP server uses one thread for all its clients, and neither acceptors nor
//! workers. It polls their sockets, finds whole requests ([`protocol::http`]), and answers them
//! from the [`metrics`] and from [`health`], whose checks have a thread of their own.
//!
//! # How WHO is answered
//!
//! A server alone answers with its own count ([`clients`]); in a [`cluster`], the census adds the
//! other servers. Over Redis, another thread keeps the last counts of the others. Over etcd, the
//! worker waits for a poll: a thread reads the members from etcd, asks the [`admin`] servers of
//! all, and gives the sum, or the reason for its absence, to all waiting workers.
//!
//! # How NP is computed
//!
//! A computing command waits in its worker for a permit ([`command::ComputeLimiter`]). The number
//! of permits is half of the number of cores, at least one, and a permit rests for as long as it
//! was in use, so that other requests find a free core. Where no permits are given, the request is
//! deferred: the session releases its connection together with the request, and a worker answers it
//! before it reads on.
//!
//! # How the server closes a client
//!
//! The [`reaper`] reads the scoreboard. When a client has been idle, or has taken no replies, for
//! too long, or when another client waits for a worker, the reaper marks the worker's slot and
//! interrupts its thread by a signal with an empty handler ([`sys`]). The blocked call fails with
//! `EINTR`, and the worker sees the close request. Any activity of the client in between makes the
//! request void. After the last reply, [`lingering_close`] takes the socket, so that the reply
//! arrives.
//!
//! # Graceful shutdown: SIGTERM
//!
//! [`signals`] passes the signal to [`daemon`]. With `--drain-notice`, `/readyz` first announces
//! the drain for a while. Then the acceptors end, and the listeners close. The scoreboard's phase
//! becomes `Drain`, and the reaper interrupts all blocked workers. Each worker reads what has
//! arrived by then, answers it, closes its client and takes the next from the queue; when the queue
//! is empty, the workers end. At the deadline the phase becomes `Abort`. A second signal ends the
//! process at once.
//!
//! # Hot restart: SIGUSR2
//!
//! [`daemon`] runs a preflight of the new program ([`handover`]). Then the [`admin`] server answers
//! its connected clients and ends, the acceptors end, the phase becomes `Detach`, no more permits
//! are given, and the workers release their connections, open and with unread input, to the
//! [`server`]. [`handover_state`] encodes them together with the listening sockets and the
//! lingering ones. The new program, executed in the same process, starts from this state: the
//! [`interim`] server serves everything but computing commands until all workers run. If the new
//! program can't be executed after all, this one continues in the same way.
//!
//! At SIGTERM, systemd may keep descriptors: [`notify`] stores one to probe this. If systemd keeps
//! it, the phase is `DrainThenDetach`: the workers answer what has arrived and then release their
//! connections, and systemd stores the state for the next process.
//!
//! # The other programs
//!
//! `src/bin/blockchain-tcp` is the client for people and scripts, `src/bin/check_blockchain_tcp`
//! the monitoring plugin. Neither is part of the daemon. They are in the same layer as `main`,
//! reach a server by [`dial`], and share with the daemon the format of ids, the list of commands
//! and the wording of system errors.

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
pub mod text;
pub mod thread;
pub mod waker;
