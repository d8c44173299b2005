//! The tests that run the whole daemon, one program. What belongs where:
//!
//! - `support`: the daemon as a child process, clients, waiting; no tests
//! - `protocol`: each sentence of docs/protocol.md, quoted and proved; arbitrary chopping of the bytes
//! - `nc`: the documented one-liners with every netcat
//! - `clusters`: a cluster of either kind, and what holds for both
//! - `redis`: a cluster over a real Redis, and whatever may happen to it; servers cut off for real are in `tests/cluster`
//! - `users`: the users in a store, PostgreSQL or SQLite: commands, streams, and whatever may happen to the database
//! - `pull`: feeds of users, by hand and by the daemons: whatever a server of a feed does, and one puller among several servers
//! - `settings`: flags, variables, defaults, `--help`, what is refused at start and with which words and exit status
//! - `identity`: the id and the state directory
//! - `life`: signals, drain, exit statuses
//! - `moving`: detached connections, open and unread
//! - `inherited`: what a parent leaves behind: ignored signals, timers, limits, umask, descriptors
//! - `listening`: the pair of all addresses, sockets of other sorts of TCP
//! - `full`: more clients than may be: BUSY, making room, the cap for an address
//! - `handover`: a new program takes over, and no client notices
//! - `etcd`: the consistent cluster: WHO over several servers and a real etcd, whatever becomes of either
//! - `proxy`: PROXY headers: whose connection it is, which networks are trusted, wrong and missing headers
//! - `haproxy`: the example for HAProxy, tried with HAProxy, three daemons and real certificates
//! - `http`: health, readiness and the page; what HTTP clients may do to it
//! - `jsonrpc`: JSON-RPC over HTTP: calls, HTTP and its abuse, handover and drain
//! - `metrics`: what is counted, held against docs/metrics.md
//! - `hostile`: clients that harm themselves or others: tricklers, floods, those who never read
//! - `failures`: what the system refuses: descriptors, memory; panics
//! - `log`: what is logged, and what can't flood it
//! - `manual`: the manual page and the settings file of the package, held against the program
//! - `systemd`: socket activation, readiness, the watchdog, the file descriptor store
//! - `check`: the monitoring plugin: its line and exit status, servers that mean harm, its manual, Nagios itself
//! - `session`: plays the sessions that `check`, `client` and `samples` have as `*.txt`, and the servers in them
//! - `client`: the command-line client: one question, conversations in a terminal and through a pipe, the count live, its bench
//! - `prometheus`: what watches the daemon: the rules, the alerts, the dashboard, and Prometheus itself
//! - `samples`: the clients of `examples/clients`, against the daemon and against servers that mean harm
//! - `soak`: many connections of all sorts, and nothing left behind
//! - `grpc`: gRPC, with the official client, and with frames made by hand
//! - `protobuf`: the protobuf protocol
//! - `stock`: the stock clients of protobuf and JSON-RPC in three languages each, also under load and over handovers
//! - `toy`: a protocol that is one folder, served by the daemon's own session and pool
//! - `project`: the promises about the tree itself: no async runtime, README's and the documents' examples
#![allow(missing_docs)]

#[macro_use]
mod support;

mod check;
mod client;
mod clusters;
mod etcd;
mod failures;
mod front;
mod full;
mod grpc;
mod handover;
mod haproxy;
mod hostile;
mod http;
mod identity;
mod inherited;
mod jsonrpc;
mod life;
mod listening;
mod log;
mod manual;
mod metrics;
mod moving;
mod nc;
mod project;
mod prometheus;
mod protobuf;
mod protocol;
mod proxy;
mod pull;
mod redis;
mod samples;
mod session;
mod settings;
mod soak;
mod stock;
mod systemd;
mod toy;
mod users;
