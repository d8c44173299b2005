//! What a server of a feed may do, and what becomes of it: a daemon pulls what can be pulled, and tries again.

use std::fs;
use std::io::Write as _;
use std::net::TcpStream;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::server::{FeedServer, Gate, Request, chunked, head, ok, response};
use super::{
    Database, arguments, array, compressed, name_of, puller, user, users, wait_for_answer,
    wait_for_users,
};
use crate::handover::times;
use crate::support::certificates::{Authority, NEW};
use crate::support::{
    Daemon, Process, assert_contains, clean, fails_with, free_port, program, wait_until,
};

/// Waits until the user 0 has this name.
#[track_caller]
fn wait_for_name(daemon: &Daemon, name: &str) {
    wait_until(&format!("the name is {name}"), || {
        name_of(daemon, "u0000000").as_deref() == Some(name)
    });
}

#[test]
fn users_come_at_the_start_and_changes_within_an_interval() {
    Database::each(|database| {
        let feed = FeedServer::of(array(&users(0..3, "first")));
        let daemon = puller(database, &feed.url("/users"), &[]);
        wait_for_users(&daemon, 3);
        daemon
            .log()
            .wait_for("users were pulled inserted=3 updated=0 unchanged=0 refused=0");
        for round in 0..3 {
            let name = format!("round {round}");
            feed.give(array(&[user(0, &name), user(1, "first"), "{}".to_string()]));
            let begun = Instant::now();
            wait_for_name(&daemon, &name);
            let elapsed = begun.elapsed();
            assert!(elapsed < Duration::from_secs(3), "{elapsed:?}");
        }
        // Who is no longer in the feed stays.
        assert_eq!(daemon.ask("USERS\n"), "3\n");
        daemon
            .log()
            .wait_for("users were pulled inserted=0 updated=1 unchanged=1 refused=1");
        daemon
            .log()
            .wait_for("a user of the feed is skipped why=\"value 3: it has no id\"");
        let log = daemon.stop();
        assert!(!log.contains("can't be pulled"), "{log}");
        let gaps: Vec<_> = feed
            .requests()
            .windows(2)
            .map(|two| two[1].at - two[0].at)
            .collect();
        let early = |gap: &Duration| *gap < Duration::from_millis(950);
        assert!(!gaps.iter().any(early), "{gaps:?}");
    });
}

#[test]
fn a_feed_that_is_as_it_was_is_not_read_unless_the_table_is_empty() {
    for (mark, condition, value) in [
        ("ETag", "if-none-match", "\"v 1\""),
        (
            "Last-Modified",
            "if-modified-since",
            "Sun, 29 Nov 2026 10:00:00 GMT",
        ),
    ] {
        Database::each(|database| {
            let whole = Arc::new(AtomicUsize::new(0));
            let served = whole.clone();
            let feed = FeedServer::start(move |request, to| {
                let is_known = request.field(condition) == Some(value);
                if !is_known {
                    served.fetch_add(1, Ordering::SeqCst);
                }
                let fields = format!("{mark}: {value}\r\n");
                to.write_all(&match is_known {
                    true => head("304 Not Modified", &fields).into_bytes(),
                    false => response("200 OK", &fields, array(&users(0..3, "x")).as_bytes()),
                })
            });
            let daemon = puller(database, &feed.url("/"), &[]);
            wait_for_users(&daemon, 3);
            let before = feed.count();
            wait_until("it asks", || feed.count() >= before + 2);
            assert_eq!(whole.load(Ordering::SeqCst), 1);
            database.sql("DELETE FROM users WHERE id = 'u0000001'");
            let before = feed.count();
            wait_until("it asks", || feed.count() >= before + 2);
            assert_eq!(
                (whole.load(Ordering::SeqCst), daemon.ask("USERS\n")),
                (1, "2\n".to_string())
            );
            database.sql("DELETE FROM users");
            wait_for_users(&daemon, 3);
            assert_eq!(whole.load(Ordering::SeqCst), 2);
            // Another daemon knows as much.
            daemon.stop();
            let before = feed.count();
            let daemon = puller(database, &feed.url("/"), &[]);
            wait_until("it asks", || feed.count() >= before + 2);
            assert_eq!(whole.load(Ordering::SeqCst), 2);
            // Another feed is another one.
            daemon.stop();
            let daemon = puller(database, &feed.url("/other"), &[]);
            wait_until("it asks", || whole.load(Ordering::SeqCst) == 3);
            daemon.stop();
        });
    }
}

