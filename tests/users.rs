//! The users in a store: the same over PostgreSQL, over PgBouncer in front of it, and over a file of SQLite.

mod age;
mod commands;
mod readiness;
mod settings;
mod streams;
mod tls;
mod trouble;

use std::io::{self, BufRead, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;

use crate::support::postgres::{Bouncer, Postgres, Sitting, ask};
use crate::support::{
    CLIENT, Daemon, PATIENCE, Scratch, at_once, clean, installed, wait_until, words,
};

/// A user as it is inserted.
pub struct User {
    id: &'static str,
    name: Option<&'static str>,
    email: Option<&'static str>,
    members: &'static str,
    created_at: i64,
    updated_at: i64,
}

/// Text as a literal of SQL.
fn literal(text: Option<&str>) -> String {
    let quoted = |text: &str| format!("'{}'", text.replace('\'', "''"));
    text.map_or("NULL".to_string(), quoted)
}

impl User {
    /// The statement that inserts it.
    fn insert(&self) -> String {
        let [id, name, email] = [Some(self.id), self.name, self.email].map(literal);
        let members = literal(Some(self.members));
        let (created, updated) = (self.created_at, self.updated_at);
        format!(
            "INSERT INTO users VALUES ({id}, {name}, {email}, {members}, {created}, {updated});\n"
        )
    }

    /// The JSON in which it is shown.
    fn json(&self) -> String {
        let quoted = |text| serde_json::to_string(&text).expect("a text");
        let [id, name, email] = [Some(self.id), self.name, self.email].map(quoted);
        let members = self
            .members
            .strip_prefix('{')
            .and_then(|rest| rest.strip_suffix('}'));
        let members = members.expect("an object").trim();
        let comma = if members.is_empty() { "" } else { "," };
        let (created, updated) = (self.created_at, self.updated_at);
        format!(
            r#"{{"id":{id},"name":{name},"email":{email}{comma}{members},"created_at":{created},"updated_at":{updated}}}"#
        )
    }
}

/// JSON as a line has it: printable ASCII.
fn on_a_line(json: &str) -> String {
    let escaped = |unit: u16| match u8::try_from(unit) {
        // Between two parts of it: a text has none.
        Ok(b'\n' | b'\r' | b'\t') => " ".to_string(),
        Ok(byte @ b' '..=b'~') => char::from(byte).to_string(),
        _ => format!("\\u{unit:04x}"),
    };
    json.encode_utf16().map(escaped).collect()
}

/// An id as a word of a line.
fn word(id: &str) -> String {
    let json = serde_json::to_string(id).expect("a text");
    on_a_line(&json).replace(' ', "\\u0020")
}

/// A kind of store.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    Postgres,
    /// The same through PgBouncer.
    Bouncer,
    Sqlite,
}

/// A store, with no table yet. Dropped, it is gone.
pub struct Database {
    pub kind: Kind,
    bouncer: Option<Bouncer>,
    postgres: Option<Postgres>,
    scratch: Scratch,
}

impl Database {
    /// Starts one. Without its programs the test is to return.
    #[must_use]
    #[track_caller]
    pub fn start(kind: Kind) -> Option<Self> {
        let postgres = match kind {
            Kind::Sqlite => None,
            _ => Some(Postgres::start(&[])?),
        };
        let bouncer = match (kind, &postgres) {
            (Kind::Bouncer, Some(postgres)) => Some(Bouncer::start(postgres)?),
            _ => None,
        };
        if kind == Kind::Sqlite && !installed("sqlite3") {
            return None;
        }
        Some(Database {
            kind,
            bouncer,
            postgres,
            scratch: Scratch::new(),
        })
    }

    /// Has `test` done with a store of each of these kinds, at the same time.
    pub fn each(kinds: &[Kind], test: impl Fn(&Database) + Sync) {
        at_once(kinds, |kind| {
            if let Some(database) = Database::start(*kind) {
                test(&database);
                println!("{kind:?}: all well");
            }
        });
    }

    /// What `--store` takes.
    pub fn url(&self) -> String {
        match (&self.bouncer, &self.postgres) {
            (Some(bouncer), _) => bouncer.url(),
            (None, Some(postgres)) => postgres.url(),
            (None, None) => format!("sqlite://{}", self.file()),
        }
    }

