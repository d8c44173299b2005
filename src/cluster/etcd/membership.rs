//! List of the servers of a cluster, as stored in etcd:
//!
//! ```text
//! /blockchain-tcpd/NAME/members/ID/INCARNATION  {"advertise":"IP:PORT"}, under its server's lease
//! /blockchain-tcpd/NAME/begun                   permanent
//! /blockchain-tcpd/NAME/young                   under a lease that is never renewed
//! ```
//!
//! A server that finds no `begun` puts it there together with `young`: the list has just begun,
//! perhaps because etcd has lost one with other servers in it. A live server that finds its own
//! entry missing also puts `young` there: other entries may be missing for the same reason, or soon
//! will be. While `young` exists, no server trusts the list to be complete. By the time its lease
//! expires, every server has noticed that its own lease is gone, and has registered again.

use std::net::SocketAddr;
use std::time::Instant;

use serde_json::{Value, json};
use uuid::Uuid;

use super::client::{Compare, Etcd, Op, Pair};
use crate::cluster::Member;
use crate::cluster::error::{ClusterError, ErrorKind, cut};

/// Largest number of servers of a cluster.
pub const MOST_SERVERS: usize = 128;

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
    pub begun: bool,
    /// Whether the key `young` exists: entries may be missing.
    pub unstable: bool,
}

impl Membership {
    /// Reads the membership of the cluster `name`, as it was at one moment between the call and the
    /// return.
    pub fn read(etcd: &mut Etcd, name: &str, by: Instant) -> Result<Self, ClusterError> {
        let prefix = prefix(name);
        // The end of the keys with this prefix: '0' comes after '/'.
        let end = format!("{}0", prefix.trim_end_matches('/'));
        // The limit leaves room for servers that registered at the same moment as the last one.
        Membership::new(&prefix, &etcd.range(&prefix, &end, MOST_SERVERS * 2, by)?)
    }

    fn new(prefix: &str, pairs: &[Pair]) -> Result<Self, ClusterError> {
        let mut membership = Membership::default();
        for pair in pairs {
            match pair.key.strip_prefix(prefix) {
                Some("begun") => membership.begun = true,
                Some("young") => membership.unstable = true,
                // An entry that can't be read may belong to a server with clients.
                key => match key.and_then(|key| entry(key, pair)) {
                    Some(entry) => membership.entries.push(entry),
                    None => {
                        let what = format!("etcd holds nonsense: {} is {}", pair.key, pair.value);
                        return Err(ClusterError::new(ErrorKind::Refused, cut(&what)));
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
    pub fn is_whole(&self) -> bool {
        self.begun && !self.unstable
    }

    /// Writes this server's entry, and deletes those of the servers in `gone`. Fails if `begun` has
    /// been created or deleted since the membership was read. With a lease `youth`, the membership
    /// is unstable until that lease expires.
    pub fn write(
        &self,
        etcd: &mut Etcd,
        name: &str,
        own: &Entry,
        gone: &[Member],
        youth: Option<i64>,
        by: Instant,
    ) -> Result<(), ClusterError> {
        let prefix = prefix(name);
        let (begun, unstable) = (prefix.clone() + "begun", prefix.clone() + "young");
        let own_key = key(&prefix, own.member);
        let value = json!({ "advertise": own.address.to_string() }).to_string();
        let gone: Vec<String> = gone.iter().map(|member| key(&prefix, *member)).collect();
        let mut all = vec![Op::Put(&own_key, &value, Some(own.lease))];
        all.extend(gone.iter().map(|key| Op::Delete(key)));
        all.extend(youth.map(|youth| Op::Put(&unstable, "", Some(youth))));
        let condition = match self.begun {
            true => Compare::Is(&begun),
            false => {
                all.push(Op::Put(&begun, "", None));
                Compare::IsNot(&begun)
            }
        };
        match etcd.transaction(&condition, &all, by)? {
            true => Ok(()),
            false => Err(ClusterError::new(
                ErrorKind::Refused,
                "the roster has begun anew meanwhile",
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

    fn pair(key: &str, value: &str) -> Pair {
        let (key, value) = (format!("/blockchain-tcpd/a/{key}"), value.to_string());
        Pair {
            key,
            value,
            lease: 7,
        }
    }

    #[test]
    fn what_was_written_is_read_and_nonsense_is_no_server() {
        let (id, incarnation) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let member = Member { id, incarnation };
        let written = key("members-of/", member);
        assert_eq!(written, format!("members-of/members/{id}/{incarnation}"));
        let one = pair(
            &format!("members/{id}/{incarnation}"),
            r#"{"advertise":"[::1]:5"}"#,
        );
        let read = |pairs: &[Pair]| Membership::new("/blockchain-tcpd/a/", pairs);
        let membership = read(&[pair("begun", ""), one.clone()]).unwrap();
        let address = "[::1]:5".parse().unwrap();
        assert_eq!(
            membership.find(member),
            Some(&Entry {
                member,
                address,
                lease: 7
            })
        );
        assert!(membership.is_whole());
        assert!(
            !read(&[pair("begun", ""), one, pair("young", "")])
                .unwrap()
                .is_whole()
        );
        assert!(!read(&[]).unwrap().is_whole());
        for (key, value) in [
            (format!("members/{id}"), "{}"),
            (format!("members/{id}/{incarnation}"), "{}"),
            (
                format!("members/{id}/{incarnation}"),
                r#"{"advertise":"a:5"}"#,
            ),
            (format!("members/{id}/x"), r#"{"advertise":"[::1]:5"}"#),
            ("else".to_string(), ""),
        ] {
            assert!(read(&[pair(&key, value)]).is_err(), "{key}");
        }
    }
}
