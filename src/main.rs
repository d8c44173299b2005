//! The daemon's program: options, log, run, one error printed, exit status.

use std::io::ErrorKind;
use std::process::ExitCode;

use blockchain_tcpd::error::Error;
use blockchain_tcpd::options::{Asked, Options};
use blockchain_tcpd::{daemon, handover, logging, stdio};

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
        Asked::Print(text) => print(&text),
        Asked::Serve(options) if options.check => {
            daemon::check(&options)?;
            handover::version_banner().map_or(Ok(()), |text| print(&text))
        }
        Asked::Serve(options) => {
            logging::start(&options.log);
            daemon::run(&options)
        }
    }
}

fn print(text: &str) -> Result<(), Error> {
    match stdio::print(&format!("{}\n", text.trim_end())) {
        // Whoever asked for it has seen enough.
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(Error::Print(error)),
        _ => Ok(()),
    }
}
