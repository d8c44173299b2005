//! The schema for machines: descriptors of the commands' file and of the services that all gRPC
//! servers have, built from the command table.

use std::collections::BTreeSet;

use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{
    DescriptorProto, EnumDescriptorProto, EnumValueDescriptorProto, FieldDescriptorProto,
    FileDescriptorProto, MessageOptions, MethodDescriptorProto, OneofDescriptorProto,
    ServiceDescriptorProto,
};
use shared::command::sets::with_rpc;
use shared::command::{
    CommandSpec, Count, ErrorCode, Parameter, ParameterType, Rpc, Table, ValueType,
};
use shared::schema::{PACKAGE, USER};

use super::{health, reflection};

/// Returns the names of the services that a server with this table offers.
pub fn services(table: &Table) -> impl Iterator<Item = String> {
    let rpcs = table.entries().filter_map(|spec| spec.rpc.as_ref());
    let own: BTreeSet<String> = rpcs
        .map(|rpc| format!("{PACKAGE}.{}", rpc.service))
        .collect();
    let common = [health::SERVICE].into_iter().chain(reflection::SERVICES);
    own.into_iter().chain(common.map(str::to_string))
}

/// Returns all files.
pub fn files() -> Vec<FileDescriptorProto> {
    let mut files = vec![commands(), health_file()];
    files.extend(reflection::SERVICES.map(reflection_file));
    files
}

/// Returns all full names that a file declares.
pub fn symbols(file: &FileDescriptorProto) -> Vec<String> {
    let package = file.package();
    let mut symbols = Vec::new();
    for service in &file.service {
        let name = format!("{package}.{}", service.name());
        let methods = service.method.iter();
        symbols.extend(methods.map(|method| format!("{name}.{}", method.name())));
        symbols.push(name);
    }
    for message in &file.message_type {
        let name = format!("{package}.{}", message.name());
        let fields = message.field.iter().map(FieldDescriptorProto::name);
        let enums = message.enum_type.iter().map(EnumDescriptorProto::name);
        let nested = message.nested_type.iter().map(DescriptorProto::name);
        let within = fields.chain(enums).chain(nested);
        symbols.extend(within.map(|within| format!("{name}.{within}")));
        symbols.push(name);
    }
    let enums = file.enum_type.iter();
    symbols.extend(enums.map(|declared| format!("{package}.{}", declared.name())));
    symbols
}

/// The commands' file: `proto/blockchain_tcp/v1/blockchain_tcp.proto`, with all sets of commands.
fn commands() -> FileDescriptorProto {
    let mut file = file("blockchain_tcp/v1/blockchain_tcp.proto", PACKAGE);
    for (spec, rpc) in with_rpc() {
        let method = MethodDescriptorProto {
            server_streaming: (spec.result == ValueType::Users).then_some(true),
            ..unary(
                rpc.method,
                &own(rpc.method, "Request"),
                &own(rpc.method, "Response"),
            )
        };
        match file.service.iter_mut().find(|s| s.name() == rpc.service) {
            Some(service) => service.method.push(method),
            None => file.service.push(service(rpc.service, vec![method])),
        }
        let parameters = spec.parameters.iter().enumerate();
        let parameters = parameters.map(|(index, parameter)| argument(parameter, index + 1));
        let request = message(&format!("{}Request", rpc.method), parameters.collect());
        file.message_type.push(request);
        let response = message(&format!("{}Response", rpc.method), vec![result(spec)]);
        file.message_type.push(response);
    }
    file.message_type.push(message("User", user_fields()));
    file.message_type.push(envelope(
        "Request",
        "command",
        with_rpc().map(|(_, rpc)| rpc),
    ));
    file.message_type.push(envelope(
        "Response",
        "result",
        with_rpc().map(|(_, rpc)| rpc),
    ));
    let code = typed("code", 1, Type::Enum, &format!(".{PACKAGE}.ErrorCode"));
    file.message_type.push(message(
        "Error",
        vec![code, field("message", 2, Type::String)],
    ));
    let codes = ErrorCode::ALL.map(|code| (format!("ERROR_CODE_{}", code.word()), code as i32));
    let unspecified = ("ERROR_CODE_UNSPECIFIED".to_string(), 0);
    file.enum_type.push(enumeration(
        "ErrorCode",
        [unspecified].into_iter().chain(codes),
    ));
    file
}

fn own(method: &str, suffix: &str) -> String {
    format!(".{PACKAGE}.{method}{suffix}")
}