/// A part of the next version is there, and then the feed is as it was before.
#[test]
fn a_feed_that_goes_back_is_read_again() {
    let Some(database) = Database::sqlite() else {
        return;
    };
    let is_old = Arc::new(AtomicUsize::new(1));
    let old = is_old.clone();
    let feed = FeedServer::start(move |request, to| {
        let (tag, name) = [("\"2\"", "new"), ("\"1\"", "old")][old.load(Ordering::SeqCst)];
        let fields = format!("ETag: {tag}\r\n");
        if request.field("if-none-match") == Some(tag) {
            return to.write_all(head("304 Not Modified", &fields).as_bytes());
        }
        let mut all = array(&users(0..2000, name));
        if name == "new" {
            all.truncate(all.len() - 1);
        }
        to.write_all(&response("200 OK", &fields, all.as_bytes()))
    });
    let daemon = puller(&database, &feed.url("/"), &[]);
    wait_for_users(&daemon, 2000);
    wait_for_name(&daemon, "old");
    is_old.store(0, Ordering::SeqCst);
    wait_for_name(&daemon, "new");
    daemon.log().wait_for("the users can't be pulled reason=");
    is_old.store(1, Ordering::SeqCst);
    wait_for_name(&daemon, "old");
    daemon.stop();
}

#[test]
fn a_feed_comes_compressed_in_chunks_in_drops_and_in_lines() {
    let Some(database) = Database::sqlite() else {
        return;
    };
    let feed = FeedServer::of(array(&users(0..100, "first")));
    let daemon = puller(
        &database,
        &feed.url("/"),
        &["--users-feed-idle-timeout", "2s"],
    );
    wait_for_users(&daemon, 100);
    assert!(
        feed.requests()[0]
            .field("accept-encoding")
            .is_some_and(|it| it.contains("gzip"))
    );
    assert!(
        feed.requests()[0]
            .field("user-agent")
            .is_some_and(|it| it.starts_with("blockchain-tcpd/"))
    );
    let form = |name: &str| array(&users(0..2500, name)).into_bytes();

    let zipped = compressed(&form("gzip"));
    feed.serve(move |_, to| {
        to.write_all(&response("200 OK", "Content-Encoding: gzip\r\n", &zipped))
    });
    wait_for_name(&daemon, "gzip");
    let zipped = compressed(&form("a file"));
    feed.serve(move |_, to| {
        to.write_all(&response(
            "200 OK",
            "Content-Type: application/gzip\r\n",
            &zipped,
        ))
    });
    wait_for_name(&daemon, "a file");
    for size in [7, 1000, 1_000_000] {
        let name = format!("chunks of {size}");
        let all = chunked(&form(&name), size, true);
        feed.serve(move |_, to| to.write_all(&all));
        wait_for_name(&daemon, &name);
    }
    let all = chunked(&compressed(&form("gzip in chunks")), 100, true);
    feed.serve(move |_, to| to.write_all(&all));
    wait_for_name(&daemon, "gzip in chunks");
    // Its end is that of the connection.
    let all = [head("200 OK", "").into_bytes(), form("no length")].concat();
    feed.serve(move |_, to| to.write_all(&all));
    wait_for_name(&daemon, "no length");
    // All of it takes longer than the idle time-out.
    feed.serve(move |_, to| {
        for byte in
            ok(format!("{}\n\n{}", user(1, "drops"), user(0, "drops")).as_bytes()).chunks(12)
        {
            to.write_all(byte)?;
            thread::park_timeout(Duration::from_millis(150));
        }
        Ok(())
    });
    wait_for_name(&daemon, "drops");
    let last = feed.requests().last().expect("requests").at.elapsed();
    assert!(last > Duration::from_secs(2), "{last:?}");
    let log = daemon.stop();
    assert!(!log.contains("can't be pulled"), "{log}");
}

