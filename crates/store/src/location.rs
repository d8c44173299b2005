//! Where the store is: the URL of `--store`, checked before anything is opened.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use crate::error::{ErrorKind, StoreError};

/// Where the store is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A PostgreSQL: the URL for libpq, without a password.
    Postgres(String),
    /// A file of SQLite.
    Sqlite(PathBuf),
}

/// The files with what is secret, read for each connection: they may change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Secrets {
    /// File with the password.
    pub password: Option<PathBuf>,
    /// File with the certificates to trust.
    pub ca: Option<PathBuf>,
}

/// The sslmodes of libpq that say whether TLS is used; the others leave that to the server.
const SSLMODES: [&str; 4] = ["disable", "require", "verify-ca", "verify-full"];

/// The first libpq that takes `sslrootcert=system` for the certificates of the system. An older one
/// takes it for a file, and then connects without TLS.
const KNOWS_SYSTEM: i32 = 160_000;

impl Location {
    /// Parses a URL: `postgres://[USER@]HOST[:PORT][,HOST…]/DATABASE[?PARAMETERS]`, or
    /// `sqlite:///PATH`.
    ///
    /// # Errors
    ///
    /// Says what is wrong, and what to write instead.
    pub fn parse(url: &str) -> Result<Self, String> {
        match url.split_once("://") {
            Some(("postgres" | "postgresql", rest)) => {
                check_postgres(rest)?;
                Ok(Location::Postgres(url.to_string()))
            }
            Some(("sqlite", path)) if path.contains(['?', '#']) => Err(
                "names a file with ? or #, and SQLite's parameters can't be set: write only its path".to_string(),
            ),
            Some(("sqlite", path)) if path.len() > 1 && path.starts_with('/') => {
                Ok(Location::Sqlite(PathBuf::from(path)))
            }
            Some(("sqlite", _)) => Err(
                "names no file: write sqlite:// and its path from the root, such as \
                 sqlite:///var/lib/blockchain-tcpd/users.db"
                    .to_string(),
            ),
            _ => Err(
                "is no URL of a database: write postgres://HOST/DATABASE or sqlite:///PATH"
                    .to_string(),
            ),
        }
    }

    /// Returns where it is without user and parameters, for the log.
    pub fn name(&self) -> String {
        match self {
            Location::Sqlite(path) => format!("sqlite://{}", path.display()),
            Location::Postgres(url) => {
                let (_, rest) = url.split_once("://").unwrap_or(("", url));
                let (hosts, database, _) = parts(rest);
                format!("postgres://{hosts}/{database}")
            }
        }
    }
}

/// Splits what follows `postgres://` into hosts, database and parameters.
fn parts(rest: &str) -> (&str, &str, &str) {
    let (rest, parameters) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
    let hosts = authority
        .rsplit_once('@')
        .map_or(authority, |(_, hosts)| hosts);
    (hosts, database, parameters)
}

fn check_postgres(rest: &str) -> Result<(), String> {
    let (hosts, database, parameters) = parts(rest);
    let parameters: Vec<_> = parameters
        .split('&')
        .filter_map(|one| one.split_once('='))
        .collect();
    let parameter = |name: &str| {
        let mut named = parameters.iter().filter(|(key, _)| *key == name);
        named.next_back().map(|(_, value)| *value)
    };
    let user = rest[..rest.find(['/', '?']).unwrap_or(rest.len())].rsplit_once('@');
    let has_password = user.is_some_and(|(user, _)| user.contains(':'));
    if has_password || parameter("password").is_some() || parameter("sslpassword").is_some() {
        return Err(
            "holds a password, which everybody on this machine could see: put it in the file of --store-password-file".to_string(),
        );
    }
    // A password with a slash or a question mark looks like a port: it must not be shown.
    let port = |host: &str| {
        host.rsplit(']')
            .next()
            .and_then(|host| Some(host.rsplit_once(':')?.1.to_string()))
    };
    let mut ports = hosts.split(',').filter_map(port);
    if ports.any(|port| !port.bytes().all(|byte| byte.is_ascii_digit())) {
        return Err(
            "has a port that is not a number, or holds a password, which belongs in the file of --store-password-file"
                .to_string(),
        );
    }
    if parameter("service").is_some() || parameters.iter().any(|(name, _)| name.contains('%')) {
        return Err("takes its host from elsewhere: name it".to_string());
    }
    if database.is_empty() && parameter("dbname").is_none() {
        return Err(
            "names no database: write it behind the host, postgres://HOST/DATABASE".to_string(),
        );
    }
    if let Some(mode) = parameter("sslmode").filter(|mode| !SSLMODES.contains(mode)) {
        return Err(format!(
            "has sslmode={mode}, which leaves it to the server whether TLS is used: take {}",
            SSLMODES.join(", ")
        ));
    }
    let others = parameter("host").into_iter().chain(parameter("hostaddr"));
    let mut hosts = others.chain([hosts]).flat_map(|hosts| hosts.split(','));
    let remote = hosts.find(|host| !is_local(host));
    if let (Some(host), None) = (remote, parameter("sslmode")) {
        return Err(format!(
            "names {host:?}, which is not on this machine, and not whether TLS is used: add ?sslmode=verify-full (or \
             require, verify-ca, disable)"
        ));
    }
    Ok(())
}

/// Returns whether a host of a URL is this machine: a loopback address or a Unix socket.
fn is_local(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => host.split(':').next().unwrap_or(host),
    };
    let is_socket = name.is_empty()
        || name.starts_with('/')
        || name.starts_with("%2F")
        || name.starts_with("%2f");
    is_socket
        || name.eq_ignore_ascii_case("localhost")
        || name
            .parse()
            .is_ok_and(|address: IpAddr| address.is_loopback())
}

