//! With a program that reads JSON: one object a line, whatever happens.

use std::net::SocketAddr;

use serde_json::{Value, json};

use super::piped::converse;
use super::{fake, speaking};
use crate::support::Daemon;

#[test]
fn json_is_one_object_a_line() {
    let daemon = Daemon::start(["--max-clients", "4"]);
    let ran = converse(daemon.address, &["--json"], "why\nfoo\nexit\n");
    assert_eq!(ran.status, 1, "{ran:?}");
    let objects = ran
        .output
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"));
    let objects: Vec<Value> = objects.collect();
    assert_eq!(objects.len(), 3, "{ran:?}");
    assert_eq!(
        (&objects[0]["request"], &objects[0]["numbers"][0]),
        (&"why".into(), &42.into())
    );
    assert_eq!(objects[1]["error"]["word"], "UNKNOWN");
    assert_eq!(objects[2]["reply"], "BYE");
    let server = fake(|_, _| Some(Vec::new()));
    let ran = converse(server, &["--json"], "why\n");
    let object: Value = serde_json::from_str(&ran.output).expect("JSON");
    assert_eq!(
        (ran.status, &object["request"]),
        (69, &"why".into()),
        "{ran:?}"
    );
    assert_eq!(
        object["error"]["message"],
        "closed without an answer to why"
    );
}

#[test]
fn with_json_every_failure_is_an_object_too() {
    let ends = |server: SocketAddr, input: &str| {
        let ran = converse(server, &["--json"], input);
        assert_eq!(ran.errors, "", "{ran:?}");
        let mut object: Value = serde_json::from_str(&ran.output).expect("JSON");
        assert!(object["seconds"].take().is_f64(), "{ran:?}");
        (ran.status, object)
    };
    let object = |word: Value, message: &str| {
        let error = json!({ "word": word, "message": message });
        json!({ "request": null, "seconds": null, "error": error })
    };
    let busy = speaking(b"ERR BUSY full with 1 clients, try again later\n");
    let ssh = speaking(b"SSH-2.0-OpenSSH_9.2p1\n");
    let nobody = Daemon::start(["--max-clients", "4"]).address;
    let refused = format!("can't connect to {nobody}: Connection refused");
    // Whether it is said before the first line is read, or behind it.
    for input in ["", "why\n", "why\nping\n"] {
        let full = object("BUSY".into(), "full with 1 clients, try again later");
        assert_eq!(ends(busy, input), (75, full));
        assert_eq!(ends(nobody, input), (69, object(Value::Null, &refused)));
    }
    // In reply to a line it is no answer to that line.
    let asked = fake(|_, _| Some(b"ERR BUSY full with 1 clients, try again later\n".to_vec()));
    let full = object("BUSY".into(), "full with 1 clients, try again later");
    assert_eq!(ends(asked, "why\n"), (75, full));
    let said = r#"this is not a blockchain-tcpd: more is answered than was asked: "SSH-2.0-OpenSSH_9.2p1""#;
    assert_eq!(ends(ssh, ""), (76, object(Value::Null, said)));
    assert_eq!(ends(ssh, "why\n").0, 76);
}
