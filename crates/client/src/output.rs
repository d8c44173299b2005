//! Standard output: the value alone, or with `--json` one object per line.

use std::borrow::Cow;
use std::process::ExitCode;
use std::time::Instant;

use serde_json::{Value, json};
use shared::dial::{Refusal, Reply};
use shared::stdio;
use shared::text::escape_json;

use crate::failure::Failure;

/// A request whose outcome is to be printed.
pub struct Exchange<'a> {
    json: bool,
    /// The request, if there is one.
    request: Option<Cow<'a, str>>,
    /// When it was made, with the connection attempt before it.
    begun: Instant,
}

impl<'a> Exchange<'a> {
    /// Begins an exchange, to be printed as JSON if `json` is set.
    pub fn begin(json: bool, request: Option<&'a [u8]>) -> Self {
        Exchange {
            json,
            request: request.map(String::from_utf8_lossy),
            begun: Instant::now(),
        }
    }

    /// Prints the value of a reply.
    pub fn value(&self, value: &str) -> Result<(), Failure> {
        if !self.json {
            return write(value);
        }
        let mut object = self.object();
        object["reply"] = json!(value);
        object["numbers"] = json!(numbers(value));
        print_object(&object)
    }

    /// Prints a reply as the server sent it, also an error.
    pub fn reply(&self, reply: Reply) -> Result<(), Failure> {
        match reply {
            reply if !self.json => write(&reply.to_string()),
            Reply::Value(value) => self.value(&value),
            Reply::Refused(refusal) => self.failure(refusal.into()).map(|_| ()),
        }
    }

    /// Reports a failure: as an error to the caller, or in JSON. Returns the exit status.
    pub fn failure(&self, failure: Failure) -> Result<ExitCode, Failure> {
        if !self.json {
            return Err(failure);
        }
        let mut object = self.object();
        object["error"] = error(&failure);
        print_object(&object)?;
        Ok(ExitCode::from(failure.exit_status()))
    }

    fn object(&self) -> Value {
        json!({ "request": self.request, "seconds": self.begun.elapsed().as_secs_f64() })
    }
}

/// Prints this text unchanged.
pub fn print(text: &str) -> Result<(), Failure> {
    write(text.trim_end())
}

/// Prints this object on one line.
pub fn print_object(object: &Value) -> Result<(), Failure> {
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
