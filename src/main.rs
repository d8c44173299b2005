//! The daemon's program: options, log, run, one error printed, exit status.

use std::io::Write as _;
use std::process::ExitCode;

use blockchain_tcpd::error::Error;
use blockchain_tcpd::options::{Asked, Options};
use blockchain_tcpd::{daemon, logging};

fn main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            logging::print_fatal(&error);
            ExitCode::from(error.exit_status())
        }
    }
}

fn serve() -> Result<(), Error> {
    match Options::parse_from(std::env::args_os())? {
        Asked::Print(text) => {
            // Whoever asked for it may have closed the pipe already.
            let _ = writeln!(std::io::stdout(), "{}", text.trim_end());
            Ok(())
        }
        Asked::Serve(options) => {
            logging::start(&options.log);
            daemon::run(&options)
        }
    }
}
