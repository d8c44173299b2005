//! Parses the reply to a heartbeat, and the messages that the servers receive when the sum has
//! changed.

use std::time::Duration;

use redis::Value;

/// Largest valid number of clients: that of Redis's integers. Adding this server's own count to it
/// can't overflow a `u64`.
const MAX_CLIENTS: u64 = i64::MAX as u64;

/// Sum of the counts of all servers; each message on the channel for changes is one.
#[derive(Debug, PartialEq, Eq)]
pub struct Sum {
    /// Identifies the state in Redis; a state that replaces a lost one has another epoch.
    pub epoch: Vec<u8>,
    /// Number of changes of the sum.
    pub version: u64,
    /// Number of clients of all servers.
    pub clients: u64,
    /// Number of servers.
    pub members: u64,
}

/// State of the cluster in a heartbeat's reply.
#[derive(Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Sum of the counts of all servers.
    pub sum: Sum,
    /// Number of this server's clients, as stored in Redis.
    pub own: u64,
    /// Age of the state.
    pub age: Duration,
    /// Whether another server has the same id.
    pub shares_id: bool,
    /// Time after which the script may announce this change to the others; zero if it has, or if
    /// nothing changed.
    pub unannounced: Duration,
}

/// Parses the script's reply: the time of the Redis server in milliseconds, and the state of the
/// cluster, unless Redis rejected the heartbeat because its send time did not match the Redis
/// clock. Returns `None` if it is not such a reply.
pub fn parse_reply(reply: Value) -> Option<(u64, Option<Snapshot>)> {
    type Fields = (u64, Vec<u8>, u64, u64, u64, u64, u64, u64, u64);
    if let Ok((clock,)) = redis::from_redis_value_ref::<(i64,)>(&reply) {
        return Some((clock.try_into().ok()?, None));
    }
    let (clock, epoch, version, clients, members, own, age, shares_id, unannounced) =
        redis::from_redis_value::<Fields>(reply).ok()?;
    let sum = Sum {
        epoch,
        version,
        clients,
        members,
    };
    let snapshot = Snapshot {
        sum,
        own,
        age: Duration::from_millis(age),
        shares_id: shares_id != 0,
        unannounced: Duration::from_millis(unannounced),
    };
    (clients <= MAX_CLIENTS).then_some((clock, Some(snapshot)))
}

/// Parses a message; `None` if it is not one.
pub fn parse_message(text: &[u8]) -> Option<Sum> {
    let mut words = str::from_utf8(text).ok()?.split(' ');
    let sum = Sum {
        epoch: words.next()?.into(),
        version: words.next()?.parse().ok()?,
        clients: words.next()?.parse().ok()?,
        members: words.next()?.parse().ok()?,
    };
    (words.next().is_none() && sum.clients <= MAX_CLIENTS).then_some(sum)
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

    fn sum(clients: u64) -> Sum {
        Sum {
            epoch: "e".into(),
            version: 2,
            clients,
            members: 4,
        }
    }

    #[test]
    fn replies_are_parsed_and_others_refused() {
        for clients in [3, i64::MAX] {
            let snapshot = Snapshot {
                sum: sum(clients as u64),
                own: 5,
                age: Duration::from_millis(6),
                shares_id: false,
                unannounced: Duration::from_millis(8),
            };
            let parsed = parse_reply(reply(Value::Int(clients)));
            assert_eq!(parsed, Some((1, Some(snapshot))));
        }
        let array = |clock| Value::Array(vec![Value::Int(clock)]);
        assert_eq!(parse_reply(array(7)), Some((7, None)));
        let too_large = reply(Value::BulkString("9223372036854775808".into()));
        for invalid in [
            Value::Nil,
            array(-1),
            reply(Value::Nil),
            reply(Value::Int(-1)),
            too_large,
        ] {
            assert_eq!(parse_reply(invalid.clone()), None, "{invalid:?}");
        }
    }

    #[test]
    fn messages_are_parsed_and_others_refused() {
        assert_eq!(
            parse_message(b"e 2 9223372036854775807 4"),
            Some(sum(MAX_CLIENTS))
        );
        for invalid in "|e 2 3|e 2 3 4 5|e 2 -3 4|e 2 3 4 |e 2 9223372036854775808 4".split('|') {
            assert_eq!(parse_message(invalid.as_bytes()), None, "{invalid:?}");
        }
    }
}
