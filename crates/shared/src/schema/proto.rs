//! The schema as text: `proto/blockchain_tcp/v1/blockchain_tcp.proto`, generated from the command
//! table.

use std::fmt::Write as _;

use super::envelope::ERROR;
use crate::command::sets::with_rpc;
use crate::command::{CommandSpec, Count, ErrorCode, Parameter, ParameterType, Rpc, ValueType};

/// The package of the schema.
pub const PACKAGE: &str = "blockchain_tcp.v1";

/// The fields of a user in the order of their numbers, from 1 on: type, name and comment.
pub const USER: [(&str, &str, &str); 6] = [
    ("string", "id", ""),
    ("string", "name", "Empty or missing if there is none."),
    ("string", "email", "Empty or missing if there is none."),
    (
        "string",
        "members",
        "All further members, as a JSON object.",
    ),
    (
        "int64",
        "created_at",
        "Times are in microseconds since 1970.",
    ),
    ("int64", "updated_at", ""),
];

/// Returns the schema of all sets of commands.
pub fn proto() -> String {
    let mut services: Vec<&str> = with_rpc().map(|(_, rpc)| rpc.service).collect();
    services.dedup();

    let mut text = format!(
        "// The commands of blockchain-tcpd. Generated from its command table by `make proto`.\n\
         syntax = \"proto3\";\n\npackage {PACKAGE};\n"
    );
    for service in services {
        block(&mut text, &format!("service {service}"), |body| {
            for (spec, Rpc { method, .. }) in with_rpc().filter(|(_, rpc)| rpc.service == service) {
                let _ = writeln!(body, "  // {}.", spec.summary_sentence());
                let stream = match spec.result {
                    ValueType::Users => "stream ",
                    _ => "",
                };
                let _ = writeln!(
                    body,
                    "  rpc {method}({method}Request) returns ({stream}{method}Response);"
                );
            }
        });
    }
    for (spec, Rpc { method, .. }) in with_rpc() {
        block(&mut text, &format!("message {method}Request"), |body| {
            for (index, parameter) in spec.parameters.iter().enumerate() {
                parameter_field(body, parameter, index + 1);
            }
        });
        let result = match spec.result {
            ValueType::Integer => "int64 value",
            ValueType::Integers => "repeated int64 values",
            ValueType::Text => "string value",
            ValueType::User => "User user",
            ValueType::Users => "repeated User users",
        };
        block(&mut text, &format!("message {method}Response"), |body| {
            let _ = writeln!(body, "  {result} = 1;");
        });
    }
    text.push_str("\n// A user.");
    block(&mut text, "message User", |body| {
        for (index, (kind, name, comment)) in USER.iter().enumerate() {
            if !comment.is_empty() {
                let _ = writeln!(body, "  // {comment}");
            }
            let _ = writeln!(body, "  {kind} {name} = {};", index + 1);
        }
    });
    text.push_str(
        "\n// What a client sends over `protobuf://`, each message behind its length as a varint.",
    );
    envelope(&mut text, "Request", "command", "Request", with_rpc());
    text.push_str("\n// What the server answers, in the order of the requests.");
    envelope(&mut text, "Response", "result", "Response", with_rpc());
    block(&mut text, "message Error", |body| {
        body.push_str("  ErrorCode code = 1;\n  // A sentence for people; it may change.\n  string message = 2;\n");
    });
    block(&mut text, "enum ErrorCode", |body| {
        body.push_str("  ERROR_CODE_UNSPECIFIED = 0;\n");
        for code in ErrorCode::ALL {
            let _ = writeln!(body, "  ERROR_CODE_{} = {};", code.word(), code as u32);
        }
    });
    text
}

fn block(text: &mut String, head: &str, write: impl FnOnce(&mut String)) {
    let mut body = String::new();
    write(&mut body);
    match body.is_empty() {
        true => text.push_str(&format!("\n{head} {{}}\n")),
        false => text.push_str(&format!("\n{head} {{\n{body}}}\n")),
    }
}

fn parameter_field(body: &mut String, parameter: &Parameter, number: usize) {
    let label = match parameter.count {
        // Older generators don't know "optional".
        Count::One | Count::Optional => "",
        Count::Repeated => "repeated ",
    };
    let kind = match parameter.kind {
        ParameterType::Integer { .. } => "int64",
        ParameterType::Word | ParameterType::Id => "string",
    };
    let name = parameter.name.to_lowercase();
    let _ = writeln!(body, "  {label}{kind} {name} = {number};");
}

fn envelope<'a>(
    text: &mut String,
    name: &str,
    oneof: &str,
    suffix: &str,
    all: impl Iterator<Item = (&'a CommandSpec, &'a Rpc)>,
) {
    block(text, &format!("message {name}"), |body| {
        body.push_str("  // Chosen by the client; the response has the same.\n  uint64 id = 1;\n");
        let _ = writeln!(body, "  oneof {oneof} {{");
        if name == "Response" {
            let _ = writeln!(body, "    Error error = {ERROR};");
        }
        for (_, rpc) in all {
            let _ = writeln!(
                body,
                "    {}{suffix} {} = {};",
                rpc.method,
                rpc.field(),
                rpc.number
            );
        }
        body.push_str("  }\n");
    });
}

impl CommandSpec {
    /// Returns what it does, as a sentence without its end.
    fn summary_sentence(&self) -> String {
        let mut letters = self.summary.chars();
        let first = letters.next().map(|first| first.to_ascii_uppercase());
        first.into_iter().chain(letters).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_file_is_generated_and_its_numbers_are_used_once() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../proto/blockchain_tcp/v1/blockchain_tcp.proto"
        );
        if std::env::var_os("BLOCKCHAIN_TCPD_WRITE_PROTO").is_some() {
            std::fs::write(path, proto()).unwrap();
        }
        let file = std::fs::read_to_string(path).unwrap();
        assert_eq!(file, proto(), "`make proto` writes it");
        let numbers: Vec<u32> = with_rpc().map(|(_, rpc)| rpc.number).collect();
        assert_eq!(numbers.iter().collect::<BTreeSet<_>>().len(), numbers.len());
        assert!(numbers.iter().all(|number| *number > ERROR));
        for (index, code) in ErrorCode::ALL.into_iter().enumerate() {
            assert_eq!(code as usize, index + 1);
        }
    }
}