#[test]
fn pages_are_followed() {
    let Some(database) = Database::sqlite() else {
        return;
    };
    let feed = FeedServer::of("");
    let (own, address) = (feed.url(""), feed.address);
    // The link to the page after this one.
    let links = move |page: usize, base: &str| {
        let next = page + 1;
        Some(match page {
            1 => format!("<{own}{base}?page={next}>; rel=\"next\""),
            2 => format!("<?page={next}>; rel=next"),
            3 => format!("<{base}?page={next}>;title=\"a; rel=last, <b>\";rel=\"next\""),
            4 => format!("<users?page={next}>; REL=\"last next\"; type=\"x\""),
            5 => format!("<//{address}{base}?page={next}&a=b,c>; rel=\"next\""),
            6 => format!(
                "<{base}?page=5>; rel=\"prev\", <{base}?page={next}>; rel=\"next\", <{base}?page=1>; rel=\"first\""
            ),
            7 => {
                format!("<{base}?page=6>; rel=\"prev\"\r\nLink: <{base}?page={next}>; rel=\"next\"")
            }
            8 => format!("<{base}?page=7>;rel=prev,<{base}?page={next}>;rel=next"),
            _ => return None,
        })
    };
    feed.serve(move |request, to| {
        let (path, query) = request
            .path
            .split_once('?')
            .unwrap_or((&request.path, "page=1"));
        let page = query
            .split(['=', '&'])
            .nth(1)
            .expect("a page")
            .parse()
            .expect("a number");
        let link = links(page, path).map_or(String::new(), |link| format!("Link: {link}\r\n"));
        let mut all = array(&users(page * 1000..page * 1000 + 700, "page"));
        if page % 2 == 0 {
            all = all.replace("},{", "}\n{").replace(['[', ']'], "");
        }
        // The mark is that of the first page: the others may have changed all the same.
        assert!(request.field("if-none-match").is_none());
        to.write_all(&response(
            "200 OK",
            &format!("{link}ETag: \"1\"\r\n"),
            all.as_bytes(),
        ))
    });
    let daemon = puller(&database, &feed.url("/v1/users"), &[]);
    wait_for_users(&daemon, 9 * 700);
    wait_until("it asks again", || feed.count() > 9);
    let paths = feed.requests().into_iter().map(|request| request.path);
    let paths: Vec<_> = paths.take(9).collect();
    let page = |page: usize| match page {
        1 => "/v1/users".to_string(),
        6 => "/v1/users?page=6&a=b,c".to_string(),
        page => format!("/v1/users?page={page}"),
    };
    assert_eq!(paths, (1..10).map(page).collect::<Vec<_>>());
    // A page that fails leaves those before it.
    let own = feed.url("");
    feed.serve(move |request, to| match &*request.path {
        "/v1/users" => {
            let link = format!("Link: <{own}/2>; rel=\"next\"\r\n");
            to.write_all(&response("200 OK", &link, user(0, "before").as_bytes()))
        }
        _ => to.write_all(&response("503 Service Unavailable", "", b"")),
    });
    wait_for_name(&daemon, "before");
    let line = daemon.log().wait_for("the users can't be pulled reason=");
    assert_contains(
        &line,
        "the server of the feed answers with the HTTP status 503",
    );
    daemon.stop();
}

