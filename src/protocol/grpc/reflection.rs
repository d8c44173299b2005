//! Reflection: `grpc.reflection.v1.ServerReflection`, and v1alpha, which has the same messages and
//! which most tools ask for.

use std::sync::LazyLock;

use prost::{Message, Oneof};
use shared::command::Table;

use super::call::reply;
use super::descriptor;
use super::status::{Code, Status};

/// The service under both of its names.
pub const SERVICES: [&str; 2] = [
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
];

#[derive(Clone, PartialEq, Message)]
struct Request {
    #[prost(string, tag = "1")]
    host: String,
    #[prost(oneof = "Question", tags = "3, 4, 5, 6, 7")]
    question: Option<Question>,
}

#[derive(Clone, PartialEq, Oneof)]
enum Question {
    #[prost(string, tag = "3")]
    FileByFilename(String),
    #[prost(string, tag = "4")]
    FileContainingSymbol(String),
    #[prost(message, tag = "5")]
    FileContainingExtension(ExtensionRequest),
    #[prost(string, tag = "6")]
    AllExtensionNumbersOfType(String),
    #[prost(string, tag = "7")]
    ListServices(String),
}

#[derive(Clone, PartialEq, Message)]
struct ExtensionRequest {
    #[prost(string, tag = "1")]
    containing_type: String,
    #[prost(int32, tag = "2")]
    extension_number: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Response {
    #[prost(string, tag = "1")]
    valid_host: String,
    #[prost(message, optional, tag = "2")]
    original_request: Option<Request>,
    #[prost(oneof = "Answer", tags = "4, 5, 6, 7")]
    answer: Option<Answer>,
}

#[derive(Clone, PartialEq, Oneof)]
enum Answer {
    #[prost(message, tag = "4")]
    Files(FileDescriptorResponse),
    #[prost(message, tag = "5")]
    Extensions(ExtensionNumberResponse),
    #[prost(message, tag = "6")]
    Services(ListServiceResponse),
    #[prost(message, tag = "7")]
    Error(ErrorResponse),
}

#[derive(Clone, PartialEq, Message)]
struct FileDescriptorResponse {
    #[prost(bytes = "vec", repeated, tag = "1")]
    files: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct ExtensionNumberResponse {
    #[prost(string, tag = "1")]
    base_type_name: String,
    #[prost(int32, repeated, tag = "2")]
    extension_number: Vec<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct ListServiceResponse {
    #[prost(message, repeated, tag = "1")]
    service: Vec<ServiceResponse>,
}

#[derive(Clone, PartialEq, Message)]
struct ServiceResponse {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct ErrorResponse {
    #[prost(int32, tag = "1")]
    error_code: i32,
    #[prost(string, tag = "2")]
    error_message: String,
}

/// A file with what it declares.
struct File {
    name: String,
    symbols: Vec<String>,
    encoded: Vec<u8>,
}

/// Built when the first client asks.
static FILES: LazyLock<Vec<File>> = LazyLock::new(|| {
    let files = descriptor::files().into_iter().map(|file| File {
        name: file.name().to_string(),
        symbols: descriptor::symbols(&file),
        encoded: file.encode_to_vec(),
    });
    files.collect()
});

/// Answers a message.
pub fn answer(message: &[u8], table: &Table) -> Result<Vec<u8>, Status> {
    let request = Request::decode(message);
    let request = request.map_err(|_| Status::new(Code::Internal, "not a protobuf message"))?;
    let find = |is: &dyn Fn(&File) -> bool| match FILES.iter().find(|file| is(file)) {
        Some(file) => Answer::Files(FileDescriptorResponse {
            files: vec![file.encoded.clone()],
        }),
        None => error(Code::NotFound, "not found"),
    };
    let answer = match &request.question {
        Some(Question::FileByFilename(name)) => find(&|file| file.name == *name),
        Some(Question::FileContainingSymbol(symbol)) => find(&|file| file.symbols.contains(symbol)),
        Some(Question::ListServices(_)) => {
            let service = descriptor::services(table);
            let service = service.map(|name| ServiceResponse { name }).collect();
            Answer::Services(ListServiceResponse { service })
        }
        // There are no extensions in proto3.
        Some(Question::AllExtensionNumbersOfType(name))
            if FILES.iter().any(|file| file.symbols.contains(name)) =>
        {
            Answer::Extensions(ExtensionNumberResponse {
                base_type_name: name.clone(),
                extension_number: Vec::new(),
            })
        }
        Some(Question::AllExtensionNumbersOfType(_) | Question::FileContainingExtension(_)) => {
            error(Code::NotFound, "not found")
        }
        None => error(Code::InvalidArgument, "the message asks nothing"),
    };
    let response = Response {
        valid_host: request.host.clone(),
        original_request: Some(request),
        answer: Some(answer),
    };
    // Encoding into a Vec can't fail.
    Ok(reply(|to| response.encode(to).unwrap_or_default()))
}

fn error(code: Code, message: &str) -> Answer {
    Answer::Error(ErrorResponse {
        error_code: code as i32,
        error_message: message.to_string(),
    })
}
