//! Membership: the servers of a cluster, as stored in etcd:
//!
//! ```text
//! /blockchain-tcpd/NAME/members/ID/INCARNATION  {"advertise":"IP:PORT"}, under its server's lease
//! /blockchain-tcpd/NAME/begun                   permanent
//! /blockchain-tcpd/NAME/young                   under a lease that is never renewed
//! ```
//!
//! A server that finds no `begun` puts it there together with `young`: the membership is new, perhaps
//! because etcd has lost one with other servers in it. A live server that finds its own entry
//! missing also puts `young` there: other entries may be missing for the same reason, or soon will
//! be. While `young` exists, the membership is *unstable*: no server trusts it to be complete. By
//! the time its lease expires, every server has noticed that its own lease is gone, and has
//! registered again.

use std::net::SocketAddr;

use serde_json::{Value, json};
use uuid::Uuid;

use super::client::{Pair, delete, put};
use super::transport::Etcd;
use crate::cluster::Member;
use crate::cluster::error::{ClusterError, Result, printable};

/// Largest number of servers of a cluster.
pub const MAX_SERVERS: usize = 128;

/// Entry of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Identity of the server.
    pub member: Member,
    /// Address of its HTTP server.
    pub address: SocketAddr,
    /// Lease of the entry.
    pub lease: i64,
}

/// Servers of the cluster at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// Entries of all servers.
    pub entries: Vec<Entry>,
    /// Whether the key `begun` exists.
    pub initialized: bool,
    /// Whether the key `young` exists: entries may be missing.
    pub unstable: bool,
}

impl Membership {
    /// Reads the membership of the cluster `name`, as it was at one moment between the call and the
    /// return.
    pub fn read(etcd: &mut Etcd, name: &str) -> Result<Self> {
        let prefix = prefix(name);
        // The end of the keys with this prefix: '0' comes after '/'.
        let end = format!("{}0", prefix.trim_end_matches('/'));
        // The limit leaves room for servers that registered at the same moment as the last one.
        Membership::new(&prefix, &etcd.range(&prefix, &end, MAX_SERVERS * 2)?)
    }

    fn new(prefix: &str, pairs: &[Pair]) -> Result<Self> {
        let mut membership = Membership::default();
        for pair in pairs {
            match pair.key.strip_prefix(prefix) {
                Some("begun") => membership.initialized = true,
                Some("young") => membership.unstable = true,
                // An entry that can't be read may belong to a server with clients.
                key => match key.and_then(|key| entry(key, pair)) {
                    Some(entry) => membership.entries.push(entry),
                    None => {
                        let what = format!("etcd holds nonsense: {} is {}", pair.key, pair.value);
                        return Err(ClusterError::refused(printable(&what)));
                    }
                },
            }
        }
        Ok(membership)
    }

    /// Returns the entry of this server.
    pub fn find(&self, member: Member) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.member == member)
    }

    /// Returns whether the membership is known to be complete.
    pub fn is_complete(&self) -> bool {
        self.initialized && !self.unstable
    }

    /// Writes this server's entry, and deletes those of the `stale` servers. Fails if `begun` has
    /// been created or deleted since the membership was read. With an `unstable` lease, the
    /// membership is unstable until that lease expires.
    pub fn write(
        &self,
        etcd: &mut Etcd,
        name: &str,
        own: &Entry,
        stale: &[Member],
        unstable: Option<i64>,
    ) -> Result<()> {
        let prefix = prefix(name);
        let [begun, young] = ["begun", "young"].map(|key| format!("{prefix}{key}"));
        let value = json!({ "advertise": own.address.to_string() }).to_string();
        let mut operations = vec![put(&key(&prefix, own.member), &value, own.lease)];
        operations.extend(stale.iter().map(|member| delete(&key(&prefix, *member))));
        operations.extend(unstable.map(|lease| put(&young, "", lease)));
        if !self.initialized {
            operations.push(put(&begun, "", 0));
        }
        match etcd.transaction((&begun, self.initialized), &operations)? {
            true => Ok(()),
            false => Err(ClusterError::refused(
                "the membership has begun anew meanwhile",
            )),
        }
    }
}

fn prefix(name: &str) -> String {
    format!("/blockchain-tcpd/{name}/")
}

fn key(prefix: &str, member: Member) -> String {
    format!("{prefix}members/{}/{}", member.id, member.incarnation)
}

/// Parses the entry under this key, given without its prefix.
fn entry(key: &str, pair: &Pair) -> Option<Entry> {
    let (id, incarnation) = key.strip_prefix("members/")?.split_once('/')?;
    let value: Value = serde_json::from_str(&pair.value).ok()?;
    Some(Entry {
        member: Member {
            id: Uuid::try_parse(id).ok()?,
            incarnation: Uuid::try_parse(incarnation).ok()?,
        },
        address: value["advertise"].as_str()?.parse().ok()?,
        lease: pair.lease,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_keys_that_a_server_writes_are_parsed() {
        let (id, incarnation) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let member = Member { id, incarnation };
        let path = key("", member);
        let read = |pairs: &[(&str, &str)]| {
            let pairs: Vec<Pair> = pairs
                .iter()
                .map(|(key, value)| Pair {
                    key: format!("{}{key}", prefix("a")),
                    value: value.to_string(),
                    lease: 7,
                })
                .collect();
            Membership::new(&prefix("a"), &pairs)
        };
        let (own, begun, young) = (
            (&*path, r#"{"advertise":"[::1]:5"}"#),
            ("begun", ""),
            ("young", ""),
        );
        let membership = read(&[begun, own]).unwrap();
        let (address, lease) = ("[::1]:5".parse().unwrap(), 7);
        let entry = Entry {
            member,
            address,
            lease,
        };
        assert_eq!(membership.find(member), Some(&entry));
        assert!(membership.is_complete());
        assert!(!read(&[begun, own, young]).unwrap().is_complete());
        assert!(!read(&[]).unwrap().is_complete());
        for (key, value) in [
            ("members/x", own.1),
            (&format!("members/{id}/x"), own.1),
            (&path, "{}"),
            (&path, r#"{"advertise":"a:5"}"#),
            ("else", ""),
        ] {
            assert!(read(&[(key, value)]).is_err(), "{key} {value}");
        }
    }
}