#[test]
fn redirects_are_followed_but_not_for_ever() {
    let Some(database) = Database::sqlite() else {
        return;
    };
    let feed = FeedServer::of("");
    let own = feed.url("");
    feed.serve(move |request, to| {
        let (status, target) = match &*request.path {
            "/users" => ("301 Moved Permanently", "/1"),
            "/1" => ("302 Found", "2"),
            "/2" => ("303 See Other", &*format!("{own}/3")),
            "/3" => ("307 Temporary Redirect", "/4?a=b"),
            "/4?a=b" => ("308 Permanent Redirect", "/end/users"),
            "/end/users" => {
                // Pages are beside the one that was given, not beside the one that was asked for.
                let link = "Link: <more>; rel=next\r\n";
                return to.write_all(&response("200 OK", link, user(0, "moved").as_bytes()));
            }
            "/end/more" => return to.write_all(&ok(user(1, "more").as_bytes())),
            other => panic!("{other}"),
        };
        to.write_all(&response(status, &format!("Location: {target}\r\n"), b"[]"))
    });
    let daemon = puller(&database, &feed.url("/users"), &[]);
    wait_for_users(&daemon, 2);
    assert_eq!(times(&daemon, "can't be pulled"), 0);
    feed.serve(|request, to| {
        let location = format!("Location: {}x\r\n", request.path);
        to.write_all(&response("302 Found", &location, b""))
    });
    let line = daemon.log().wait_for("the users can't be pulled reason=");
    assert_contains(&line, "redirect");
    let turns = || feed.requests().into_iter().rev();
    wait_until("it tries again", || {
        turns()
            .take_while(|request| request.path != "/users")
            .count()
            > 0
    });
    let longest = turns().map(|request| request.path.len()).max();
    assert_eq!(longest, Some("/users".len() + 5), "five redirects");
    feed.give(user(0, "back"));
    wait_for_name(&daemon, "back");
    daemon.log().wait_for("over: the users can't be pulled");
    daemon.stop();
}

/// A server that speaks TLS with this certificate of the authority, and answers with the files beside it. Dropped, it is killed.
fn over_tls(authority: &Authority, name: &str) -> (Process, String) {
    let address = format!("127.0.0.1:{}", free_port());
    let mut server = clean("openssl");
    server.args(["s_server", "-quiet", "-HTTP", "-accept", &address]);
    let files = ["crt", "key"].map(|end| authority.path(&format!("{name}.{end}")));
    server.args(["-cert", &files[0], "-key", &files[1]]);
    let folder = authority.path("");
    server.current_dir(&folder).stdout(Stdio::null());
    let server = Process::start(server);
    wait_until("it accepts", || TcpStream::connect(&address).is_ok());
    (server, format!("https://{address}"))
}

#[test]
fn a_redirect_leads_to_tls_and_never_back() {
    needs!("openssl");
    let Some(database) = Database::sqlite() else {
        return;
    };
    let authority = Authority::new();
    authority.certify("known", "/CN=known");
    authority.openssl(&format!(
        "{NEW} -keyout unknown.key -out unknown.crt -subj /CN=unknown -addext subjectAltName=IP:127.0.0.1 \
         -addext basicConstraints=critical,CA:FALSE"
    ));
    let (_known, known) = over_tls(&authority, "known");
    let (_unknown, unknown) = over_tls(&authority, "unknown");
    let start = |url: &str| {
        let mut all = arguments(&database, url);
        all.extend(["--users-feed-interval".to_string(), "1s".to_string()]);
        Daemon::start_with(all, |command| {
            command.env("SSL_CERT_FILE", authority.path("ca.crt"));
        })
    };
    let file = |name: &str, answer: Vec<u8>| {
        fs::write(authority.path(name), answer).expect("a scratch file");
    };
    file("users", ok(user(0, "over TLS").as_bytes()));
    let to = |target: String| {
        move |_: &Request, to: &mut TcpStream| {
            let location = format!("Location: {target}\r\n");
            to.write_all(&response("302 Found", &location, b""))
        }
    };
    // A certificate that nobody has signed who is known.
    let feed = FeedServer::start(to(format!("{unknown}/users")));
    let daemon = start(&feed.url("/"));
    let line = daemon.log().wait_for("the users can't be pulled reason=");
    println!("{line}");
    assert_contains(&line, "certificate");
    wait_until("it tries again", || feed.count() > 1);
    assert_eq!(daemon.connect().ask("USERS"), "0");
    // One that is as it should be.
    feed.serve(to(format!("{known}/users")));
    wait_for_name(&daemon, "over TLS");
    daemon.log().wait_for("over: the users can't be pulled");
    daemon.stop();
    // What is asked for over TLS is not taken without it.
    let before = feed.count();
    feed.give(user(0, "without TLS"));
    let location = format!("Location: {}\r\n", feed.url("/"));
    file("back", response("302 Found", &location, b""));
    let daemon = start(&format!("{known}/back"));
    let line = daemon.log().wait_for("the users can't be pulled reason=");
    println!("{line}");
    assert_contains(&line, "https");
    assert_eq!(
        name_of(&daemon, "u0000000").as_deref(),
        Some("over TLS"),
        "{line}"
    );
    assert_eq!(feed.count(), before);
    daemon.stop();
}

