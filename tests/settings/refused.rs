//! What is refused at start: in which words, and with which exit status.

use std::net::TcpListener;

use super::{FLAGS, variable_of};
use crate::support::{Scratch, fails, program, run_to_end};

#[test]
fn a_wrong_value_is_named_with_its_flag_or_its_variable() {
    for (flag, bad, _) in FLAGS.iter().filter(|(_, bad, _)| !bad.is_empty()) {
        let variable = variable_of(flag);
        let mut command = program();
        command.arg(format!("{flag}={bad}")).env(&variable, bad);
        let (status, said) = run_to_end(command);
        assert_eq!(status, 64, "{said}");
        assert!(said.starts_with("blockchain-tcpd: "), "{said}");
        assert!(said.contains(flag) && said.contains(bad), "{said}");
        assert!(!said.contains(&variable), "{said}");

        let mut command = program();
        command.env(&variable, bad);
        let (status, said) = run_to_end(command);
        assert_eq!(status, 78, "{said}");
        let wrong = format!("invalid value '{bad}' for {variable}: ");
        assert!(said.contains(&wrong), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}

#[test]
fn an_interface_is_named_by_a_link_local_address_and_means_nothing_to_others() {
    let not_local = "only a link-local address (fe80::…) names an interface";
    let nothing = "a link-local address is valid on this machine only";
    for (flag, bad, why) in [
        ("--listen", "[::1%lo]:0", not_local),
        ("--http", "[2001:db8::1%1]:0", not_local),
        (
            "--listen",
            "[fe80::1%]:0",
            "the interface is missing after %",
        ),
        ("--advertise", "[::1%lo]:4280", not_local),
        ("--advertise", "[fe80::1%lo]:4280", nothing),
        ("--advertise", "[fe80::1%1]:4280", nothing),
        ("--advertise", "[fe80::1]:4280", nothing),
    ] {
        let (status, said) = fails(["--check", flag, bad]);
        assert_eq!(status, 64, "{flag} {bad}: {said}");
        assert!(said.contains(why), "{said}");
        let mut command = program();
        command.arg("--check").env(variable_of(flag), bad);
        let (status, said) = run_to_end(command);
        assert_eq!(status, 78, "{flag} {bad}: {said}");
        assert!(said.contains(why), "{said}");
    }
}

#[test]
fn a_variable_that_is_no_text_is_named() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;
    for bad in [&b"1\xff"[..], b"1\n2", b"\x1b[31m"] {
        let mut command = program();
        command.env("BLOCKCHAIN_TCPD_QUEUE", OsStr::from_bytes(bad));
        let (status, said) = run_to_end(command);
        assert_eq!(status, 78, "{said}");
        assert!(
            said.contains("the variable BLOCKCHAIN_TCPD_QUEUE"),
            "{said}"
        );
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(!said.contains('\x1b'), "{said}");
    }
}

#[test]
fn what_is_no_flag_is_wrong_usage() {
    for wrong in ["--listne=127.0.0.1:0", "start", "--queue"] {
        let (status, said) = fails([wrong]);
        assert_eq!(status, 64, "{said}");
        let name = wrong.split('=').next().unwrap_or_default();
        assert!(said.contains(name), "{said}");
    }
}

#[test]
fn what_the_system_refuses_is_71_and_named() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("its address").to_string();
    let (status, said) = fails(["--listen", &address, "--max-clients", "2"]);
    assert_eq!(status, 71, "{said}");
    assert!(
        said.contains(&format!(
            "can't listen on {address}: Address already in use"
        )),
        "{said}"
    );
    assert!(said.contains(&format!(
        "ss -ltnp 'sport = :{}'",
        taken.local_addr().unwrap().port()
    )));

    let (status, said) = fails(["--listen", "192.0.2.1:0", "--max-clients", "2"]);
    assert_eq!(status, 71, "{said}");
    assert!(
        said.contains("192.0.2.1:0") && said.contains("no interface"),
        "{said}"
    );

    let (status, said) = fails(["--listen", "127.0.0.1:0", "--max-clients", "1000000000"]);
    assert_eq!(status, 71, "{said}");
    assert!(said.contains("--max-clients 1000000000"), "{said}");

    let missing = Scratch::new().path().to_string_lossy().into_owned();
    let (status, said) = fails(["--listen", "127.0.0.1:0", "--state-directory", &missing]);
    assert_eq!(status, 71, "{said}");
    assert!(said.contains(&missing), "{said}");
}

#[test]
fn a_damaged_id_is_wrong_configuration() {
    let directory = Scratch::new();
    let file = directory.path().join("server-id");
    std::fs::write(&file, "not an id\n").expect("it is written");
    let name = directory.path().to_string_lossy().into_owned();
    let (status, said) = fails(["--listen", "127.0.0.1:0", "--state-directory", &name]);
    assert_eq!(status, 78, "{said}");
    assert!(said.contains(&*file.to_string_lossy()), "{said}");
}
