//! Health checks: `grpc.health.v1.Health`.

use std::collections::BTreeMap;

use prost::Message;
use shared::command::Context;

use super::call::reply;
use super::descriptor;
use super::status::{Code, Status};

/// The service.
pub const SERVICE: &str = "grpc.health.v1.Health";

#[derive(Clone, PartialEq, Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, Message)]
struct HealthCheckResponse {
    #[prost(enumeration = "Serving", tag = "1")]
    status: i32,
}

#[derive(Clone, PartialEq, Message)]
struct HealthListResponse {
    #[prost(btree_map = "string, message", tag = "1")]
    statuses: BTreeMap<String, HealthCheckResponse>,
}

/// Whether a service can be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Serving {
    /// It was not said.
    Unset = 0,
    /// It can.
    Yes = 1,
    /// It can't: the server stops soon.
    No = 2,
    /// There is no such service.
    UnknownService = 3,
}

impl Serving {
    /// Returns the state of a service; the empty name is the server's.
    pub fn of(service: &str, context: &Context) -> Self {
        let is_known =
            service.is_empty() || descriptor::services(&context.table).any(|name| name == service);
        match (is_known, context.draining.get()) {
            (false, _) => Serving::UnknownService,
            (true, None) => Serving::Yes,
            (true, Some(_)) => Serving::No,
        }
    }

    /// Returns a message that says so.
    pub fn message(self) -> Vec<u8> {
        encode(&HealthCheckResponse {
            status: self.into(),
        })
    }
}

fn encode(message: &impl Message) -> Vec<u8> {
    // Encoding into a Vec can't fail.
    reply(|to| message.encode(to).unwrap_or_default())
}

/// Returns the service that a request asks about.
pub fn service(request: &[u8]) -> Result<String, Status> {
    let request = HealthCheckRequest::decode(request);
    let request = request.map_err(|_| Status::new(Code::Internal, "not a protobuf message"))?;
    Ok(request.service)
}

/// Answers `Check`.
pub fn check(request: &[u8], context: &Context) -> Result<Vec<u8>, Status> {
    match Serving::of(&service(request)?, context) {
        Serving::UnknownService => Err(Status::new(Code::NotFound, "no such service")),
        serving => Ok(serving.message()),
    }
}

/// Answers `List`.
pub fn list(context: &Context) -> Vec<u8> {
    let services = descriptor::services(&context.table).chain([String::new()]);
    let statuses = services.map(|service| {
        let status = Serving::of(&service, context).into();
        (service, HealthCheckResponse { status })
    });
    encode(&HealthListResponse {
        statuses: statuses.collect(),
    })
}