#[test]
fn a_feed_that_hangs_is_given_up_and_tried_again() {
    let Some(database) = Database::sqlite() else {
        return;
    };
    // Where it hangs: what is sent before.
    let whole = String::from_utf8(ok(array(&users(0..3000, "hung")).as_bytes())).expect("ASCII");
    for (where_it_hangs, sent) in [
        ("at once", 0),
        ("in the head", 20),
        ("in the body", whole.len() - 10),
    ] {
        let (gate, begun) = (Gate::default(), whole[..sent].to_string());
        let held = gate.clone();
        let feed = FeedServer::start(move |_, to| {
            to.write_all(begun.as_bytes())?;
            held.pass();
            Ok(())
        });
        let daemon = puller(
            &database,
            &feed.url("/"),
            &["--users-feed-idle-timeout", "1s"],
        );
        let line = daemon.log().wait_for("the users can't be pulled reason=");
        let first = feed.requests()[0].at.elapsed();
        assert!(
            first > Duration::from_millis(900) && first < Duration::from_secs(4),
            "{first:?}: {where_it_hangs}"
        );
        assert_contains(&line.to_lowercase(), "timeout");
        wait_until("it tries again", || feed.count() >= 2);
        feed.give(array(&users(0..3000, where_it_hangs)));
        wait_for_name(&daemon, where_it_hangs);
        gate.open();
        daemon.stop();
    }
    // It can be stopped meanwhile, too.
    let gate = Gate::default();
    let held = gate.clone();
    let feed = FeedServer::start(move |_, _| {
        held.pass();
        Ok(())
    });
    let daemon = puller(&database, &feed.url("/"), &[]);
    wait_until("it asks", || feed.count() == 1);
    let begun = Instant::now();
    daemon.stop();
    assert!(
        begun.elapsed() < Duration::from_secs(3),
        "{:?}",
        begun.elapsed()
    );
    gate.open();
}

