//! Fuzz target for HTTP: any bytes, in any pieces, are a request, the beginning of one, or
//! rejected; and a client can parse every response.
#![no_main]

use std::sync::{Arc, LazyLock};

use blockchain_tcpd::admin::{Context, Handlers};
use blockchain_tcpd::config::options::{Options, ParsedArgs};
use blockchain_tcpd::handover::InheritedState;
use blockchain_tcpd::protocol::PROTOCOLS;
use blockchain_tcpd::protocol::http::{self, LONGEST_HEAD, ParseResult, Response, STATUSES};
use blockchain_tcpd::server::{Server, Setup};
use libfuzzer_sys::fuzz_target;
use shared::command::Draining;
use shared::command::sets::server::SET;

/// The server whose admin interface is fuzzed.
static SERVER: LazyLock<Server> = LazyLock::new(|| {
    let arguments = [
        "blockchain-tcpd",
        "--listen",
        "127.0.0.1:0",
        "--max-clients",
        "2",
    ];
    let Ok(ParsedArgs::Run(options)) = Options::parse_from(arguments) else {
        panic!("these are good settings");
    };
    let setup = Setup {
        options: &options,
        id: uuid::Uuid::nil(),
        commands: &[SET],
        protocols: PROTOCOLS,
        metrics: Arc::default(),
        reserved: 0,
        cluster: None,
        users: None,
    };
    let server = Server::start(&setup, InheritedState::default()).expect("it starts");
    server.begin();
    server
});

static MONITOR: LazyLock<Handlers> = LazyLock::new(|| {
    Handlers::new(Context {
        health: Arc::new(SERVER.health()),
        metrics: SERVER.metrics.clone(),
        commands: vec![SET],
        member: SERVER.member(),
        cluster: SERVER.cluster_stats(),
        store: None,
        ready_needs_store: false,
        draining: Draining::default(),
        protocols: vec!["tcp".to_string()],
    })
});

fuzz_target!(|data: &[u8]| {
    let whole = http::parse(data);
    // The first byte says where to cut.
    let cut = data
        .first()
        .map_or(0, |byte| usize::from(*byte) * data.len() / 256);
    let beginning = http::parse(&data[..cut]);
    match (&whole, &beginning) {
        (ParseResult::Partial, _) => assert_eq!(beginning, ParseResult::Partial),
        (ParseResult::Request(_, length), ParseResult::Request(..)) => {
            assert!(cut >= *length);
            assert_eq!(whole, beginning);
        }
        (ParseResult::Request(_, length), ParseResult::Partial) => assert!(cut < *length),
        (ParseResult::Request(..), ParseResult::Bad(problem, _)) => {
            panic!("{problem:?}, and then it is one")
        }
        (ParseResult::Bad(..), ParseResult::Request(..)) => panic!("one, and then it is none"),
        (ParseResult::Bad(..), _) => {}
    }
    match whole {
        ParseResult::Partial => assert!(data.len() < LONGEST_HEAD),
        ParseResult::Bad(problem, head_only) => check(&problem.response(), head_only, false),
        ParseResult::Request(request, length) => {
            assert!(length <= data.len().min(LONGEST_HEAD));
            let response = MONITOR.answer(&request);
            let response =
                response.unwrap_or_else(|| MONITOR.checked(&request, Err("it is a trial")));
            check(&response, request.head_only, request.keep_alive);
        }
    }
});

/// Checks that a client can tell where the response ends, and whether the connection stays open.
fn check(response: &Response, head_only: bool, keep_alive: bool) {
    assert!(STATUSES.iter().any(|(code, _)| *code == response.status));
    let bytes = response.encode(head_only, keep_alive);
    let mut fields = [httparse::EMPTY_HEADER; 16];
    let mut read = httparse::Response::new(&mut fields);
    let Ok(httparse::Status::Complete(head)) = read.parse(&bytes) else {
        panic!("no reply: {}", String::from_utf8_lossy(&bytes));
    };
    let field = |name: &str| {
        read.headers
            .iter()
            .find(|field| field.name == name)
            .map(|field| field.value)
    };
    let length =
        field("Content-Length").and_then(|value| std::str::from_utf8(value).ok()?.parse().ok());
    let body = if head_only { 0 } else { response.body.len() };
    assert_eq!(length, Some(response.body.len()));
    assert_eq!(bytes.len(), head + body);
    assert_eq!(field("Connection"), (!keep_alive).then_some(&b"close"[..]));
}
