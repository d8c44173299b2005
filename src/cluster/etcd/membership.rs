//! Who belongs to a cluster, as it is written in etcd:
//!
//! ```text
//! /blockchain-tcpd/NAME/members/ID/INCARNATION   {"advertise":"IP:PORT"}, under a lease of its server
//! /blockchain-tcpd/NAME/begun                    stays
//! /blockchain-tcpd/NAME/young                    under a lease that nobody keeps alive
//! ```
//!
//! Whoever finds no `begun` puts it there together with `unstable`: the roster has just begun, maybe because etcd has lost one in
//! which others were, too. A server that finds itself missing, for all that it lives, puts `unstable` there, too: others may be
//! missing for the same reason, or be so in a moment. As long as it is there nobody believes that the roster is whole. By then
//! everybody has noticed that its lease is gone, and has written itself down again.

use std::net::SocketAddr;
use std::time::Instant;

use serde_json::{Value, json};
use uuid::Uuid;

use super::client::{Compare, Etcd, Op, Pair};
use crate::cluster::Member;
use crate::cluster::error::{ClusterError, ErrorKind, cut};

/// The most servers of a cluster.
pub const MOST_SERVERS: usize = 128;

/// A server that belongs to the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Who it is.
    pub member: Member,
    /// Where its HTTP is.
    pub address: SocketAddr,
    /// The lease under which it is there.
    pub lease: i64,
}

/// Who belongs to the cluster at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// All servers.
    pub entries: Vec<Entry>,
    /// Whether it has begun at all.
    pub begun: bool,
    /// Whether servers may be missing.
    pub unstable: bool,
}

impl Membership {
    /// Reads that of the cluster of this name. It is as it was at one moment between the call and the return.
    pub fn read(etcd: &mut Etcd, name: &str, by: Instant) -> Result<Self, ClusterError> {
        let prefix = prefix(name);
        // All keys that begin so: '0' comes after '/'.
        let end = format!("{}0", prefix.trim_end_matches('/'));
        // Some that came at the same moment as the last may be there, too.
        Membership::new(&prefix, &etcd.range(&prefix, &end, MOST_SERVERS * 2, by)?)
    }

    fn new(prefix: &str, pairs: &[Pair]) -> Result<Self, ClusterError> {
        let mut membership = Membership::default();
        for pair in pairs {
            match pair.key.strip_prefix(prefix) {
                Some("begun") => membership.begun = true,
                Some("young") => membership.unstable = true,
                // One that can't be read may be a server with clients.
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

    /// What is written of this server.
    pub fn find(&self, member: Member) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.member == member)
    }

    /// Whether it is known to be whole.
    pub fn is_whole(&self) -> bool {
        self.begun && !self.unstable
    }

    /// Writes a server down, and takes away those that `gone` says are gone. It is as it was read a moment ago, or else this
    /// fails. The roster is young as long as the lease `youth` holds, if there is one.
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

/// The server that is written down under this key, without the prefix.
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