    /// The file of SQLite.
    pub fn file(&self) -> String {
        self.scratch.path().join("users.db").display().to_string()
    }

    /// The PostgreSQL.
    pub fn postgres(&self) -> &Postgres {
        self.postgres.as_ref().expect("a PostgreSQL")
    }

    fn sqlite(&self) -> Command {
        sqlite(&self.file())
    }

    /// Has it do this, which must go well. Returns what it prints.
    #[track_caller]
    pub fn sql(&self, statements: &str) -> String {
        match &self.postgres {
            Some(postgres) => postgres.sql(statements),
            None => ask(self.sqlite(), statements),
        }
    }

    /// A session that stays open after these statements.
    pub fn session(&self, statements: &str) -> Sitting {
        match &self.postgres {
            Some(postgres) => postgres.session(statements),
            None => Sitting::open(self.sqlite(), statements, ".system echo"),
        }
    }

    /// Inserts this number of users, from the id `00000001` on.
    pub fn fill(&self, users: usize) {
        let row = |number: &str, padded: &str| {
            format!(
                "INSERT INTO users SELECT {padded}, 'Name ' || {number}, {number} || '@example.org', '{{\"group\":7,\"tags\":[\"a\",\"b\"]}}', {number}, 0"
            )
        };
        self.sql(&match self.kind {
            Kind::Sqlite => format!(
                "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {users}) {} FROM numbers",
                row("n", "printf('%08d', n)")
            ),
            _ => format!(
                "{} FROM generate_series(1, {users}) AS n",
                row("n", "lpad(n::text, 8, '0')")
            ),
        });
    }
}

/// The command line of SQLite for this file, which waits for others.
fn sqlite(file: &str) -> Command {
    let mut sqlite = clean("sqlite3");
    sqlite.args(["-batch", "-bail", "-cmd", ".timeout 10000", file]);
    sqlite
}

/// A daemon with users that speaks all protocols.
pub struct Server {
    pub daemon: Daemon,
    addresses: Vec<(String, SocketAddr)>,
}

/// The schemes of all protocols.
const SCHEMES: [&str; 4] = ["tcp", "protobuf", "http", "grpc"];

impl Server {
    /// Starts it with this store, and these arguments besides.
    pub fn start(store: &str, arguments: &str) -> Self {
        let daemon = Daemon::start(Self::arguments(store, arguments));
        Server::of(daemon)
    }

    fn arguments(store: &str, arguments: &str) -> Vec<String> {
        let listen = SCHEMES.map(|scheme| format!("{scheme}://127.0.0.1:0"));
        let own = format!("--listen {} --commands server,users", listen.join(","));
        let mut all = words(&own);
        all.extend(["--store".to_string(), store.to_string()]);
        all.extend(words(arguments));
        all
    }

    fn of(daemon: Daemon) -> Self {
        let listen = daemon.ready("listen");
        let address = |listen: &str| {
            let (scheme, address) = listen.split_once("://").unwrap_or(("tcp", listen));
            (scheme.to_string(), address.parse().expect("an address"))
        };
        let addresses = listen.split(',').map(address).collect();
        Server { daemon, addresses }
    }

    /// Its address for this protocol.
    pub fn address(&self, scheme: &str) -> SocketAddr {
        let mut addresses = self.addresses.iter();
        let found = addresses.find(|(known, _)| known == scheme);
        found.expect("it speaks that").1
    }

    /// What it answers to a line.
    pub fn ask(&self, line: &str) -> String {
        self.daemon.connect().ask(line)
    }

    /// Waits until it answers a line so.
    pub fn wait_for(&self, line: &str, answer: &str) {
        let mut last = String::new();
        wait_until(&format!("{line} is answered {answer:?}"), || {
            last = self.ask(line);
            last == answer
        });
    }

    /// What the client prints that asks it this by this protocol, or what it says on stderr.
    pub fn ask_by(&self, scheme: &str, request: &str) -> Result<String, String> {
        let mut client = Command::new(CLIENT.as_str());
        client.args(["--server", &format!("{scheme}://{}", self.address(scheme))]);
        let output = client.args(request.split(' ')).output().expect("it runs");
        let [said, failed] =
            [output.stdout, output.stderr].map(|text| String::from_utf8(text).expect("UTF-8"));
        match output.status.success() {
            true => Ok(said.trim_end().to_string()),
            false => Err(failed),
        }
    }

