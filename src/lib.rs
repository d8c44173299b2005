//! `blockchain-tcpd` answers short commands on TCP ports: as lines of text, protobuf, JSON-RPC and
//! gRPC. This is the map of the code.
//!
//! # Rooms
//!
//! A line uses those below it, with three exceptions: what is kept of a connection and of a cluster
//! is declared in `handover`, a server that stops stores its clients with `systemd`, and `config`
//! knows the registry of protocols.
//!
//! ```text
//! main                                    options, log, run, one error, exit status
//! daemon                                  process life cycle: serve, shut down, hot restart
//! admin       systemd                     HTTP for operators; service notifications, descriptor store
//! server                                  listeners, front, queue, worker pool, reaper, drain
//! handover    session                     state for the next process; the driver of one client's requests, worker slots
//! transport                               connections, their limits, lingering close
//! protocol                                registry of protocols, and their codecs
//! request_log metrics    cluster          log of requests; counters, histograms; census
//! config      signals    logging          options, limits, server id; signals; log
//! log_throttle thread    waker    error   incidents; named threads; eventfd, poll; fatal errors
//! ```
//!
//! Below them is the package `crates/shared`: the command table ([`shared::command`]) and its
//! protobuf schema ([`shared::schema`]), addresses, DNS and client connections ([`shared::dial`]),
//! clocks, and standard streams. The client (`crates/client`) and the monitoring plugin
//! (`crates/check`) use it, too, and nothing of the daemon. The package `crates/http2` has HTTP/2 for
//! both ends of gRPC. The package `crates/store` has the users, in PostgreSQL or SQLite, and pulls
//! them from a feed: the daemon and the task `pull` of the client use it; its `crates/libpq` loads
//! PostgreSQL's library when it is needed. There is unsafe code in [`shared::sys`], and in one file
//! each of `crates/http2` and `crates/libpq`.
//!
//! # How a request is served
//!
//! The kernel keeps a new client in the backlog until the [`front`](server::front) accepts it and
//! counts it ([`admission`](server::admission), [`clients`](transport::clients)). The front, one
//! thread behind one epoll(7), answers what arrives with the [`connection`](transport::connection)
//! and goes on while the client does. A client that falls silent or has to wait goes into the
//! bounded [`queue`](server::queue) of the worker [`pool`](server::pool): a worker takes it and
//! blocks in `recv`, and the client stays there. Both run the same [`session`], with a buffer for
//! one request on the stack. The connection's [`Codec`](protocol::Codec), such as that of
//! [`protocol::line`], finds whole requests in the bytes read; [`command`](shared::command) parses
//! and executes each and knows neither sockets nor the protocol. The replies to all requests of one
//! read collect in one buffer and leave in one `send`. The thread then records its activity in its
//! slot of the [`scoreboard`](session::scoreboard) and the results in its shard of the [`metrics`],
//! and blocks again. For a command without arguments, this path takes no lock, allocates nothing
//! in a worker, and makes no other system call there.
//!
//! # How a load balancer's connection is admitted
//!
//! The front passes a connection from a `--proxy-from` network to the
//! [`proxy_filter`](server::proxy_filter), and polls all connections with an incomplete PROXY
//! header. When the header ([`protocol::proxy`]) is whole, the client is admitted as any other,
//! with its own address. The bytes after the header stay unread in the socket.
//!
//! # How a scrape is answered
//!
//! The [`admin`] HTTP server uses one thread for all its clients, and neither the front nor
//! workers. It polls their sockets, finds whole requests ([`protocol::http`]), and answers them
//! from the [`metrics`] and from [`health`](server::health), whose checks have a thread of their
//! own.
//!
//! # How a JSON-RPC call is answered
//!
//! [`protocol::http`] parses heads and bodies, also for the [`admin`] server. A request that fits
//! into the session's buffer is answered from there; the codec of [`protocol::jsonrpc`] keeps a
//! longer one, and one with a call that is deferred, together with the replies to the calls before
//! it. That of [`protocol::protobuf`] keeps long messages in the same way.
//!
//! # How a gRPC call is answered
//!
//! The codec of [`protocol::grpc`] passes what it reads to the connection's HTTP/2 session and takes
//! the events: headers, parts of requests, their ends. It executes whole requests in their order and
//! submits the answers; what the client's windows have room for leaves with the next write. A
//! connection counts as a client from its first call that is neither a health check nor reflection.
//!
//! # How WHO is answered
//!
//! A server alone answers with its own count ([`clients`](transport::clients)); in a [`cluster`],
//! the census adds the other servers. Over Redis, another thread keeps the last counts of the
//! others. Over etcd, a worker waits for a poll: a thread reads the members from etcd, asks the
//! [`admin`] servers of all, and gives the sum, or the reason for its absence, to all waiting
//! workers.
//!
//! # How NP is computed
//!
//! A computing command waits in its worker for a permit
//! ([`ComputeLimiter`](shared::command::ComputeLimiter)). The number of permits is half of the
//! number of cores, at least one, and a permit cools down for about as long as it was in use, so
//! that other requests find a free core. Where no permits are given, the request is deferred: the
//! session releases its connection together with the request, and a worker answers it before it
//! reads on.
//!
//! # How the server closes a client
//!
//! The [`reaper`](server::reaper) reads the scoreboard. When a client has been idle, or has taken
//! no replies, for too long, or when another client waits for a worker, the reaper marks the
//! worker's slot and interrupts its thread by a signal with an empty handler
//! ([`sys`](shared::sys)). The blocked call fails with `EINTR`, and the worker sees the close
//! request. Any activity of the client in between makes the request void. After the last reply, the
//! front keeps the socket for a [`lingering_close`](transport::lingering_close), so that the reply
//! arrives.
//!
//! # Graceful shutdown: SIGTERM
//!
//! [`signals`] passes the signal to [`daemon`]. With `--drain-notice`, `/readyz` first announces
//! the drain for a while. Then the front passes its clients to the workers, and the listeners
//! close. The scoreboard's phase becomes `Drain`, and the reaper interrupts all blocked workers.
//! Each worker reads what has arrived by then, answers it, closes its client and takes the next
//! from the queue; when the queue is empty, the workers end. At the deadline the phase becomes
//! `Abort`. A second signal ends the process at once.
//!
//! # Hot restart: SIGUSR2
//!
//! [`daemon`] runs a preflight of the new program ([`upgrade`](handover::upgrade)). Then the
//! [`admin`] server answers its connected clients and ends, the front passes its clients on, the
//! phase becomes `Detach`, no more permits are given, and the workers release their connections,
//! open and with unread input, to the [`server`]. [`state`](handover::state) encodes them together
//! with the listening sockets and the lingering ones. The new program, executed in the same
//! process, starts from this state: its front serves clients until all workers run, but for those
//! that have to wait. If the new program can't be executed after all, this one continues in the same way.
//!
//! At SIGTERM, systemd may keep descriptors: [`notify`](systemd::notify) stores one to probe this.
//! If systemd keeps it, the phase is `DrainThenDetach`: the workers answer what has arrived and
//! then release their connections, and systemd stores the state for the next process.
//!
//! A connection of gRPC can't move: it is drained. Its codec announces the end by GOAWAY and answers
//! what the client has opened until then.

pub mod admin;
pub mod cluster;
pub mod config;
pub mod daemon;
pub mod error;
pub mod handover;
pub mod log_throttle;
pub mod logging;
pub mod metrics;
pub mod protocol;
pub mod request_log;
pub mod server;
pub mod session;
pub mod signals;
pub mod systemd;
pub mod thread;
pub mod transport;
pub mod waker;