impl Secrets {
    /// Returns the URL for libpq: with the password, the certificates, and deadlines for what is away
    /// or cut off, where it names none.
    pub(crate) fn complete(&self, url: &str) -> Result<String, StoreError> {
        let parameters = url.split_once('?').map_or("", |(_, parameters)| parameters);
        let has = |name: &str| {
            parameters
                .split('&')
                .any(|one| one.split('=').next() == Some(name))
        };
        let version = libpq::version().map_err(|why| StoreError::new(ErrorKind::Away, why))?;
        if version < KNOWS_SYSTEM && parameters.split('&').any(|one| one == "sslrootcert=system") {
            return Err(StoreError::new(
                ErrorKind::Away,
                "sslrootcert=system needs libpq 16 or newer: name a file with --store-ca-file",
            ));
        }
        let mut all = url.to_string();
        let mut add = |name: &str, value: &str| {
            all.push(if all.contains('?') { '&' } else { '?' });
            all.push_str(name);
            all.push('=');
            for byte in value.bytes() {
                match byte.is_ascii_alphanumeric() {
                    true => all.push(byte as char),
                    false => all.push_str(&format!("%{byte:02X}")),
                }
            }
        };
        if let Some(file) = &self.password {
            add("password", &read_line(file)?);
        }
        if let Some(file) = &self.ca {
            add("sslrootcert", &file.to_string_lossy());
        }
        for (name, value) in [
            ("application_name", "blockchain-tcpd"),
            ("connect_timeout", "3"),
            // Kerberos' library ends a program that ends while a thread connects by SIGABRT.
            ("gssencmode", "disable"),
            ("keepalives_idle", "5"),
            ("keepalives_interval", "2"),
            ("keepalives_count", "3"),
            ("tcp_user_timeout", "10000"),
        ] {
            if !has(name) {
                add(name, value);
            }
        }
        Ok(all)
    }

    /// Checks that the files can be read.
    ///
    /// # Errors
    ///
    /// Names the file, and what is wrong with it.
    pub fn check(&self) -> Result<(), StoreError> {
        if let Some(file) = &self.password {
            read_line(file)?;
        }
        if let Some(file) = &self.ca {
            fs::read(file).map_err(|error| unreadable(file, &error.to_string()))?;
        }
        Ok(())
    }
}

/// Reads the only line of a file; blank lines may follow it.
fn read_line(file: &Path) -> Result<String, StoreError> {
    let text = fs::read_to_string(file).map_err(|error| unreadable(file, &error.to_string()))?;
    let mut lines = text.lines();
    match lines.next() {
        Some(line) if !line.is_empty() && lines.all(str::is_empty) => Ok(line.to_string()),
        _ => Err(unreadable(file, "it must hold one line, and does not")),
    }
}

fn unreadable(file: &Path, why: &str) -> StoreError {
    let why = format!("can't read {}: {why}", file.display());
    StoreError::new(ErrorKind::Away, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_both_kinds_are_known() {
        for url in [
            "postgres:///users",
            "postgres://localhost/users",
            "postgresql://me@127.0.0.1:5433,[::1]:5434/users?target_session_attrs=read-write",
            "postgres://db1,db2/users?sslmode=verify-full",
            "postgres:///users?host=/run/postgresql",
            "postgres://%2Frun%2Fpostgresql/users",
            "postgres://192.0.2.1/users?sslmode=disable",
        ] {
            assert_eq!(
                Location::parse(url),
                Ok(Location::Postgres(url.to_string())),
                "{url}"
            );
        }
        let path = PathBuf::from("/var/lib/users.db");
        assert_eq!(
            Location::parse("sqlite:///var/lib/users.db"),
            Ok(Location::Sqlite(path))
        );
    }

    #[test]
    fn what_is_missing_or_unsafe_is_said() {
        for (url, expected) in [
            ("users.db", "is no URL of a database"),
            ("mysql://localhost/users", "is no URL of a database"),
            ("sqlite://users.db", "names no file"),
            ("sqlite:///", "names no file"),
            ("postgres://localhost", "names no database"),
            ("postgres://me:secret@localhost/users", "holds a password"),
            ("postgres://me:secret/x@db1/users", "or holds a password"),
            ("postgres://me:secret?x@db1/users", "or holds a password"),
            (
                "postgres://localhost:x/users",
                "a port that is not a number",
            ),
            (
                "postgres://localhost/users?password=secret",
                "holds a password",
            ),
            (
                "postgres://db1/users",
                "\"db1\", which is not on this machine",
            ),
            (
                "postgres://localhost,192.0.2.1:1/users",
                "\"192.0.2.1:1\", which is not on",
            ),
            (
                "postgres:///users?host=db1",
                "\"db1\", which is not on this machine",
            ),
            (
                "postgres://localhost/users?sslmode=prefer",
                "has sslmode=prefer, which leaves",
            ),
        ] {
            let error = Location::parse(url).expect_err(url);
            assert!(error.contains(expected), "{url}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn names_for_the_log_have_no_user() {
        for (url, name) in [
            (
                "postgres://me@localhost:1/users?sslmode=disable",
                "postgres://localhost:1/users",
            ),
            ("postgres:///users", "postgres:///users"),
            ("sqlite:///a/b.db", "sqlite:///a/b.db"),
        ] {
            assert_eq!(
                Location::parse(url).map(|location| location.name()),
                Ok(name.to_string())
            );
        }
    }
}
