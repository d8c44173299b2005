//! Two ends in memory, and bad peers.

use http2::{Error, Event, Field, Limits, Session, StreamId, code};

/// Both ends of a connection.
struct Pair {
    server: Session,
    client: Session,
}

impl Pair {
    fn new(limits: Limits) -> Self {
        let mut pair = Pair {
            server: Session::server(limits),
            client: Session::client(Limits::default()),
        };
        assert_eq!(pair.exchange(), (vec![], vec![]), "settings are no events");
        pair
    }

    /// Carries bytes until both ends are silent. Returns the events of the server and the client.
    fn exchange(&mut self) -> (Vec<Event>, Vec<Event>) {
        let (mut at_server, mut at_client) = (Vec::new(), Vec::new());
        loop {
            let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
            self.client.take_output(&mut to_server);
            self.server.receive(&to_server).unwrap();
            at_server.extend(events(&mut self.server));
            self.server.take_output(&mut to_client);
            self.client.receive(&to_client).unwrap();
            at_client.extend(events(&mut self.client));
            if to_server.is_empty() && to_client.is_empty() {
                return (at_server, at_client);
            }
        }
    }

    fn request(&mut self, body: &[u8]) -> StreamId {
        let stream = self.client.request(&request_headers(), false).unwrap();
        self.client.send(stream, body.to_vec());
        self.client.finish(stream, Vec::new());
        stream
    }
}

fn events(session: &mut Session) -> impl Iterator<Item = Event> {
    std::iter::from_fn(|| session.next_event())
}

fn request_headers() -> [Field; 5] {
    [
        Field::new(":method", "POST"),
        Field::new(":scheme", "http"),
        Field::new(":path", "/a.B/C"),
        Field::new(":authority", "localhost"),
        Field::new("te", "trailers"),
    ]
}

/// Writes events as short words.
fn words(events: &[Event]) -> Vec<String> {
    let word = |event: &Event| match event {
        Event::Headers(stream, headers) => format!(
            "{stream} headers {}{}",
            headers.iter().count(),
            if headers.is_too_large {
                " too large"
            } else {
                ""
            }
        ),
        Event::Data(stream, bytes) => format!("{stream} data {}", bytes.len()),
        Event::End(stream) => format!("{stream} end"),
        Event::Closed(stream, code) => format!("{stream} closed {code}"),
        Event::Pong(data) => format!("pong {data:?}"),
        Event::GoAway { last, code } => format!("goaway {last} {code}"),
    };
    events.iter().map(word).collect()
}

#[test]
fn a_call_and_its_answer_with_trailers_arrive() {
    let mut pair = Pair::new(Limits::default());
    let stream = pair.request(b"question");
    let (at_server, _) = pair.exchange();
    assert_eq!(words(&at_server), ["1 headers 5", "1 data 8", "1 end"]);
    let Event::Headers(_, headers) = &at_server[0] else {
        panic!()
    };
    assert_eq!(headers.get(":path"), Some(&b"/a.B/C"[..]));
    assert_eq!(headers.get("missing"), None);
    assert!(
        pair.server
            .respond(stream, &[Field::new(":status", "200")], false)
    );
    pair.server.send(stream, b"answer".to_vec());
    pair.server
        .finish(stream, vec![Field::new("grpc-status", "0")]);
    let (at_server, at_client) = pair.exchange();
    assert_eq!(words(&at_server), ["1 closed 0"]);
    assert_eq!(
        words(&at_client),
        [
            "1 headers 1",
            "1 data 6",
            "1 headers 1",
            "1 end",
            "1 closed 0"
        ]
    );
    assert!(
        !pair
            .server
            .respond(stream, &[Field::new(":status", "200")], true),
        "it is closed"
    );
    assert!(!pair.server.is_over());
}

#[test]
fn an_answer_may_end_with_its_headers_or_come_in_parts() {
    let mut pair = Pair::new(Limits::default());
    let (short, long) = (pair.request(b""), pair.request(b""));
    pair.exchange();
    pair.server
        .respond(short, &[Field::new(":status", "415")], true);
    pair.server
        .respond(long, &[Field::new(":status", "200")], false);
    let (_, at_client) = pair.exchange();
    assert_eq!(
        words(&at_client),
        ["1 headers 1", "1 end", "1 closed 0", "3 headers 1"]
    );
    for _ in 0..2 {
        pair.server.send(long, b"part".to_vec());
        assert_eq!(words(&pair.exchange().1), ["3 data 4"]);
    }
    pair.server.finish(long, Vec::new());
    let (at_server, at_client) = pair.exchange();
    assert_eq!(words(&at_client).last().unwrap(), "3 closed 0");
    assert_eq!(words(&at_server), ["3 closed 0"]);
}