    /// The body of the response to this call of JSON-RPC.
    pub fn call(&self, body: &str) -> String {
        let mut client = HttpClient::connect(self.address("http"));
        client.post(body);
        client.body().expect("a whole body")
    }
}

/// A call of `get_users` for all users, as documents show it.
const ALL_USERS: &str = r#"{"jsonrpc":"2.0","id":1,"method":"get_users","params":[]}"#;

/// A client of HTTP that reads bodies in chunks.
pub struct HttpClient(BufReader<TcpStream>);

impl HttpClient {
    fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("it accepts");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        HttpClient(BufReader::new(stream))
    }

    fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let sent = self.0.get_mut().write_all(bytes.as_ref());
        sent.expect("the daemon takes it");
    }

    fn post(&mut self, body: &str) {
        self.send(post(body));
    }

    /// Waits for more than a head: for users, which the database has sent.
    fn wait_for_users(&self) {
        let mut some = [0; 4096];
        wait_until("a stream has begun", || {
            self.0.get_ref().peek(&mut some).expect("a socket") == some.len()
        });
    }

    /// Reads a line without its end; nothing at the end of the connection.
    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let read = self.0.read_line(&mut line).expect("in time");
        (read > 0).then(|| line.trim_end().to_string())
    }

    /// Reads a head.
    fn head(&mut self) -> Option<String> {
        let mut head = self.line()?;
        loop {
            match self.line()?.as_str() {
                "" => return Some(head),
                field => head = format!("{head}\n{field}"),
            }
        }
    }

    /// Reads a head and then a body, whose parts it passes on. Returns the head, and whether the body is whole: one of no length
    /// is never known to be.
    fn response(&mut self, mut each: impl FnMut(&[u8])) -> Option<(String, bool)> {
        let head = self.head()?;
        let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name));
        if let Some(length) = field("Content-Length: ") {
            let is_whole = self.copy(length.parse().expect("a number"), &mut each);
            return Some((head, is_whole));
        }
        if field("Transfer-Encoding: chunked").is_none() {
            self.copy(u64::MAX, &mut each);
            return Some((head, false));
        }
        loop {
            let length = match self.line() {
                None => return Some((head, false)),
                Some(line) => u64::from_str_radix(&line, 16).expect("a length"),
            };
            if length == 0 {
                let is_whole = self.line().as_deref() == Some("");
                return Some((head, is_whole));
            }
            if !self.copy(length, &mut each) || self.line().as_deref() != Some("") {
                return Some((head, false));
            }
        }
    }

    /// Passes `length` bytes on. Returns whether all came.
    fn copy(&mut self, mut length: u64, each: &mut impl FnMut(&[u8])) -> bool {
        while length > 0 {
            let part = match self.0.fill_buf() {
                // A machine or a process that was frozen for a moment goes on.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                part => part.expect("in time"),
            };
            if part.is_empty() {
                return false;
            }
            let taken = part
                .len()
                .min(usize::try_from(length).unwrap_or(usize::MAX));
            each(&part[..taken]);
            self.0.consume(taken);
            length -= taken as u64;
        }
        true
    }

    /// The body of a response as a text, and whether it is whole.
    fn text(&mut self) -> (String, bool) {
        let mut body = Vec::new();
        let read = self.response(|part| body.extend_from_slice(part));
        let (_, is_whole) = read.expect("a response");
        (String::from_utf8(body).expect("UTF-8"), is_whole)
    }

    /// A whole body, or as much as came of it.
    fn body(&mut self) -> Result<String, String> {
        match self.text() {
            (body, true) => Ok(body),
            (body, false) => Err(body),
        }
    }
}

/// A request with this body.
fn post(body: &str) -> String {
    let length = body.len();
    format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{body}")
}

/// The ids in a JSON array of users, of a whole answer of JSON-RPC.
fn ids(answer: &str) -> Vec<String> {
    let answer: serde_json::Value = serde_json::from_str(answer).expect("JSON");
    let users = answer["result"].as_array().expect("an array");
    let id = |user: &serde_json::Value| user["id"].as_str().expect("an id").to_string();
    users.iter().map(id).collect()
}

/// The ids that [`Database::fill`] gives.
fn numbered(numbers: std::ops::RangeInclusive<usize>) -> Vec<String> {
    numbers.map(|number| format!("{number:08}")).collect()
}
