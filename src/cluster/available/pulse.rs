//! What Redis answers to a heartbeat, and what the servers are told when the sum has changed.

use std::time::Duration;

use redis::Value;

/// What Redis says to a heartbeat.
pub struct Pulse {
    /// Tells this state from one that was lost.
    pub epoch: Vec<u8>,
    /// How often the sum has changed.
    pub version: u64,
    /// The clients of all servers.
    pub total: u64,
    /// How many servers there are.
    pub members: u64,
    /// What Redis takes for the number of this server.
    pub own: u64,
    /// How old the state is.
    pub age: Duration,
    /// Whether another server has the same id.
    pub shares_id: bool,
    /// After how long the others should be told, if they could not be at once; else nothing.
    pub untold: Duration,
}

/// What the servers tell each other when the sum has changed.
pub struct Message {
    /// Tells this state from one that was lost.
    pub epoch: Vec<u8>,
    /// How often the sum has changed.
    pub version: u64,
    /// The clients of all servers.
    pub total: u64,
    /// How many servers there are.
    pub members: u64,
}

impl Pulse {
    /// What the script's reply says, if it is one.
    pub fn read(reply: Value) -> Option<Self> {
        type Reply = (Vec<u8>, u64, u64, u64, u64, u64, u64, u64);
        let (epoch, version, total, members, own, age, shares_id, untold) =
            redis::from_redis_value::<Reply>(reply).ok()?;
        Some(Pulse {
            epoch,
            version,
            total,
            members,
            own,
            age: Duration::from_millis(age),
            shares_id: shares_id != 0,
            untold: Duration::from_millis(untold),
        })
    }
}

impl Message {
    /// What a message says, if it is one of ours.
    pub fn read(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let mut words = text.split(' ');
        let message = Message {
            epoch: words.next()?.into(),
            version: words.next()?.parse().ok()?,
            total: words.next()?.parse().ok()?,
            members: words.next()?.parse().ok()?,
        };
        words.next().is_none().then_some(message)
    }
}