#[test]
fn a_request_that_is_answered_early_is_stopped_after_the_answer() {
    let mut pair = Pair::new(Limits::default());
    let stream = pair.client.request(&request_headers(), false).unwrap();
    pair.client.send(stream, vec![0; 10]);
    pair.exchange();
    pair.server
        .respond(stream, &[Field::new(":status", "415")], true);
    pair.server.stop(stream);
    let (_, at_client) = pair.exchange();
    assert_eq!(words(&at_client), ["1 headers 1", "1 end", "1 closed 0"]);
    let ended = pair.request(b"");
    pair.exchange();
    pair.server
        .respond(ended, &[Field::new(":status", "415")], true);
    pair.server.stop(ended);
    let (_, at_client) = pair.exchange();
    assert_eq!(words(&at_client), ["3 headers 1", "3 end", "3 closed 0"]);
}

#[test]
fn what_the_window_has_no_room_for_waits() {
    let mut pair = Pair::new(Limits::default());
    let stream = pair.request(&[1; 200_000]);
    let (at_server, _) = pair.exchange();
    let length: usize = at_server
        .iter()
        .map(|event| match event {
            Event::Data(_, bytes) => bytes.len(),
            _ => 0,
        })
        .sum();
    assert_eq!(length, 200_000, "the server opens the window again");
    pair.server
        .respond(stream, &[Field::new(":status", "200")], false);
    pair.server.send(stream, vec![2; 200_000]);
    pair.server.finish(stream, Vec::new());
    pair.server.take_output(&mut Vec::new());
    assert_eq!(pair.server.unsent(), 200_000 - 65_535);
    pair.server.reset(stream, code::CANCEL);
    pair.server.take_output(&mut Vec::new());
    assert_eq!(pair.server.unsent(), 0, "nothing waits for a closed stream");
}

#[test]
fn a_server_ends_in_two_steps_and_loses_no_call_between() {
    let mut pair = Pair::new(Limits::default());
    let first = pair.request(b"1");
    pair.exchange();
    pair.server.announce_end(*b"the end!");
    // This one crosses the announcement.
    let crossing = pair.request(b"2");
    let (at_server, at_client) = pair.exchange();
    assert_eq!(words(&at_client), ["goaway 2147483647 0"]);
    assert_eq!(
        words(&at_server),
        [
            "3 headers 5",
            "3 data 1",
            "3 end",
            &format!("pong {:?}", b"the end!")
        ]
    );
    assert_eq!(
        pair.client.request(&request_headers(), true),
        None,
        "no more calls"
    );
    pair.server.go_away();
    assert_eq!(words(&pair.exchange().1), ["goaway 3 0"]);
    for stream in [first, crossing] {
        assert!(!pair.server.is_over());
        pair.server
            .respond(stream, &[Field::new(":status", "200")], true);
        pair.exchange();
    }
    assert!(pair.server.is_over() && pair.client.is_over());
}

#[test]
fn a_list_of_headers_that_is_too_long_arrives_in_part() {
    let mut pair = Pair::new(Limits {
        header_list: 1000,
        ..Limits::default()
    });
    let mut headers = request_headers().to_vec();
    headers.push(Field::new("long", "x".repeat(1000)));
    pair.client.request(&headers, true).unwrap();
    let (at_server, _) = pair.exchange();
    assert_eq!(words(&at_server), ["1 headers 5 too large", "1 end"]);
}

/// The bytes with which a client begins, and a frame.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend_from_slice(&[kind, flags]);
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// The kinds of whole frames.
fn kinds(mut frames: &[u8]) -> impl Iterator<Item = u8> {
    std::iter::from_fn(move || {
        let length = u32::from_be_bytes([0, *frames.first()?, frames[1], frames[2]]);
        let kind = frames[3];
        frames = &frames[9 + length as usize..];
        Some(kind)
    })
}

