//! JSON-RPC over HTTP: what is answered, what HTTP clients may do, handover and drain.

use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use shared::command::{CommandClass, CommandSet, Permit, Value, sets};

use crate::handover::replace;
use crate::support::kernel::{local_server, own_address, own_command};
use crate::support::tables::{bytes, lines};
use crate::support::watch::repeat;
use crate::support::*;

/// The call that stands for `CALL` in http.txt.
const CALL: &str = r#"{"method":"why","id":1}"#;

const ID: &str = "6f0c2a52-5f0e-4b7e-9a35-0c5f7f5a3c1e";

/// A daemon that speaks JSON-RPC on its second address.
struct JsonRpc {
    daemon: Daemon,
    address: SocketAddr,
}

impl JsonRpc {
    fn start(arguments: &[&str]) -> Self {
        let id = ["--server-id", ID];
        let (daemon, address) = Daemon::speaking("http", &[&id, arguments].concat());
        JsonRpc { daemon, address }
    }

    fn connect(&self) -> HttpClient {
        HttpClient(Client::connect(self.address).expect("it accepts"))
    }

    /// Sends these bytes and returns all responses, until the server closes.
    fn exchange(&self, sent: &[u8]) -> Vec<Response> {
        let mut client = self.connect();
        // It may close before it has read all.
        let _ = client.0.socket().write_all(sent);
        std::iter::from_fn(|| client.response()).collect()
    }
}

/// A client that posts bodies and reads responses.
struct HttpClient(Client);

struct Response {
    status: u16,
    head: String,
    body: String,
}

impl HttpClient {
    fn post(&mut self, body: impl AsRef<[u8]>) {
        self.0.send(post(body.as_ref(), ""));
    }

    /// Posts a body and waits for the response, where the server may close.
    fn try_ask(&mut self, body: &str) -> Option<Response> {
        let sent = self.0.socket().write_all(&post(body.as_bytes(), ""));
        sent.ok().and_then(|()| self.response())
    }

    /// Posts a body and returns that of the response.
    fn ask(&mut self, body: &str) -> String {
        let response = self.try_ask(body).expect("a response");
        assert_eq!(response.status, 200, "{}", response.body);
        response.body
    }

    /// Reads a response, or nothing at the end of the connection.
    fn response(&mut self) -> Option<Response> {
        let mut head = self.0.line()?;
        let status = head.strip_prefix("HTTP/1.1 ").expect("a status line");
        let status = status[..3].parse().expect("a number");
        loop {
            match self.0.line().expect("a field").trim_end() {
                "" => break,
                field => head = format!("{head}\n{field}"),
            }
        }
        let mut response = Response {
            status,
            head,
            body: String::new(),
        };
        if let Some(length) = response.field("Content-Length") {
            let length = length.parse().expect("a number");
            let body = self.0.take(length);
            response.body = String::from_utf8(body).expect("UTF-8");
        }
        Some(response)
    }
}

