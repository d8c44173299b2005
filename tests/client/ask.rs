//! One question, one answer: the value, the exit status, JSON; which server, and how long it may take.

use super::run;
use crate::support::Daemon;

#[test]
fn the_value_is_printed_and_nothing_else() {
    let daemon = Daemon::start(["--max-clients", "4"]);
    let server = daemon.address.to_string();
    let ran = run(["--server", &server, "why"]);
    assert_eq!((ran.status, ran.output.as_str()), (0, "42\n"), "{ran:?}");
    assert_eq!(ran.errors, "");
}
