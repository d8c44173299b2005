//! `blockchain-tcpd` answers one-line commands on a TCP port. This is the map of the house.
//!
//! # The floors
//!
//! A module uses those below it. What still points up or round: `session` to the reaper's alarm, `clients` to the
//! refusals of `command`, `thread` to `error`, and `command` and `protocol` to each other.
//!
//! ```text
//! main                                         options, log, run, one error, exit status
//! daemon                                       the life of the process; alone sees all the options
//! acceptor   pool      reaper    signals       clients come in; are served; are ended; what the system says
//! session                                      the service of one client
//! connection listener  linger    command       a client as a value; sockets that listen; that are leaving; the answers
//!                                protocol      bytes to requests, replies to bytes
//! clients    scoreboard episode  identity      the count; who does what; trouble said once; the id
//! options    logging   limits    error         settings; the log; what the system has room for; why it failed
//! thread     clock     sync      sys           names and wakes; milliseconds; what is waited for; the one room for
//!                                              unsafe code
//! ```
//!
//! # The way of a byte
//!
//! The kernel keeps a new client until an [`acceptor`] takes it, gives it a place in the count ([`clients`]) and puts it
//! on the bounded channel of the [`pool`] as a [`connection`]. A worker takes it and begins a [`session`]: it blocks in
//! `recv`, with room for one request on its stack. [`protocol::line`] finds whole lines in what was read;
//! [`command`] parses and executes each, without knowing of sockets or lines; the replies gather in one buffer, which
//! goes out in one `send` for all that was read. The worker notes on its line of the [`scoreboard`] that something was
//! answered, and blocks again. No lock, no allocation and no further system call is on this way.
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
//! [`signals`] passes it to [`daemon`], which closes the door: the acceptors end and with them the listeners. The
//! scoreboard's phase becomes `Finish` and the reaper interrupts all blocked workers; each reads what has arrived by
//! then, answers it, says goodbye and takes the next from the queue, until the queue is empty and the workers end. At the
//! deadline the phase becomes `Cut`. A second signal ends the process at once. With the phase `Release` the workers let
//! go instead: the connections come out of the server as values, open and unread.

pub mod acceptor;
pub mod clients;
pub mod clock;
pub mod command;
pub mod connection;
pub mod daemon;
pub mod episode;
pub mod error;
pub mod identity;
pub mod limits;
pub mod linger;
pub mod listener;
pub mod logging;
pub mod options;
pub mod pool;
pub mod protocol;
pub mod reaper;
pub mod scoreboard;
pub mod session;
pub mod signals;
pub mod sync;
pub mod sys;
pub mod thread;
