//! The tests on whole clusters, one program: real servers, Redis, Sentinels and etcd, each on a host of its own in a network of the
//! test's own, which needs root. What belongs where:
//!
//! - `network`: the switch and the hosts; how they are cut off
//! - `server`: the daemon on its host
//! - `clients`: those who come and go, and those who ask
//! - `truth`: what the clients know; `judge`: which answers are right, given that; `stalls`: when the machine is to blame
//! - `world`: all of it together
//! - `available`, `consistent`: one thing at a time
//! - `balanced`: availability as the clients of HAProxy see it
//! - `chaos`: many at random, for a minute or for hours; `account`: what came of it
#![allow(missing_docs)]

#[allow(dead_code)] // most of it is for the tests on one daemon
#[macro_use]
#[path = "../support/mod.rs"]
mod support;

mod account;
mod available;
mod balanced;
mod chaos;
mod clients;
mod consistent;
mod judge;
mod network;
mod random;
mod server;
mod stalls;
mod truth;
mod world;
