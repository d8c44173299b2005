//! Each program says its name and version. With this test target, `cargo test` also builds the
//! program of the package for the tests in `tests`, which run all programs together.

use std::process::Command;

#[test]
fn it_prints_its_name_and_version() {
    let program = option_env!("CARGO_BIN_EXE_blockchain-tcp")
        .or(option_env!("CARGO_BIN_EXE_check_blockchain_tcp"))
        .expect("this package's program");
    let output = Command::new(program).arg("--version").output();
    let printed = output.expect("it runs").stdout;
    let expected = format!("{} {}\n", env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
    assert_eq!(String::from_utf8_lossy(&printed), expected);
}
