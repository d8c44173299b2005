//! etcd client: leases, ranges and transactions over the JSON gateway (`/v3/…`).
//!
//! The gateway writes 64-bit numbers as strings and omits those that are 0; keys and values are in
//! base64.

use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::transport::EtcdTransport;
use crate::cluster::error::{ClusterError, ErrorKind, cut};

/// Key with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// Key.
    pub key: String,
    /// Value.
    pub value: String,
    /// Lease of the key; 0 without one.
    pub lease: i64,
}

/// Operation in a transaction.
pub enum Op<'a> {
    /// Puts a value under a key, with a lease if one is given.
    Put(&'a str, &'a str, Option<i64>),
    /// Deletes a key.
    Delete(&'a str),
}

/// Condition of a transaction.
pub enum Compare<'a> {
    /// The key exists.
    Is(&'a str),
    /// The key does not exist.
    IsNot(&'a str),
}

/// Client of an etcd cluster.
pub struct Etcd(EtcdTransport);

impl Etcd {
    /// Creates a client. Sends nothing yet.
    pub fn new(transport: EtcdTransport) -> Self {
        Etcd(transport)
    }

    /// Requests a lease of `seconds`. Returns its id and its time to live, which may be longer.
    pub fn grant(&mut self, seconds: u64, by: Instant) -> Result<(i64, u64), ClusterError> {
        let reply = self
            .0
            .call("lease/grant", &json!({ "TTL": seconds.to_string() }), by)?;
        match (number(&reply["ID"]), number(&reply["TTL"])) {
            (Some(lease @ 1..), Some(seconds @ 1..)) => Ok((lease, seconds.unsigned_abs())),
            _ => Err(nonsense("a new lease", &reply)),
        }
    }

    /// Renews a lease. Returns whether it is alive.
    pub fn keep_alive(&mut self, lease: i64, by: Instant) -> Result<bool, ClusterError> {
        let question = json!({ "ID": lease.to_string() });
        // A stream: one request has one reply.
        let reply = self.0.call("lease/keepalive", &question, by)?;
        let reply = &reply["result"];
        match (number(&reply["ID"]), number(&reply["TTL"])) {
            (Some(same), Some(left)) if same == lease => Ok(left > 0),
            _ => Err(nonsense("a lease", reply)),
        }
    }

    /// Revokes a lease and deletes all keys under it.
    pub fn revoke(&mut self, lease: i64, by: Instant) -> Result<(), ClusterError> {
        self.0
            .call("lease/revoke", &json!({ "ID": lease.to_string() }), by)?;
        Ok(())
    }

    /// Returns all keys from `from` up to, but not including, `to`, as they are at one moment
    /// during this call. Fails if there are more than `most`.
    pub fn range(
        &mut self,
        from: &str,
        to: &str,
        most: usize,
        by: Instant,
    ) -> Result<Vec<Pair>, ClusterError> {
        let question =
            json!({ "key": encode(from), "range_end": encode(to), "limit": most.to_string() });
        let reply = self.0.call("kv/range", &question, by)?;
        if reply["more"] == Value::Bool(true) {
            let what = format!("there are more than {most} keys between {from} and {to}");
            return Err(ClusterError::new(ErrorKind::Refused, what));
        }
        // A reply without keys still has its header; other bodies are not valid replies.
        let pairs = match (&reply["kvs"], &reply["header"]) {
            (Value::Array(pairs), Value::Object(_)) => pairs.iter().map(pair).collect(),
            (Value::Null, Value::Object(_)) => Some(Vec::new()),
            _ => None,
        };
        pairs.ok_or_else(|| nonsense("keys", &reply))
    }

    /// Executes all operations atomically if the condition holds. Returns whether it did.
    pub fn transaction(
        &mut self,
        condition: &Compare<'_>,
        all: &[Op<'_>],
        by: Instant,
    ) -> Result<bool, ClusterError> {
        let (result, key) = match condition {
            Compare::Is(key) => ("GREATER", key),
            Compare::IsNot(key) => ("EQUAL", key),
        };
        let condition = json!({
            "target": "CREATE", "key": encode(key), "result": result, "create_revision": "0",
        });
        let all: Vec<Value> = all.iter().map(Op::in_json).collect();
        let question = json!({ "compare": [condition], "success": all });
        let reply = self.0.call("kv/txn", &question, by)?;
        match (&reply["succeeded"], &reply["header"]) {
            (Value::Bool(done), Value::Object(_)) => Ok(*done),
            (Value::Null, Value::Object(_)) => Ok(false),
            _ => Err(nonsense("a transaction", &reply)),
        }
    }
}

impl Op<'_> {
    fn in_json(&self) -> Value {
        match self {
            Op::Put(key, value, lease) => {
                let lease = lease.unwrap_or(0).to_string();
                json!({ "request_put": { "key": encode(key), "value": encode(value), "lease": lease } })
            }
            Op::Delete(key) => json!({ "request_delete_range": { "key": encode(key) } }),
        }
    }
}

fn encode(text: &str) -> String {
    STANDARD.encode(text)
}

fn decode(text: &Value) -> Option<String> {
    String::from_utf8(STANDARD.decode(text.as_str()?).ok()?).ok()
}

/// Parses a number as the gateway writes it.
fn number(value: &Value) -> Option<i64> {
    match value {
        Value::Null => Some(0),
        Value::String(text) => text.parse().ok(),
        value => value.as_i64(),
    }
}

fn pair(value: &Value) -> Option<Pair> {
    Some(Pair {
        key: decode(&value["key"])?,
        value: match &value["value"] {
            Value::Null => String::new(),
            value => decode(value)?,
        },
        lease: number(&value["lease"])?,
    })
}

fn nonsense(what: &str, reply: &Value) -> ClusterError {
    let what = format!("etcd was asked for {what} and answers {reply}");
    ClusterError::new(ErrorKind::Refused, cut(&what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_the_gateway_writes_them() {
        let reply = json!({ "a": "7300794588608445189", "b": 2, "c": "x" });
        assert_eq!(number(&reply["a"]), Some(7_300_794_588_608_445_189));
        assert_eq!(number(&reply["b"]), Some(2));
        assert_eq!(number(&reply["none"]), Some(0));
        assert_eq!(number(&reply["c"]), None);
    }

    #[test]
    fn a_pair_is_read_whatever_is_left_out() {
        let whole = json!({ "key": "L2EvYg==", "value": "L2EvYg==", "lease": "5", "version": "2" });
        let (key, value) = ("/a/b".to_string(), "/a/b".to_string());
        assert_eq!(
            pair(&whole),
            Some(Pair {
                key,
                value,
                lease: 5
            })
        );
        assert_eq!(pair(&json!({ "key": "L2EvYg==" })).unwrap().value, "");
        for bad in [
            json!({}),
            json!({ "key": "?" }),
            json!({ "key": "/w==" }),
            json!(3),
        ] {
            assert_eq!(pair(&bad), None, "{bad}");
        }
    }
}