impl Response {
    fn field(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines();
        lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    fn closes(&self) -> bool {
        self.field("Connection") == Some("close")
    }
}

/// A request with this body, and these further fields.
fn post(body: &[u8], fields: &str) -> Vec<u8> {
    let head = format!(
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n{fields}\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// A call of this length.
fn padded(length: usize) -> String {
    CALL.to_string() + &" ".repeat(length - CALL.len())
}

/// The rows `> BODY` and `< ANSWER` of a table.
fn calls() -> impl Iterator<Item = (&'static str, &'static str)> {
    let mut lines = lines(include_str!("jsonrpc/calls.txt"));
    std::iter::from_fn(move || {
        let call = lines.next()?.strip_prefix("> ").expect("> BODY");
        let answer = lines.next()?.strip_prefix("< ").expect("< ANSWER");
        Some((call, answer))
    })
}

fn check_answer(sent: &str, expected: &str, response: &Response) {
    let body = &response.body;
    if expected == "-" {
        assert_eq!((response.status, &**body), (204, ""), "{sent}");
        assert_eq!(response.field("Content-Length"), None, "{sent}");
        return;
    }
    match expected.strip_suffix('…') {
        Some(beginning) => assert!(body.starts_with(beginning), "{sent}: {body}"),
        None => assert_eq!(body, expected, "{sent}"),
    }
    assert_eq!(response.status, 200, "{sent}");
    assert_eq!(response.field("Content-Type"), Some("application/json"));
    assert!(!response.closes(), "{sent}");
}

/// - A method is the name of a command in small letters; `HELP` is one, `QUIT` and `EXIT` are not.
/// - The params are an array in the order of the command's arguments, or an object with their names in small letters, where an
///   argument that is repeated is an array.
/// - No params, null, `[]` and `{}` are the same.
/// - A whole number of 64 bits is exact in both directions; one with a fraction or an exponent, such as `1.0` or `1e3`, is
///   refused.
/// - A result is a number, an array of numbers, a string, a user or an array of users.
/// - An id is a string, a number or null, and comes back byte for byte.
/// - A call without an id is a notification: it is executed and gets no answer, even if it has an error; what is no call is
///   answered with the id null.
/// - A batch is an array of 1 to 1,000 calls, answered by an array in the same order.
/// - Members that the specification doesn't name mean nothing; one that it names and that comes twice makes a call invalid.
/// - A call whose `jsonrpc` is `"1.0"`, `"1.1"`, null or missing is answered with both a `result` and an `error`, one of them null; the
///   id null makes it a notification, too.
/// - An error has a `code`, the sentence of the line protocol as its `message`, and the word of the line protocol as its `data`.
/// - `-32600`: it is JSON but no call, or no batch.
/// - `-32601`: there is no such method.
/// - `-32602`: the params are not those that the command takes, or it has no value for them.
#[test]
fn each_call_has_its_answer() {
    let server = JsonRpc::start(&["--max-clients", "4"]);
    let mut client = server.connect();
    for (call, expected) in calls() {
        client.post(call);
        let response = client.response().expect("it goes on");
        check_answer(call, expected, &response);
    }
    // However the bytes are cut, and how many are sent at once.
    for piece in [1, 7, 1024, usize::MAX] {
        let sent: Vec<u8> = calls()
            .flat_map(|(call, _)| post(call.as_bytes(), ""))
            .collect();
        let writing = client.0.socket().try_clone().expect("a socket");
        let writer = thread::spawn(move || {
            for piece in sent.chunks(piece) {
                (&writing).write_all(piece).expect("it reads");
            }
        });
        for (call, expected) in calls() {
            check_answer(call, expected, &client.response().expect("it goes on"));
        }
        writer.join().expect("all is sent");
    }
    let log = server.daemon.stop();
    assert!(!log.contains("ERROR"), "{log}");
}

/// - A body is posted to `/` or `/rpc`, as `application/json`, without a type, or as `application/x-www-form-urlencoded`, which
///   `curl -d` says.
/// - The answer to a posted body has the status 200, also if it is an error, and exactly the type `application/json`; if there
///   is nothing to answer, the status is 204.
/// - Other paths are answered 404, other methods 405, other types and codings of the content 415, other expectations than
///   `100-continue` 417.
/// - A body has a `Content-Length` or is chunked, and is at most 1,048,576 bytes long; a longer one is answered 413, and then the
///   server closes.
/// - A head has at most 16,384 bytes and 64 fields; a longer one is answered 431, and then the server closes.
/// - A connection stays open unless the request says `Connection: close`; with HTTP/1.0, if it says `Connection: keep-alive`.
/// - Any number of requests may be sent at once; they are answered in their order.
/// - What is not HTTP/1.1 or HTTP/1.0, or what a proxy might understand differently, is answered 400, 501 or 505, and then the
///   server closes.
#[test]
fn each_request_of_http_has_its_status() {
    let server = JsonRpc::start(&["--max-clients", "4"]);
    for row in lines(include_str!("jsonrpc/http.txt")) {
        let (sent, expected) = row.rsplit_once(" | ").expect("two cells");
        let (statuses, closes) = match expected.strip_suffix(" closes") {
            Some(statuses) => (statuses, true),
            None => (expected, false),
        };
        let mut sent = bytes(sent);
        while let Some(at) = sent.windows(4).position(|word| word == b"CALL") {
            sent.splice(at..at + 4, CALL.bytes());
        }
        sent.extend(post(CALL.as_bytes(), "Connection: close\r\n"));
        let mut answered = server.exchange(&sent);
        if !closes {
            let last = answered.pop().expect("the last");
            assert!(last.status == 200 && last.closes(), "{row}: {}", last.head);
        }
        let found: Vec<String> = answered
            .iter()
            .map(|response| response.status.to_string())
            .collect();
        assert_eq!(found.join(" "), statuses, "{row}");
        let last = answered.last().expect("one");
        assert_eq!(last.closes(), closes, "{row}");
        let allowed = (last.status == 405).then_some("POST");
        assert_eq!(last.field("Allow"), allowed, "{row}");
        assert!(
            last.field("Date")
                .is_some_and(|date| date.ends_with(" GMT")),
            "{row}"
        );
    }
    assert_eq!(
        server.connect().ask(CALL),
        r#"{"result":42,"error":null,"id":1}"#
    );
}

/// - `Expect: 100-continue` is answered 100, unless the request is refused by its head, or some of the body has arrived.
#[test]
fn the_body_is_asked_for_where_the_client_waits() {
    let server = JsonRpc::start(&["--max-clients", "4"]);
    let mut client = server.connect();
    for length in [CALL.len(), 5000] {
        let body = padded(length);
        let request = post(body.as_bytes(), "Expect: 100-continue\r\n");
        let (head, body) = request.split_at(request.len() - length);
        client.0.send(head);
        assert_eq!(client.response().expect("an answer").status, 100);
        client.0.send(body);
        assert_eq!(client.response().expect("an answer").status, 200);
    }
}

/// - `-32700`: the body is not JSON in UTF-8, or nests arrays and objects more than 128 deep.
#[test]
fn batches_and_bodies_have_their_limits() {
    let server = JsonRpc::start(&["--max-clients", "4"]);
    let mut client = server.connect();
    let batch = |calls: usize| format!("[{}]", vec![CALL; calls].join(","));
    let answer = r#"{"result":42,"error":null,"id":1}"#;
    let answers = format!("[{}]", vec![answer; 1000].join(","));
    assert_eq!(client.ask(&batch(1000)), answers);
    assert_contains(
        &client.ask(&batch(1001)),
        "-32600,\"message\":\"a batch has at most 1000 calls\"",
    );
    let nested = |depth: usize| {
        let (open, close) = ("[".repeat(depth), "]".repeat(depth));
        format!("{{\"method\":\"why\",\"id\":1,\"x\":{open}{close}}}")
    };
    assert_eq!(client.ask(&nested(127)), answer);
    assert_contains(
        &client.ask(&nested(128)),
        "-32700,\"message\":\"the body is nested too deeply\"",
    );
    assert_contains(&client.ask(&"[".repeat(1024 * 1024)), "-32700,");
    client.post(b"{\"method\":\"why\",\"id\":\"\xff\"}");
    let refused = client.response().expect("an answer").body;
    assert_contains(&refused, "-32700,\"message\":\"the body is not UTF-8\"");
    let primes = format!(
        "{{\"method\":\"np\",\"params\":[{}1],\"id\":1}}",
        "1,".repeat(1024)
    );
    assert_contains(
        &client.ask(&primes),
        "-32602,\"message\":\"a call takes at most 1024 arguments\"",
    );
}

/// - A client that is not admitted is answered 503 with `Retry-After`, and then the server closes.
#[test]
fn a_client_that_finds_no_room_may_try_again() {
    let server = JsonRpc::start(&["--max-clients", "1", "--queue", "0"]);
    let mut client = server.connect();
    assert_eq!(
        client.ask(r#"{"jsonrpc":"2.0","method":"who","id":1}"#),
        r#"{"jsonrpc":"2.0","result":1,"id":1}"#
    );
    let refused = server.connect().response().expect("an answer");
    assert_eq!((refused.status, refused.closes()), (503, true));
    assert_eq!(refused.field("Retry-After"), Some("1"));
    let busy = r#"{"jsonrpc":"2.0","error":{"code":-32001,"message":"full with 1 clients, try again later","data":"BUSY"},"id":null}"#;
    assert_eq!(refused.body, busy);
}

/// The permits that `TAKE` has taken, which are all that there are.
static TAKEN: Mutex<Vec<Permit>> = Mutex::new(Vec::new());

const OWN: CommandSet = &[
    own_command("TAKE", CommandClass::Compute, |context, call| {
        while let Ok(permit) = context.limiter.acquire(call, Duration::ZERO) {
            TAKEN.lock().unwrap().push(permit);
        }
        Ok(Value::from("TAKEN"))
    }),
    own_command("FAIL", CommandClass::Query, |_, _| panic!("as it should")),
];

/// - `-32603`: the server failed while it executed a call; the status is 500, and then the server closes.
/// - `-32000`, `-32001`, `-32002`, `-32003`, `-32004`: the errors `UNAVAILABLE`, `BUSY`, `TIMEOUT`, `TOOLONG` and `NOTFOUND`.
#[test]
fn errors_of_the_server_have_codes_of_their_own() {
    let arguments = ["--listen", "http://127.0.0.1:0", "--max-clients", "4"];
    let server = local_server(&arguments, &[sets::server::SET, sets::calc::SET, OWN]);
    let connect = || HttpClient(Client::connect(server.addresses()[1]).expect("it accepts"));
    let mut client = connect();
    let call = |method| format!("{{\"jsonrpc\":\"2.0\",\"method\":\"{method}\",\"id\":1}}");
    assert_contains(&client.ask(&call("take")), "TAKEN");
    let np = r#"{"jsonrpc":"2.0","method":"np","params":[1],"id":1}"#;
    let error = r#""error":{"code":-32000,"message":"too many clients compute at once, try again later","data":"UNAVAILABLE"},"id":1}"#;
    assert_contains(&client.ask(np), error);
    // What was answered before the failure arrives, and nothing of the batch that fails.
    let batch = format!("[{CALL},{}]", call("fail"));
    client
        .0
        .send([post(CALL.as_bytes(), ""), post(batch.as_bytes(), "")].concat());
    assert_eq!(client.response().expect("an answer").body.len(), 33);
    let failed = client.response().expect("an answer");
    assert_eq!((failed.status, failed.closes()), (500, true));
    assert!(
        failed
            .body
            .starts_with(r#"{"jsonrpc":"2.0","error":{"code":-32603,"#)
    );
    assert!(failed.body.ends_with(r#""data":"INTERNAL"},"id":null}"#));
    assert!(client.response().is_none());
    // The other two close the connection, too.
    let mut client = connect();
    client
        .0
        .send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1048577\r\n\r\n");
    assert_contains(&client.response().expect("an answer").body, "-32003,");
}

/// - A connection that is idle for too long is closed without an answer; a request that has only begun by then is answered 408.
#[test]
fn an_idle_client_is_closed_without_words_and_a_begun_request_is_late() {
    let server = JsonRpc::start(&["--max-clients", "4", "--idle-timeout", "200ms"]);
    let mut idle = server.connect();
    assert_eq!(idle.ask(CALL).len(), 33);
    assert!(idle.response().is_none());
    let beginnings = [
        b"POST / HTTP/1.1\r\nHo".to_vec(),
        post(&[b' '; 5000], "")[..3000].to_vec(),
    ];
    for beginning in beginnings {
        let mut late = server.connect();
        late.0.send(beginning);
        let response = late.response().expect("an answer");
        assert_eq!((response.status, response.closes()), (408, true));
        assert_contains(&response.body, "-32002,");
        assert!(late.response().is_none());
    }
}

/// - When the server stops, its last answer in a connection says `Connection: close`, unless another request may have arrived.
#[test]
fn the_last_answer_of_a_server_that_drains_says_so() {
    let server = JsonRpc::start(&["--max-clients", "4", "--drain-notice", "1h"]);
    let [mut asking, mut old] = [(); 2].map(|()| server.connect());
    for client in [&mut asking, &mut old] {
        assert_eq!(client.ask(CALL).len(), 33);
    }
    server.daemon.signal("TERM");
    server.daemon.log().wait_for("draining:");
    asking.0.send(post(CALL.as_bytes(), "").repeat(2));
    assert!(!asking.response().expect("an answer").closes());
    let last = asking.response().expect("an answer");
    assert!(last.closes() && last.body.len() == 33, "{}", last.head);
    assert!(asking.response().is_none());
    let request = post(CALL.as_bytes(), "Connection: keep-alive\r\n");
    let request = String::from_utf8(request).expect("ASCII");
    old.0.send(request.replace("HTTP/1.1", "HTTP/1.0"));
    let last = old.response().expect("an answer");
    let says = last.head.matches("Connection: ").count();
    assert!(last.closes() && says == 1, "{}", last.head);
}

/// - When the server stops, idle connections are closed without an answer; a request that has only begun is answered 503.
#[test]
fn a_drain_says_nothing_to_the_idle_and_refuses_what_has_only_begun() {
    let mut server = JsonRpc::start(&["--max-clients", "4"]);
    let [mut idle, mut half] = [(); 2].map(|()| server.connect());
    for client in [&mut idle, &mut half] {
        assert_eq!(client.ask(CALL).len(), 33);
    }
    half.0.send(&post(CALL.as_bytes(), "")[..30]);
    server.daemon.signal("TERM");
    assert!(idle.response().is_none());
    let refused = half.response().expect("an answer");
    assert_eq!((refused.status, refused.closes()), (503, true));
    assert_eq!(refused.field("Retry-After"), Some("1"));
    assert!(server.daemon.wait().success());
}

/// Keep-alive connections move; half a request does, too.
/// - When another process of the server takes over, clients of JSON-RPC notice nothing, also within a request.
#[test]
fn no_call_fails_while_new_programs_take_over() {
    let server = JsonRpc::start(&["--max-clients", "24"]);
    let clients = (0..16).map(|number| {
        let mut client = server.connect();
        client.ask(CALL);
        // Some calls are batches that compute, some bodies are long.
        let body = move |round: usize| match (number + round) % 4 {
            0 => format!("[{CALL},{{\"jsonrpc\":\"2.0\",\"method\":\"np\",\"params\":[{}],\"id\":{round}}}]", number + 1),
            1 => format!("{{\"jsonrpc\":\"2.0\",\"method\":\"add\",\"params\":[{number},{round}],\"id\":1}}{:5000}", ""),
            _ => format!("{{\"jsonrpc\":\"2.0\",\"method\":\"add\",\"params\":[{number},{round}],\"id\":1}}"),
        };
        repeat((client, 0, 0), move |(client, round, computed)| {
            let answer = client.ask(&body(*round));
            let sum = number + *round;
            match sum % 4 {
                0 => {
                    let np = |result: &str| answer.ends_with(&format!(",{result},\"id\":{round}}}]"));
                    let is_right = np(&format!("{{\"jsonrpc\":\"2.0\",\"result\":[{}]", PRIMES[number]));
                    // On a busy machine it may get no permit in time.
                    assert!(is_right || answer.contains("\"UNAVAILABLE\""), "{answer}");
                    assert!(answer.starts_with("[{\"result\":42,"), "{answer}");
                    *computed += usize::from(is_right);
                }
                _ => assert_eq!(answer, format!("{{\"jsonrpc\":\"2.0\",\"result\":{sum},\"id\":1}}")),
            }
            *round += 1;
        })
    });
    let clients: Vec<_> = clients.collect();
    let body = padded(5000);
    let request = post(body.as_bytes(), "Expect: 100-continue\r\n");
    let mut half = server.connect();
    let mut sent = request.len() - body.len();
    half.0.send(&request[..sent]);
    assert_eq!(half.response().expect("an answer").status, 100);
    for _ in 0..20 {
        let more = sent + 200;
        half.0.send(&request[sent..more]);
        sent = more;
        replace(&server.daemon);
    }
    half.0.send(&request[sent..]);
    assert_eq!(half.response().expect("an answer").body.len(), 33);
    let mut all = 0;
    for (mut client, rounds, computed) in clients.into_iter().map(|client| client.end()) {
        assert!(rounds > 0);
        all += computed;
        client.0.shutdown();
        assert!(client.response().is_none(), "nothing comes twice");
    }
    assert!(all > 0, "no prime was right");
    let log = server.daemon.stop();
    assert!(!log.contains("ERROR"), "{log}");
}

/// The first of them, which the clients ask for.
const PRIMES: [u64; 16] = [2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53];

/// - While unfinished requests take 64 MiB, further long ones are answered 503 with `Retry-After`, and then the server closes.
#[test]
fn long_requests_take_a_bounded_amount_of_memory() {
    let server = JsonRpc::start(&["--max-clients", "128"]);
    let request = post(padded(1024 * 1024).as_bytes(), "");
    let mut clients: Vec<HttpClient> = (0..128).map(|_| server.connect()).collect();
    for client in &mut clients {
        // It may close before it has read all but the last byte.
        let _ = client.0.socket().write_all(&request[..request.len() - 1]);
        client.0.socket().set_nonblocking(true).expect("a socket");
    }
    let is_answered = |client: &&mut HttpClient| client.0.socket().peek(&mut [0]).is_ok();
    // More are refused if many of the 64 arrive at once: a body that grows takes up to twice its size.
    wait_until("at least half are refused", || {
        clients.iter_mut().filter(is_answered).count() >= 64
    });
    let refused = clients.iter_mut().find(is_answered).expect("64 are");
    refused.0.socket().set_nonblocking(false).expect("a socket");
    let response = refused.response().expect("an answer");
    assert_eq!(
        (response.status, response.field("Retry-After")),
        (503, Some("1"))
    );
    let memory = server.daemon.status_number("VmRSS");
    assert!(memory < 100_000, "{memory} KiB");
    drop(clients);
    wait_until("there is room again", || {
        let answered = server.connect().try_ask(&padded(1024 * 1024));
        answered.is_some_and(|response| response.status == 200)
    });
}

/// - The calls of a batch that compute share half a second: those that come too late have the error `UNAVAILABLE`.
#[test]
fn a_batch_that_computes_keeps_a_worker_for_half_a_second() {
    let server = JsonRpc::start(&["--http", "127.0.0.1:0"]);
    let places = vec!["99"; 1000].join(",");
    let call = format!("{{\"jsonrpc\":\"2.0\",\"method\":\"np\",\"params\":[{places}],\"id\":1}}");
    let batch = format!("[{}]", vec![&*call; 300].join(","));
    let mut client = server.connect();
    let asking = thread::spawn(move || client.ask(&batch));
    while !asking.is_finished() {
        assert_eq!(http::get(server.daemon.http(), "/livez").status, 200);
    }
    let answer = asking.join().expect("it asks");
    assert!(answer.contains("\"result\":[523,523,") && answer.contains("\"UNAVAILABLE\""));
    assert_eq!(answer.matches("\"id\":1}").count(), 300);
}

#[test]
fn an_expectation_that_is_not_met_is_refused_before_the_body() {
    let server = JsonRpc::start(&[]);
    let mut client = server.connect();
    client
        .0
        .send("POST / HTTP/1.1\r\nHost: a\r\nExpect: x\r\nContent-Length: 23\r\n\r\n");
    assert_eq!(client.response().expect("an answer").status, 417);
    assert!(client.response().is_none(), "it closes");
}

#[test]
fn systemd_may_pass_its_socket() {
    needs!("systemd-socket-activate");
    let (line, address) = (own_address(), own_address());
    let mut command = clean("systemd-socket-activate");
    command.args([line, address].map(|address| format!("--listen={address}")));
    command
        .args(["--fdname=tcp:http"])
        .arg(program().get_program());
    let ask = thread::spawn(move || {
        wait_until("it listens", || TcpStream::connect(address).is_ok());
        HttpClient(Client::connect(address).expect("it accepts")).ask(CALL)
    });
    let _daemon = Daemon::run(command);
    assert_eq!(ask.join().expect("it asks").len(), 33);
}

#[test]
fn a_thousand_calls_at_once_are_answered() {
    let server = JsonRpc::start(&["--max-clients", "1000", "--queue", "64"]);
    let mut clients: Vec<HttpClient> = (0..1000).map(|_| server.connect()).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        client.post(format!(
            "{{\"jsonrpc\":\"2.0\",\"method\":\"add\",\"params\":[{number},1],\"id\":{number}}}"
        ));
    }
    for (number, client) in clients.iter_mut().enumerate() {
        let answer = format!(
            "{{\"jsonrpc\":\"2.0\",\"result\":{},\"id\":{number}}}",
            number + 1
        );
        assert_eq!(client.response().expect("an answer").body, answer);
    }
}

/// The commands that the documents show, for this server's address.
#[test]
fn the_documented_calls_print_what_they_show() {
    needs!("curl");
    let server = JsonRpc::start(&["--max-clients", "4"]);
    let mut shown = 0;
    for document in [
        include_str!("../README.md"),
        include_str!("../docs/protocol.md"),
    ] {
        for example in crate::project::examples(document) {
            if example.command.contains("8080") {
                let command = example
                    .command
                    .replace("127.0.0.1:8080", &server.address.to_string());
                let output = Command::new("bash")
                    .args(["-c", &command])
                    .output()
                    .expect("bash runs");
                let printed = String::from_utf8(output.stdout).expect("UTF-8");
                assert_eq!(printed.trim_end(), example.printed.trim_end(), "{command}");
                shown += 1;
            }
        }
    }
    assert!(shown >= 2);
}

#[test]
fn curl_sends_long_bodies_without_a_wait() {
    needs!("curl");
    let server = JsonRpc::start(&["--max-clients", "4"]);
    let scratch = Scratch::new();
    let curl = |length: usize| {
        let body = scratch.path().join("body");
        std::fs::write(&body, padded(length)).expect("written");
        let mut curl = clean("curl");
        curl.args(["-s", "-w", " %{http_code} %{time_total}", "--data-binary"]);
        curl.arg(format!("@{}", body.display()))
            .arg(format!("http://{}", server.address));
        let output = curl.output().expect("it runs");
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let answer = curl(1024 * 1024);
    assert!(
        answer.starts_with(r#"{"result":42,"error":null,"id":1} 200 0."#),
        "{answer}"
    );
    assert_contains(
        &curl(1024 * 1024 + 1),
        "\"data\":\"TOOLONG\"},\"id\":null} 413 0.",
    );
    // curl waits for a second if the body is not asked for.
    let mut curl = clean("curl");
    curl.args([
        "-s",
        "-X",
        "POST",
        "-H",
        "Content-Type: application/json",
        "-H",
        "Expect: 100-continue",
    ]);
    curl.args(["-w", " %{time_total}", "-T", "/dev/null"])
        .arg(format!("http://{}/rpc", server.address));
    let output = curl.output().expect("it runs");
    let answer = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(
        answer.contains("-32700") && answer.contains("} 0."),
        "{answer}"
    );
}
