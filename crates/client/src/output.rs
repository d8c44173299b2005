//! Standard output: the value alone, or with `--json` one object per line.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use shared::dial::{Refusal, Reply};
use shared::stdio;
use shared::text::escape_json;

use crate::failure::Failure;

/// A request and the time until its reply.
pub struct Exchange<'a> {
    /// The request, if there is one.
    pub request: Option<&'a str>,
    /// Time from the request, or from the connection attempt before it, to the reply.
    pub time: Duration,
}

/// Writer of replies to standard output.
#[derive(Clone, Copy)]
pub struct Output {
    json: bool,
}

impl Output {
    /// Returns a writer of values, or of JSON.
    pub fn new(json: bool) -> Self {
        Output { json }
    }

    /// Returns whether the output is JSON.
    pub fn is_json(self) -> bool {
        self.json
    }

    /// Prints this text unchanged.
    pub fn print(text: &str) -> Result<(), Failure> {
        write(text.trim_end())
    }

    /// Prints this object on one line.
    pub fn object(object: &Value) -> Result<(), Failure> {
        write(&escape_json(&object.to_string()))
    }

    /// Returns the `error` field of an object.
    pub fn error(failure: &Failure) -> Value {
        match failure {
            Failure::Refused(Refusal { word, sentence }) => {
                json!({ "word": word, "message": sentence })
            }
            other => json!({ "word": null, "message": other.to_string() }),
        }
    }

    /// Prints the value of a reply.
    pub fn value(self, exchange: &Exchange<'_>, value: &str) -> Result<(), Failure> {
        if !self.json {
            return write(value);
        }
        let mut object = exchange.object();
        object["reply"] = json!(value);
        object["numbers"] = json!(numbers(value));
        Output::object(&object)
    }

    /// Prints a reply as the server sent it, also an error.
    pub fn reply(self, exchange: &Exchange<'_>, reply: Reply) -> Result<(), Failure> {
        match reply {
            reply if !self.json => write(&reply.to_string()),
            Reply::Value(value) => self.value(exchange, &value),
            Reply::Refused(refusal) => self.failure(exchange, refusal.into()).map(|_| ()),
        }
    }

    /// Reports a failure: as an error to the caller, or in JSON. Returns the exit status.
    pub fn failure(self, exchange: &Exchange<'_>, failure: Failure) -> Result<ExitCode, Failure> {
        if !self.json {
            return Err(failure);
        }
        let mut object = exchange.object();
        object["error"] = Output::error(&failure);
        Output::object(&object)?;
        Ok(ExitCode::from(failure.exit_status()))
    }
}

impl<'a> Exchange<'a> {
    /// Returns an exchange that began at `begun` and has its reply now.
    pub fn since(begun: Instant, request: impl Into<Option<&'a str>>) -> Self {
        Exchange {
            request: request.into(),
            time: begun.elapsed(),
        }
    }

    fn object(&self) -> Value {
        json!({ "request": self.request, "seconds": self.time.as_secs_f64() })
    }
}

/// Returns the words of a value as numbers, or none if one of them is not a whole number.
fn numbers(value: &str) -> Vec<i64> {
    let numbers: Result<Vec<i64>, _> = value.split(' ').map(str::parse).collect();
    numbers.unwrap_or_default()
}

fn write(line: &str) -> Result<(), Failure> {
    stdio::print(&format!("{line}\n")).map_err(Failure::Print)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_numbers_are_numbers() {
        assert_eq!(numbers("42"), [42]);
        assert_eq!(numbers("3 -37"), [3, -37]);
        assert!(numbers("PONG").is_empty());
        assert!(numbers("1 x").is_empty());
        assert!(numbers("").is_empty());
    }
}
