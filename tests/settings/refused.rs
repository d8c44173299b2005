//! What is refused at start: in which words, and with which exit status.

use std::ffi::OsStr;
use std::net::TcpListener;
use std::os::unix::ffi::OsStrExt as _;

use super::{flags, variable_of};
use crate::support::tables::check_refusals;
use crate::support::{fails_with, program};

#[test]
fn a_wrong_setting_is_refused_in_these_words() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("its address");
    let (taken, port) = (address.to_string(), address.port().to_string());
    let replace = [("taken", &*taken), ("port", &*port)];
    check_refusals(include_str!("refused.txt"), &replace);
}

#[test]
fn a_wrong_value_is_named_with_its_flag_or_its_variable() {
    for (flag, bad, _) in flags().into_iter().filter(|(_, bad, _)| !bad.is_empty()) {
        let variable = variable_of(flag);
        let mut command = program();
        command.arg(format!("{flag}={bad}")).env(&variable, bad);
        let said = fails_with(command, 64, &[flag, bad]);
        assert!(said.starts_with("blockchain-tcpd: "), "{said}");
        assert!(!said.contains(&variable), "{said}");

        let mut command = program();
        command.env(&variable, bad);
        let wrong = format!("invalid value '{bad}' for {variable}: ");
        let said = fails_with(command, 78, &[&wrong]);
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}

#[test]
fn a_variable_that_is_no_text_is_named() {
    for bad in [&b"1\xff"[..], b"1\n2", b"\x1b[31m"] {
        let mut command = program();
        command.env("BLOCKCHAIN_TCPD_QUEUE", OsStr::from_bytes(bad));
        let name = "the variable BLOCKCHAIN_TCPD_QUEUE";
        let said = fails_with(command, 78, &[name]);
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(!said.contains('\x1b'), "{said}");
    }
}
