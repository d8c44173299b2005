//! etcd client: leases, ranges and transactions over the JSON gateway (`/v3/…`).
//!
//! The gateway writes 64-bit numbers as strings and omits those that are 0; keys and values are in
//! base64.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::transport::Etcd;
use crate::cluster::error::{ClusterError, Result, printable};

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

impl Etcd {
    /// Requests a lease of `seconds`, and returns its id.
    pub fn grant(&mut self, seconds: u64) -> Result<i64> {
        let request = json!({ "TTL": seconds.to_string() });
        let reply = self.call("lease/grant", &request)?;
        match (number(&reply["ID"]), number(&reply["TTL"])) {
            (Some(lease @ 1..), Some(1..)) => Ok(lease),
            _ => Err(unexpected("a new lease", &reply)),
        }
    }

    /// Renews a lease. Returns whether it is alive.
    pub fn keep_alive(&mut self, lease: i64) -> Result<bool> {
        let request = json!({ "ID": lease.to_string() });
        // A stream: one request has one reply.
        let reply = self.call("lease/keepalive", &request)?;
        let reply = &reply["result"];
        match (number(&reply["ID"]), number(&reply["TTL"])) {
            (Some(same), Some(left)) if same == lease => Ok(left > 0),
            _ => Err(unexpected("a lease", reply)),
        }
    }

    /// Revokes a lease and deletes all keys under it.
    pub fn revoke(&mut self, lease: i64) -> Result<()> {
        let request = json!({ "ID": lease.to_string() });
        self.call("lease/revoke", &request).map(|_| ())
    }

    /// Returns all keys from `from` up to, but not including, `to`, as they are at one moment
    /// during this call. Fails if there are more than `most`.
    pub fn range(&mut self, from: &str, to: &str, most: usize) -> Result<Vec<Pair>> {
        let request =
            json!({ "key": encode(from), "range_end": encode(to), "limit": most.to_string() });
        let reply = self.call("kv/range", &request)?;
        if reply["more"] == Value::Bool(true) {
            let what = format!("there are more than {most} keys between {from} and {to}");
            return Err(ClusterError::refused(what));
        }
        // A reply without keys still has its header; other bodies are not valid replies.
        let pairs = match (&reply["kvs"], &reply["header"]) {
            (Value::Array(pairs), Value::Object(_)) => pairs.iter().map(pair).collect(),
            (Value::Null, Value::Object(_)) => Some(Vec::new()),
            _ => None,
        };
        pairs.ok_or_else(|| unexpected("keys", &reply))
    }

    /// Executes all `operations` atomically if `key` exists, or if it does not. Returns whether it
    /// was so.
    pub fn transaction(
        &mut self,
        (key, exists): (&str, bool),
        operations: &[Value],
    ) -> Result<bool> {
        let condition = json!({
            "target": "CREATE",
            "key": encode(key),
            "result": if exists { "GREATER" } else { "EQUAL" },
            "create_revision": "0",
        });
        let request = json!({ "compare": [condition], "success": operations });
        let reply = self.call("kv/txn", &request)?;
        match (&reply["succeeded"], &reply["header"]) {
            (Value::Bool(done), Value::Object(_)) => Ok(*done),
            (Value::Null, Value::Object(_)) => Ok(false),
            _ => Err(unexpected("a transaction", &reply)),
        }
    }
}

/// Returns the operation that puts a value under a key, with a lease unless that is 0.
pub fn put(key: &str, value: &str, lease: i64) -> Value {
    let (key, value, lease) = (encode(key), encode(value), lease.to_string());
    json!({ "request_put": { "key": key, "value": value, "lease": lease } })
}

/// Returns the operation that deletes a key.
pub fn delete(key: &str) -> Value {
    json!({ "request_delete_range": { "key": encode(key) } })
}

fn encode(text: &str) -> String {
    STANDARD.encode(text)
}

/// Decodes a key or a value; one that is missing is empty.
fn decode(text: &Value) -> Option<String> {
    let text = if text.is_null() { "" } else { text.as_str()? };
    String::from_utf8(STANDARD.decode(text).ok()?).ok()
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
        value: decode(&value["value"])?,
        lease: number(&value["lease"])?,
    })
}

fn unexpected(what: &str, reply: &Value) -> ClusterError {
    let what = format!("etcd was asked for {what} and answers {reply}");
    ClusterError::refused(printable(&what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_parsed_as_the_gateway_writes_them() {
        let some = |value: &str, lease| {
            let (key, value) = ("/a/b".to_string(), value.to_string());
            Some(Pair { key, value, lease })
        };
        for (value, parsed) in [
            (
                json!({ "key": "L2EvYg==", "value": "L2EvYg==", "lease": "7300794588608445189", "version": "2" }),
                some("/a/b", 7_300_794_588_608_445_189),
            ),
            (json!({ "key": "L2EvYg==", "lease": 2 }), some("", 2)),
            (json!({ "key": "L2EvYg==" }), some("", 0)),
            (json!({ "key": "L2EvYg==", "lease": "x" }), None),
            (json!({ "key": 3 }), None),
            (json!({ "key": "?" }), None),
            (json!({ "key": "/w==" }), None),
        ] {
            assert_eq!(pair(&value), parsed, "{value}");
        }
    }
}
