//! Readiness: a server that is to have its store is ready only while that answers.

use super::{Database, Kind, Server};
use crate::support::http::{Reply, get, get_with};
use crate::support::{assert_contains, wait_until};

/// What `/readyz` answers, and the gauge that says the same.
fn readiness(server: &Server) -> Reply {
    get(server.daemon.http(), "/readyz")
}

fn wait_for(server: &Server, status: u16) {
    wait_until(&format!("/readyz answers {status}"), || {
        readiness(server).status == status
    });
}

/// Nobody asks for a user meanwhile.
#[test]
fn it_is_ready_only_while_the_store_answers_if_it_needs_it() {
    Database::each(&[Kind::Postgres, Kind::Bouncer], |database| {
        let start = |arguments: &str| {
            let arguments = format!("--http 127.0.0.1:0 {arguments}");
            Server::start(&database.url(), &arguments)
        };
        let needs_it = start("--ready-needs-store");
        let does_not = start("--ready-needs-store=no");
        for end in ["INT", "STOP"] {
            assert_eq!(readiness(&needs_it).status, 200);
            match end {
                "STOP" => database.postgres().signal("STOP"),
                signal => database.postgres().end(signal),
            }
            wait_for(&needs_it, 503);
            assert_contains(&readiness(&needs_it).body, "not ready: the store is away; ");
            let http = needs_it.daemon.http();
            let json = get_with(http, "/readyz", "Accept: application/json\r\n");
            let reason = r#"{"ready":false,"reason":"the store is away","clients":"#;
            assert_contains(&json.body, reason);
            let metrics = get(http, "/metrics").body;
            for gauge in ["ready", "store_up"] {
                assert_contains(&metrics, &format!("\nblockchain_tcpd_{gauge} 0\n"));
            }
            // It lives, and answers what needs no store.
            assert_eq!(get(http, "/livez").status, 200);
            assert_eq!(needs_it.ask("WHY"), "42");
            // It stays so, also while the next attempts go on.
            let failures = || {
                let failed = "blockchain_tcpd_store_errors_total{kind=\"";
                let metrics = get(http, "/metrics").body;
                let counts = metrics.lines().filter(|line| line.starts_with(failed));
                counts
                    .filter_map(|line| line.split(' ').nth(1)?.parse::<u64>().ok())
                    .sum::<u64>()
            };
            let before = failures();
            wait_until("it is tried again, three times", || {
                assert_eq!(readiness(&needs_it).status, 503);
                failures() >= before + 3
            });
            // The other does not ask for it, and is ready whether it knows or not.
            assert!(does_not.ask("USERS").starts_with("ERR UNAVAILABLE "));
            assert_eq!(readiness(&does_not).status, 200);
            match end {
                "STOP" => database.postgres().signal("CONT"),
                _ => database.postgres().run(),
            }
            wait_for(&needs_it, 200);
            does_not.wait_for("USERS", "0");
        }
    });
}

/// A lock, or a right that is missing: the database is there, and answers nothing all the same.
#[test]
fn a_store_that_refuses_is_none_that_answers() {
    Database::each(&[Kind::Postgres], |database| {
        let arguments = "--http 127.0.0.1:0 --ready-needs-store=yes";
        let server = Server::start(&database.url(), arguments);
        wait_for(&server, 200);
        database.sql("ALTER TABLE users RENAME TO others");
        wait_for(&server, 503);
        database.sql("ALTER TABLE others RENAME TO users");
        wait_for(&server, 200);
        let lock = database.session("BEGIN; LOCK TABLE users IN ACCESS EXCLUSIVE MODE;");
        wait_for(&server, 503);
        drop(lock);
        wait_for(&server, 200);
    });
}
