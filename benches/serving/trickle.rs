//! Clients that never finish a line: each sends a byte a second.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::net::{SendFlags, send};

use crate::Result;

/// How often each of them sends a byte.
const EACH: Duration = Duration::from_secs(1);

/// The clients, who send in turn.
pub struct Trickle {
    /// Who they are.
    clients: Vec<OwnedFd>,
    /// Whose turn it is.
    next: usize,
    /// When.
    due: Instant,
    /// The time between two turns.
    gap: Duration,
}

impl Trickle {
    /// Begins with one byte from every client.
    pub fn begin(clients: Vec<OwnedFd>) -> Result<Trickle> {
        for client in &clients {
            drip(client)?;
        }
        let gap = EACH / u32::try_from(clients.len().max(1))?;
        Ok(Trickle {
            clients,
            next: 0,
            due: Instant::now() + gap,
            gap,
        })
    }

    /// The longest time to wait between two looks at what is due.
    pub fn pause(&self) -> Duration {
        self.gap
    }

    /// Sends what is due.
    pub fn send(&mut self, now: Instant) -> Result<()> {
        while self.due <= now {
            drip(&self.clients[self.next])?;
            self.next = (self.next + 1) % self.clients.len();
            self.due += self.gap;
        }
        Ok(())
    }

    /// Gives the clients back.
    pub fn into_clients(self) -> Vec<OwnedFd> {
        self.clients
    }
}

/// Sends one byte.
fn drip(client: &OwnedFd) -> Result<()> {
    match send(client, b"W", SendFlags::NOSIGNAL) {
        Ok(1) => Ok(()),
        Ok(_) => Err("a byte didn't fit into an empty socket".into()),
        Err(error) => Err(format!("a trickling client lost its connection: {error}").into()),
    }
}