#[test]
fn what_came_before_a_feed_broke_off_stays_and_the_next_pull_completes_it() {
    Database::each(|database| {
        let lines = |name: &str| users(0..3000, name).join("\n") + "\n";
        let cut = |name: &str| {
            lines(name)
                .lines()
                .take(2500)
                .map(|line| line.to_string() + "\n")
                .collect::<String>()
        };
        let long = |name: &str| {
            let mut all = head(
                "200 OK",
                &format!("Content-Length: {}\r\n", lines(name).len()),
            )
            .into_bytes();
            all.extend_from_slice(cut(name).as_bytes());
            all
        };
        let zipped = |name: &str| {
            let all = compressed(lines(name).as_bytes());
            ok(&all[..all.len() - 8])
        };
        // What is a whole feed each, if it were not for the way it ends.
        let ways: [(&str, Vec<u8>, usize); 4] = [
            (
                "a length that is too large",
                long("a length that is too large"),
                2500,
            ),
            (
                "no last chunk",
                chunked(cut("no last chunk").as_bytes(), 1000, false),
                2500,
            ),
            ("gzip without its end", zipped("gzip without its end"), 3000),
            (
                "an array without its end",
                ok(format!("[{}", users(0..2500, "an array without its end").join(",")).as_bytes()),
                2500,
            ),
        ];
        for (name, sent, length) in ways {
            let feed = FeedServer::start(move |_, to| to.write_all(&sent));
            let daemon = puller(database, &feed.url("/"), &[]);
            let line = daemon.log().wait_for("the users can't be pulled reason=");
            println!("{name}: {line}");
            let has = format!("SELECT count(*) FROM users WHERE name = '{name}'");
            assert_eq!(database.number(&has), length as u64, "{line}");
            feed.give(lines(name));
            wait_until("it is complete", || database.number(&has) == 3000);
            daemon.log().wait_for("over: the users can't be pulled");
            daemon.stop();
        }
        // A length that is too small, in the middle of a user.
        let all = array(&users(0..3000, "short"));
        let head = head("200 OK", &format!("Content-Length: {}\r\n", all.len() / 2));
        let feed = FeedServer::start(move |_, to| to.write_all((head.clone() + &all).as_bytes()));
        let daemon = puller(database, &feed.url("/"), &[]);
        let line = daemon.log().wait_for("the users can't be pulled reason=");
        assert_contains(&line, "the feed breaks off");
        daemon.stop();
    });
}

#[test]
fn an_outage_is_two_lines_however_often_it_is_tried() {
    let Some(database) = Database::sqlite() else {
        return;
    };
    let feed = FeedServer::of("<html>We are down for maintenance</html>");
    let daemon = puller(&database, &feed.url("/"), &[]);
    let line = daemon.log().wait_for("the users can't be pulled reason=");
    assert_contains(&line, " WARN ");
    assert_contains(&line, "the feed is no JSON: after 0 values comes '<'");
    wait_until("it tries again and again", || feed.count() >= 5);
    feed.give(array(&users(0..3, "back")));
    wait_for_users(&daemon, 3);
    let line = daemon
        .log()
        .wait_for("over: the users can't be pulled times=");
    assert_contains(&line, " INFO ");
    let log = daemon.stop();
    let about_it = log.lines().filter(|line| line.contains("can't be pulled"));
    assert_eq!(about_it.count(), 2, "{log}");
    assert!(
        !log.contains("<html>") && !log.contains("store is unavailable"),
        "{log}"
    );
}

