//! The daemon's program: parses the options, starts the log, runs the daemon, prints one error and
//! returns the exit status.

use std::io::ErrorKind;

use blockchain_tcpd::config::options::{Options, ParsedArgs};
use blockchain_tcpd::error::Error;
use blockchain_tcpd::handover::upgrade;
use blockchain_tcpd::{daemon, logging};
use shared::stdio;

fn main() {
    store::exit(match serve() {
        Ok(()) => 0,
        Err(error) => {
            logging::print_fatal(&error);
            error.exit_status()
        }
    })
}

fn serve() -> Result<(), Error> {
    match Options::parse_from(std::env::args_os())? {
        ParsedArgs::Print(text) => print(&text),
        ParsedArgs::Run(options) if options.check => {
            daemon::check(&options)?;
            upgrade::version_banner().map_or(Ok(()), |text| print(&text))
        }
        ParsedArgs::Run(options) => {
            logging::start(&options.log);
            daemon::run(&options)
        }
    }
}

fn print(text: &str) -> Result<(), Error> {
    match stdio::print(&format!("{}\n", text.trim_end())) {
        // A broken pipe is not an error: the reader has closed it early.
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Error::system("write to standard output", &error))
        }
        _ => Ok(()),
    }
}