fn argument(parameter: &Parameter, number: usize) -> FieldDescriptorProto {
    let kind = match parameter.kind {
        ParameterType::Integer { .. } => Type::Int64,
        ParameterType::Word | ParameterType::Id => Type::String,
    };
    let field = field(&parameter.name.to_lowercase(), number as i32, kind);
    match parameter.count {
        Count::One | Count::Optional => field,
        Count::Repeated => repeated(field),
    }
}

fn result(spec: &CommandSpec) -> FieldDescriptorProto {
    match spec.result {
        ValueType::Integer => field("value", 1, Type::Int64),
        ValueType::Integers => repeated(field("values", 1, Type::Int64)),
        ValueType::Text => field("value", 1, Type::String),
        ValueType::User => typed("user", 1, Type::Message, &format!(".{PACKAGE}.User")),
        ValueType::Users => repeated(typed(
            "users",
            1,
            Type::Message,
            &format!(".{PACKAGE}.User"),
        )),
    }
}

/// Returns the fields of a user.
fn user_fields() -> Vec<FieldDescriptorProto> {
    let fields = USER.iter().zip(1..).map(|((kind, name, _), number)| {
        let kind = match *kind {
            "int64" => Type::Int64,
            _ => Type::String,
        };
        field(name, number, kind)
    });
    fields.collect()
}

fn envelope<'a>(name: &str, oneof: &str, rpcs: impl Iterator<Item = &'a Rpc>) -> DescriptorProto {
    let mut choices = Vec::new();
    if name == "Response" {
        choices.push(typed(
            "error",
            2,
            Type::Message,
            &format!(".{PACKAGE}.Error"),
        ));
    }
    choices.extend(rpcs.map(|rpc| {
        let kind = own(rpc.method, name);
        typed(&rpc.field(), rpc.number as i32, Type::Message, &kind)
    }));
    one_of(
        message(name, vec![field("id", 1, Type::Uint64)]),
        oneof,
        choices,
    )
}

fn health_file() -> FileDescriptorProto {
    let name = |name: &str| format!(".grpc.health.v1.{name}");
    let mut file = file("grpc/health/v1/health.proto", "grpc.health.v1");
    let status = typed(
        "status",
        1,
        Type::Enum,
        &name("HealthCheckResponse.ServingStatus"),
    );
    let states = ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"];
    let states = (0..)
        .zip(states)
        .map(|(number, state)| (state.to_string(), number));
    let entry = DescriptorProto {
        options: Some(MessageOptions {
            map_entry: Some(true),
            ..Default::default()
        }),
        ..message(
            "StatusesEntry",
            vec![
                field("key", 1, Type::String),
                typed("value", 2, Type::Message, &name("HealthCheckResponse")),
            ],
        )
    };
    let statuses = typed(
        "statuses",
        1,
        Type::Message,
        &name("HealthListResponse.StatusesEntry"),
    );
    file.message_type = vec![
        message(
            "HealthCheckRequest",
            vec![field("service", 1, Type::String)],
        ),
        DescriptorProto {
            enum_type: vec![enumeration("ServingStatus", states)],
            ..message("HealthCheckResponse", vec![status])
        },
        message("HealthListRequest", vec![]),
        DescriptorProto {
            nested_type: vec![entry],
            ..message("HealthListResponse", vec![repeated(statuses)])
        },
    ];
    let (request, response) = (name("HealthCheckRequest"), name("HealthCheckResponse"));
    let watch = MethodDescriptorProto {
        server_streaming: Some(true),
        ..unary("Watch", &request, &response)
    };
    file.service = vec![service(
        "Health",
        vec![
            unary("Check", &request, &response),
            unary(
                "List",
                &name("HealthListRequest"),
                &name("HealthListResponse"),
            ),
            watch,
        ],
    )];
    file
}

