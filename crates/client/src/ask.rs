//! Sends one request and prints its reply.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::process::ExitCode;
use std::time::Instant;

use shared::dial::Reply;

use crate::failure::{Failure, UNKNOWN, eprintln_line};
use crate::options::{Options, misspelt_task};
use crate::output::{Exchange, Output};

/// Sends these words as a request, and prints the value.
pub fn run(options: &Options, words: &[OsString]) -> Result<ExitCode, Failure> {
    let request = request(words)?;
    let output = Output::new(options.json);
    let begun = Instant::now();
    let asked = options
        .route()
        .ask(options.timeout, |mut connection, time| {
            connection.ask(&request, time)
        });
    let exchange = Exchange {
        request: Some(&String::from_utf8_lossy(&request)),
        time: begun.elapsed(),
    };
    match asked {
        Ok(Reply::Value(value)) => {
            output.value(&exchange, &value)?;
            Ok(ExitCode::SUCCESS)
        }
        Ok(Reply::Refused { word, sentence }) => {
            let meant = (word == UNKNOWN)
                .then(|| misspelt_task(words.first()?))
                .flatten();
            let refused = Failure::Refused { word, sentence };
            let Some(task) = meant.filter(|_| !options.json) else {
                return output.failure(&exchange, refused);
            };
            let status = refused.report();
            eprintln_line(format_args!(
                "blockchain-tcp: is the task {task:?} meant? (see --help)"
            ));
            Ok(status)
        }
        Err(failure) => output.failure(&exchange, failure.into()),
    }
}

/// Joins the words into one line.
fn request(words: &[OsString]) -> Result<Vec<u8>, Failure> {
    let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
    let request = words.join(&b' ');
    if request.contains(&b'\n') {
        let text = "a request is one line: the line end in it would make it two (see connect)";
        return Err(Failure::Usage(text.to_string()));
    }
    if request
        .iter()
        .all(|byte| matches!(byte, b' ' | b'\t' | b'\r'))
    {
        return Err(Failure::Usage("an empty request gets no reply".to_string()));
    }
    Ok(request)
}
