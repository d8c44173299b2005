//! Sends one request and prints its reply.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::process::ExitCode;

use shared::dial::Reply;

use crate::failure::Failure;
use crate::options::Options;
use crate::output::Exchange;

/// Sends these words as a request, and prints the value.
pub fn run(options: &Options, words: &[OsString]) -> Result<ExitCode, Failure> {
    let request = request(words)?;
    let exchange = Exchange::begin(options.json, Some(&request));
    let asked = options
        .route()
        .ask(options.timeout, |mut connection, deadline| {
            connection.ask(&request, deadline)
        });
    match asked.map(Reply::value) {
        Ok(Ok(value)) => exchange.value(&value).map(|()| ExitCode::SUCCESS),
        Ok(Err(refusal)) => exchange.failure(refusal.into()),
        Err(failure) => exchange.failure(failure.into()),
    }
}

/// Joins the words into one line.
fn request(words: &[OsString]) -> Result<Vec<u8>, Failure> {
    let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
    let request = words.join(&b' ');
    if request.contains(&b'\n') {
        let text = "a request is one line: the line end in it would make it two (see connect)";
        return Err(Failure::usage(text));
    }
    if request
        .iter()
        .all(|byte| matches!(byte, b' ' | b'\t' | b'\r'))
    {
        return Err(Failure::usage("an empty request gets no reply"));
    }
    Ok(request)
}