/// What is answered as if it were a feed, and how the log names it.
#[test]
fn what_holds_no_user_is_no_complete_pull() {
    let Some(database) = Database::sqlite() else {
        return;
    };
    let feed = FeedServer::of("");
    let daemon = puller(&database, &feed.url("/"), &[]);
    let line = daemon.log().wait_for("the users can't be pulled reason=");
    assert_contains(&line, "the feed breaks off before its first value");
    feed.give("[]");
    daemon.log().wait_for("over: the users can't be pulled");
    feed.give(r#"{"error":"internal"}"#);
    daemon.log().wait_for("none of its 1 values is a user");
    feed.give("[]");
    wait_until("it is over again", || {
        let lines = daemon.log().lines();
        lines.iter().filter(|line| line.contains(" over: ")).count() == 2
    });
    // The pages of a feed follow each other in a circle.
    let own = feed.url("");
    feed.serve(move |request, to| {
        let next = if request.path == "/2" { "/" } else { "/2" };
        let link = format!("Link: <{own}{next}>; rel=\"next\"; title=\"\u{fc}\"\r\n");
        to.write_all(&response("200 OK", &link, user(0, "x").as_bytes()))
    });
    daemon.log().wait_for("follow each other in a circle");
    daemon.stop();
}

/// Values that are refused are named when that changes, not at each pull.
#[test]
fn a_user_that_stays_wrong_is_named_once() {
    let Some(database) = Database::sqlite() else {
        return;
    };
    let wrong = |second: &str| array(&[user(0, "x"), second.to_string()]);
    let feed = FeedServer::of(wrong("{}"));
    let daemon = puller(&database, &feed.url("/"), &[]);
    wait_until("it is pulled some times", || feed.count() >= 3);
    feed.give(wrong(r#"{"id":""}"#));
    daemon.log().wait_for("the id is empty");
    let log = daemon.stop();
    assert_eq!(log.matches("is skipped").count(), 2, "{log}");
    assert_eq!(log.matches("users were pulled").count(), 2, "{log}");
}

#[test]
fn attempts_are_rarer_the_longer_it_fails() {
    let Some(database) = Database::sqlite() else {
        return;
    };
    let feed = FeedServer::of("<html>");
    let daemon = puller(&database, &feed.url("/"), &["--users-feed-interval", "1h"]);
    wait_until("it tries again and again", || feed.count() >= 4);
    let gaps: Vec<_> = feed
        .requests()
        .windows(2)
        .map(|two| (two[1].at - two[0].at).as_secs_f64())
        .collect();
    for (gap, (least, most)) in gaps.iter().zip([(0.5, 1.0), (1.0, 2.0), (2.0, 4.0)]) {
        // It looks each 0.2 s whether it is time.
        assert!((least..most + 1.0).contains(gap), "{gaps:?}");
    }
    daemon.stop();
}

#[test]
fn no_error_ends_the_pulling() {
    let Some(database) = Database::sqlite() else {
        return;
    };
    let feed = FeedServer::of("");
    let served = Arc::new(AtomicUsize::new(0));
    let count = served.clone();
    let wrongs: [&[u8]; 9] = [
        b"",
        b"SSH-2.0-OpenSSH_9.2p1\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n[]",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n[]\r\n0\r\n\r\n",
        b"HTTP/1.1 500 Oops\r\nContent-Length: 2\r\n\r\n[]",
        b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\nETag: \"1\"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n\x1f\x8b\x00\x00",
    ];
    feed.serve(move |_, to| {
        let index = count.fetch_add(1, Ordering::SeqCst);
        match wrongs.get(index) {
            Some(wrong) => to.write_all(wrong),
            None => to.write_all(&ok(user(0, "at last").as_bytes())),
        }
    });
    let daemon = puller(&database, &feed.url("/"), &[]);
    wait_for_name(&daemon, "at last");
    assert!(served.load(Ordering::SeqCst) > wrongs.len());
    // Nobody listens there any more.
    let (url, address) = (feed.url("/"), feed.address);
    drop(feed);
    wait_until("it is refused", || {
        let log = daemon.log().lines();
        let last = log.iter().rfind(|line| line.contains("can't be pulled"));
        last.is_some_and(|line| line.contains(" WARN "))
    });
    assert!(url.contains(&address.to_string()));
    wait_for_answer(&daemon, "USERS", "1");
    let log = daemon.stop();
    assert!(
        !log.contains("panicked") && !log.contains("store is unavailable"),
        "{log}"
    );
}

#[test]
fn urls_that_are_none_are_refused_at_the_start() {
    for (url, why) in [
        ("ftp://example.org/users", "not a URL of HTTP"),
        ("users.json", "not a URL of HTTP"),
        (
            "http://me:secret@example.org/",
            "it holds a user or a password",
        ),
    ] {
        let mut command = program();
        command.args([
            "--commands",
            "server,users",
            "--store",
            "sqlite:///tmp/none.db",
        ]);
        command.args(["--listen", "127.0.0.1:0", "--users-feed", url]);
        let said = fails_with(command, 78, &["--users-feed: ", why]);
        assert!(!said.contains("secret"), "{said}");
    }
}