/// The headers of a request: POST, http, /, and a name.
const REQUEST: &[u8] = &[0x83, 0x86, 0x84, 0x01, 1, b'a'];

#[test]
fn floods_end_the_session_with_enhance_your_calm() {
    let numbered = |number: u32| 2 * number + 1;
    let open = |number| frame(1, 4, numbered(number), REQUEST);
    // 4,000 bytes in the table of the other end, and references to it.
    let stored = [&[0x40, 1, b'a', 0x7f, 0xa1, 0x1e][..], &[b'x'; 4000]].concat();
    type Flood<'a> = (&'a str, &'a dyn Fn(u32) -> Vec<u8>);
    let floods: &[Flood<'_>] = &[
        ("pings", &|_| frame(6, 0, 0, &[0; 8])),
        ("answers to pings", &|_| frame(6, 1, 0, &[0; 8])),
        ("settings", &|_| frame(4, 0, 0, &[])),
        ("priorities", &|number| {
            frame(2, 0, numbered(number), &[0, 0, 0, 0, 0])
        }),
        ("unknown frames", &|_| frame(77, 0, 0, &[1; 30])),
        ("resets", &|number| {
            [open(number), frame(3, 0, numbered(number), &[0, 0, 0, 8])].concat()
        }),
        ("requests", &|number| open(number)),
        ("window updates", &|_| frame(8, 0, 0, &[0, 0, 0, 1])),
        ("empty data", &|number| match number {
            0 => open(0),
            _ => frame(0, 0, 1, &[]),
        }),
        ("padding", &|number| match number {
            0 => open(0),
            _ => frame(0, 8, 1, &[0]),
        }),
        ("data on a closed stream", &|number| match number {
            0 => [open(0), frame(3, 0, 1, &[0; 4])].concat(),
            _ => frame(0, 0, 1, &[1]),
        }),
        ("continuations", &|number| match number {
            0 => frame(1, 0, 1, REQUEST),
            _ => frame(9, 0, 1, &[]),
        }),
        ("references to one long header", &|number| match number {
            0 => frame(1, 5, 1, &[REQUEST, &stored].concat()),
            _ => frame(1, 5, numbered(number), &[REQUEST, &[0xbe; 5000]].concat()),
        }),
    ];
    for (name, flood) in floods {
        let mut server = Session::server(Limits::default());
        server.receive(PREFACE).unwrap();
        let mut output = Vec::new();
        let mut last = Ok(());
        for number in 0..2000 {
            last = server.receive(&flood(number));
            events(&mut server).for_each(drop);
            output.clear();
            server.take_output(&mut output);
            if last.is_err() || server.is_over() {
                break;
            }
        }
        assert_eq!(last, Err(Error::Flood), "{name}");
        assert!(output.len() >= 17, "{name}: {output:?}");
        assert_eq!(
            kinds(&output).filter(|kind| *kind == 7).count(),
            1,
            "{name}"
        );
        let goaway = &output[output.len() - 17..];
        assert_eq!(goaway[..9], [0, 0, 8, 7, 0, 0, 0, 0, 0], "{name}");
        assert_eq!(
            goaway[13..],
            code::ENHANCE_YOUR_CALM.to_be_bytes(),
            "{name}"
        );
        assert!(server.is_over(), "{name}");
        output.clear();
        server.take_output(&mut output);
        assert_eq!(output, [], "{name}: nothing more");
    }
}

#[test]
fn answers_and_time_allow_more_frames() {
    let mut pair = Pair::new(Limits {
        control_frames: 20,
        ..Limits::default()
    });
    for _ in 0..50 {
        // As many pings as clients send that measure each answer.
        pair.client.ping([0; 8]);
        let stream = pair.request(b"");
        pair.exchange();
        pair.server
            .respond(stream, &[Field::new(":status", "200")], true);
        pair.exchange();
    }
    for _ in 0..50 {
        pair.client.ping([0; 8]);
        pair.exchange();
        pair.server.allow(10);
    }
}

#[test]
fn what_is_not_http2_is_an_error() {
    let mut server = Session::server(Limits::default());
    let error = server
        .receive(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .unwrap_err();
    assert!(matches!(error, Error::Broken(_)), "{error}");
    assert!(server.is_over());
    assert!(server.receive(b"more").is_err());
    server.respond(1, &[], true);
    server.go_away();
    server.take_output(&mut Vec::new());
}
