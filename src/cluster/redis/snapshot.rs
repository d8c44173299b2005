//! Parses the reply to a heartbeat, and the messages that the servers receive when the sum has
//! changed.

use std::time::Duration;

use redis::Value;

/// Largest valid number of clients: that of Redis's integers. Adding this server's own count to it
/// can't overflow a `u64`.
const MOST: u64 = i64::MAX as u64;

/// State of the cluster in a heartbeat's reply.
#[derive(Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Identifies this state; a state that replaces a lost one has another epoch.
    pub epoch: Vec<u8>,
    /// Number of changes of the sum.
    pub version: u64,
    /// Number of clients of all servers.
    pub total: u64,
    /// Number of servers.
    pub members: u64,
    /// Number of this server's clients, as stored in Redis.
    pub own: u64,
    /// Age of the state.
    pub age: Duration,
    /// Whether another server has the same id.
    pub shares_id: bool,
    /// Time after which the script may notify the others of this change; zero if it has, or if
    /// nothing changed.
    pub untold: Duration,
}

/// Reply to a heartbeat.
#[derive(Debug, PartialEq, Eq)]
pub struct Reply {
    /// Time of the Redis server, in milliseconds.
    pub clock: u64,
    /// `None` if Redis rejected the heartbeat, without any change, because its send time did not
    /// match the Redis clock.
    pub snapshot: Option<Snapshot>,
}

/// Message on the channel for changes of the sum.
#[derive(Debug, PartialEq, Eq)]
pub struct Message {
    /// Identifies this state; a state that replaces a lost one has another epoch.
    pub epoch: Vec<u8>,
    /// Number of changes of the sum.
    pub version: u64,
    /// Number of clients of all servers.
    pub total: u64,
    /// Number of servers.
    pub members: u64,
}

impl Reply {
    /// Parses the script's reply; `None` if it is not one.
    pub fn read(reply: Value) -> Option<Self> {
        type Counts = (u64, Vec<u8>, u64, u64, u64, u64, u64, u64, u64);
        if let Value::Array(values) = &reply
            && let [Value::Int(clock)] = values[..]
        {
            let clock = u64::try_from(clock).ok()?;
            return Some(Reply {
                clock,
                snapshot: None,
            });
        }
        let (clock, epoch, version, total, members, own, age, shares_id, untold) =
            redis::from_redis_value::<Counts>(reply).ok()?;
        let snapshot = Snapshot {
            epoch,
            version,
            total,
            members,
            own,
            age: Duration::from_millis(age),
            shares_id: shares_id != 0,
            untold: Duration::from_millis(untold),
        };
        let snapshot = Some(snapshot);
        (total <= MOST).then_some(Reply { clock, snapshot })
    }
}

impl Message {
    /// Parses a message; `None` if it is not one.
    pub fn read(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let mut words = text.split(' ');
        let message = Message {
            epoch: words.next()?.into(),
            version: words.next()?.parse().ok()?,
            total: words.next()?.parse().ok()?,
            members: words.next()?.parse().ok()?,
        };
        (words.next().is_none() && message.total <= MOST).then_some(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(total: Value) -> Value {
        let epoch = Value::BulkString("e".into());
        let mut values = vec![Value::Int(1), epoch, Value::Int(2), total];
        values.extend([4, 5, 6, 0, 8].map(Value::Int));
        Value::Array(values)
    }

    #[test]
    fn replies_are_read_and_nonsense_is_none() {
        let read = Reply::read(reply(Value::Int(3))).expect("it is one");
        assert_eq!(read.clock, 1);
        let snapshot = read.snapshot.expect("it counts");
        assert_eq!(
            (snapshot.version, snapshot.total, snapshot.members),
            (2, 3, 4)
        );
        assert_eq!((snapshot.own, snapshot.shares_id), (5, false));
        assert_eq!(snapshot.age, Duration::from_millis(6));
        assert_eq!(snapshot.untold, Duration::from_millis(8));
        let most = Reply::read(reply(Value::Int(i64::MAX)));
        let most = most.and_then(|read| read.snapshot).expect("it counts");
        assert_eq!(most.total, MOST);
        let void = Reply::read(Value::Array(vec![Value::Int(7)]));
        let (clock, snapshot) = (7, None);
        assert_eq!(void, Some(Reply { clock, snapshot }));
        for nonsense in [
            Value::Nil,
            Value::Okay,
            Value::Array(vec![]),
            Value::Array(vec![Value::Int(-1)]),
            reply(Value::Nil),
            reply(Value::Int(-1)),
            reply(Value::BulkString("9223372036854775808".into())),
            reply(Value::BulkString("18446744073709551615".into())),
        ] {
            assert_eq!(Reply::read(nonsense.clone()), None, "{nonsense:?}");
        }
    }

    #[test]
    fn messages_are_read_and_nonsense_is_none() {
        let message = Message {
            epoch: "e".into(),
            version: 2,
            total: MOST,
            members: 4,
        };
        assert_eq!(Message::read(b"e 2 9223372036854775807 4"), Some(message));
        for nonsense in [
            "",
            "e 2 3",
            "e 2 3 4 5",
            "e 2 -3 4",
            "e 2 3 4 ",
            "e 2 9223372036854775808 4",
            "e 2 18446744073709551615 4",
            "e 2 99999999999999999999 4",
        ] {
            assert_eq!(Message::read(nonsense.as_bytes()), None, "{nonsense:?}");
        }
    }
}