fn reflection_file(service_name: &str) -> FileDescriptorProto {
    let package = service_name.trim_end_matches(".ServerReflection");
    let path = format!("{}/reflection.proto", package.replace('.', "/"));
    let name = |name: &str| format!(".{package}.{name}");
    let text = |name, number| field(name, number, Type::String);
    let of = |field_name, number, kind: &str| typed(field_name, number, Type::Message, &name(kind));
    let mut file = file(&path, package);
    let (request, response) = ("ServerReflectionRequest", "ServerReflectionResponse");
    let asked = vec![
        text("file_by_filename", 3),
        text("file_containing_symbol", 4),
        of("file_containing_extension", 5, "ExtensionRequest"),
        text("all_extension_numbers_of_type", 6),
        text("list_services", 7),
    ];
    let answers = vec![
        of("file_descriptor_response", 4, "FileDescriptorResponse"),
        of(
            "all_extension_numbers_response",
            5,
            "ExtensionNumberResponse",
        ),
        of("list_services_response", 6, "ListServiceResponse"),
        of("error_response", 7, "ErrorResponse"),
    ];
    file.message_type = vec![
        one_of(
            message(request, vec![text("host", 1)]),
            "message_request",
            asked,
        ),
        message(
            "ExtensionRequest",
            vec![
                text("containing_type", 1),
                field("extension_number", 2, Type::Int32),
            ],
        ),
        one_of(
            message(
                response,
                vec![text("valid_host", 1), of("original_request", 2, request)],
            ),
            "message_response",
            answers,
        ),
        message(
            "FileDescriptorResponse",
            vec![repeated(field("file_descriptor_proto", 1, Type::Bytes))],
        ),
        message(
            "ExtensionNumberResponse",
            vec![
                text("base_type_name", 1),
                repeated(field("extension_number", 2, Type::Int32)),
            ],
        ),
        message(
            "ListServiceResponse",
            vec![repeated(of("service", 1, "ServiceResponse"))],
        ),
        message("ServiceResponse", vec![text("name", 1)]),
        message(
            "ErrorResponse",
            vec![
                field("error_code", 1, Type::Int32),
                text("error_message", 2),
            ],
        ),
    ];
    let method = MethodDescriptorProto {
        client_streaming: Some(true),
        server_streaming: Some(true),
        ..unary("ServerReflectionInfo", &name(request), &name(response))
    };
    file.service = vec![service("ServerReflection", vec![method])];
    file
}

fn file(name: &str, package: &str) -> FileDescriptorProto {
    FileDescriptorProto {
        name: Some(name.to_string()),
        package: Some(package.to_string()),
        syntax: Some("proto3".to_string()),
        ..Default::default()
    }
}

fn service(name: &str, method: Vec<MethodDescriptorProto>) -> ServiceDescriptorProto {
    ServiceDescriptorProto {
        name: Some(name.to_string()),
        method,
        ..Default::default()
    }
}

fn unary(name: &str, request: &str, response: &str) -> MethodDescriptorProto {
    MethodDescriptorProto {
        name: Some(name.to_string()),
        input_type: Some(request.to_string()),
        output_type: Some(response.to_string()),
        ..Default::default()
    }
}

fn message(name: &str, field: Vec<FieldDescriptorProto>) -> DescriptorProto {
    DescriptorProto {
        name: Some(name.to_string()),
        field,
        ..Default::default()
    }
}

/// Adds fields to a message of which one at most is set.
fn one_of(
    mut message: DescriptorProto,
    name: &str,
    fields: Vec<FieldDescriptorProto>,
) -> DescriptorProto {
    message.oneof_decl.push(OneofDescriptorProto {
        name: Some(name.to_string()),
        ..Default::default()
    });
    message
        .field
        .extend(fields.into_iter().map(|field| FieldDescriptorProto {
            oneof_index: Some(0),
            ..field
        }));
    message
}

fn field(name: &str, number: i32, kind: Type) -> FieldDescriptorProto {
    FieldDescriptorProto {
        name: Some(name.to_string()),
        number: Some(number),
        label: Some(Label::Optional.into()),
        r#type: Some(kind.into()),
        ..Default::default()
    }
}

/// Returns a field whose type has a name.
fn typed(name: &str, number: i32, kind: Type, type_name: &str) -> FieldDescriptorProto {
    FieldDescriptorProto {
        type_name: Some(type_name.to_string()),
        ..field(name, number, kind)
    }
}

fn repeated(field: FieldDescriptorProto) -> FieldDescriptorProto {
    FieldDescriptorProto {
        label: Some(Label::Repeated.into()),
        ..field
    }
}

fn enumeration(name: &str, values: impl Iterator<Item = (String, i32)>) -> EnumDescriptorProto {
    let value = |(name, number)| EnumValueDescriptorProto {
        name: Some(name),
        number: Some(number),
        ..Default::default()
    };
    EnumDescriptorProto {
        name: Some(name.to_string()),
        value: values.map(value).collect(),
        ..Default::default()
    }
}
