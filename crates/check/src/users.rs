//! The check of the users (`--users`): asks for their number and for a page of them by JSON-RPC, and
//! accepts no user but a right one. A page, because all users may be millions.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use shared::dial::{Deadline, HttpResponse, Scheme, Server, http};
use shared::text::quoted;

use crate::options::Options;
use crate::probe;
use crate::report::{Report, Status};
use crate::trace::Trace;

/// Largest age in seconds that an `Age` field has (RFC 9111, section 1.2.2).
const LARGEST_AGE: u64 = 1 << 31;

/// Answers of the server, all of them valid.
#[derive(Debug)]
pub struct Answers {
    /// Number of users.
    pub users: u64,
    /// Number of users that were read and checked.
    pub checked: usize,
    /// Seconds since the last complete pull of the feed, if the server says it.
    pub age: Option<u64>,
    /// Time from the first attempt to connect to the last answer.
    pub time: Duration,
    /// Address that answered.
    pub address: SocketAddr,
}

/// Asks the server. Returns a report if it does not answer as it must.
pub fn ask(options: &Options, trace: &mut Trace) -> Result<Answers, Report> {
    let deadline = Deadline::after(options.timeout);
    // The connection carries bytes; what they mean is read here.
    let server = Server {
        scheme: Scheme::Tcp,
        host: options.host.clone(),
        port: options.port,
    };
    let limit = options.users_limit;
    let calls = [
        r#"{"jsonrpc":"2.0","id":1,"method":"users","params":[]}"#.to_string(),
        format!(r#"{{"jsonrpc":"2.0","id":2,"method":"get_users","params":{{"limit":{limit}}}}}"#),
    ];
    let requests = [&calls[0], &calls[1]].map(|call| http::post(&server, call, call == &calls[1]));
    let requests = requests.concat();
    let (begun, (mut connection, first)) =
        probe::connect(&server, options, deadline, trace, |mut connection, by| {
            connection.send(requests.as_bytes(), by)?;
            // If an address sends nothing, the next is tried.
            let first = connection.response("users", by)?;
            Ok((connection, first))
        })?;
    let users = result("users", 1, &first, trace)?;
    let users = users.as_u64().ok_or_else(|| {
        let answer = quoted(users.to_string().as_bytes());
        critical(format!("users is answered {answer} instead of a number"))
    })?;
    let second = connection.response("get_users", deadline)?;
    let page = result("get_users", 2, &second, trace)?;
    let age = age(&second)?;
    let checked = check_page(&page, limit).map_err(critical)?;
    if checked == 0 && users > 0 {
        let text = format!("get_users has no user, although users is answered {users}");
        return Err(critical(text));
    }
    let (time, address) = (begun.elapsed(), connection.address());
    connection.end(deadline)?;
    trace.add(|| "closed by the server".to_string());
    Ok(Answers {
        users,
        checked,
        age,
        time,
        address,
    })
}

fn critical(text: String) -> Report {
    Report::new(Status::Critical, text)
}

/// Returns the result in the response to the call of `method` with the id `number`.
fn result(
    method: &str,
    number: u64,
    response: &HttpResponse,
    trace: &mut Trace,
) -> Result<Value, Report> {
    let body = quoted(&response.body);
    trace.add(|| format!("{method}: {} {body}", response.status));
    let wrong = |what: &str| critical(format!("the answer to {method} {what}: {body}"));
    let answer = serde_json::from_slice(&response.body);
    let mut answer = match answer {
        Ok(Value::Object(answer)) => answer,
        _ if response.status != 200 => {
            return Err(wrong(&format!("has the status {}", response.status)));
        }
        Ok(_) => return Err(wrong("is no object")),
        Err(_) => return Err(wrong("is no JSON")),
    };
    if let Some(error @ Value::Object(_)) = answer.get("error") {
        return Err(refused(method, error));
    }
    if response.status != 200 {
        return Err(wrong(&format!("has the status {}", response.status)));
    }
    if answer.get("jsonrpc") != Some(&Value::from("2.0")) {
        return Err(wrong("is not of JSON-RPC 2.0"));
    }
    if answer.get("id") != Some(&Value::from(number)) {
        return Err(wrong(&format!("has not the id {number}")));
    }
    match (answer.remove("result"), answer.contains_key("error")) {
        (Some(result), false) => Ok(result),
        _ => Err(wrong("has not a result alone")),
    }
}

/// Returns the report on an error of the server.
fn refused(method: &str, error: &Value) -> Report {
    const METHOD_NOT_FOUND: i64 = -32601;
    let code = &error["code"];
    let hint = match code.as_i64() {
        Some(METHOD_NOT_FOUND) => ": it runs without --commands users",
        _ => "",
    };
    let said = |member: &str| error[member].as_str().unwrap_or_default().to_string();
    let said = format!("ERR {} {}", said("data"), said("message"));
    let code = code
        .as_i64()
        .map_or(String::new(), |code| format!(" {code}"));
    let said = quoted(said.as_bytes());
    critical(format!(
        "the server answers {method} by the error{code}, {said}{hint}"
    ))
}

/// Returns the age that the response says.
fn age(response: &HttpResponse) -> Result<Option<u64>, Report> {
    let mut fields = response.fields("age");
    let Some(field) = fields.next() else {
        return Ok(None);
    };
    let digits = std::str::from_utf8(field).ok();
    let digits = digits.filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
    let age = digits.and_then(|digits| digits.parse().ok());
    let age = age.filter(|age| *age <= LARGEST_AGE && fields.next().is_none());
    match age {
        Some(age) => Ok(Some(age)),
        None => Err(critical(format!(
            "get_users is answered with the Age {} instead of a number of seconds",
            quoted(field)
        ))),
    }
}

/// Checks a page of at most this number of users. Returns their number, or what is wrong.
fn check_page(page: &Value, limit: usize) -> Result<usize, String> {
    let Value::Array(users) = page else {
        let page = quoted(page.to_string().as_bytes());
        return Err(format!("get_users is answered {page} instead of an array"));
    };
    if users.len() > limit {
        let count = users.len();
        return Err(format!(
            "get_users has {count} users instead of {limit} at most"
        ));
    }
    let mut before = "";
    for (index, user) in users.iter().enumerate() {
        before = check_user(user, before)
            .map_err(|what| format!("user {} of get_users {what}", index + 1))?;
    }
    Ok(users.len())
}

/// Checks a user after the one with the id `before`. Returns its id, or what is wrong.
fn check_user<'a>(user: &'a Value, before: &str) -> Result<&'a str, String> {
    if !user.is_object() {
        return Err("is no object".to_string());
    }
    let id = user["id"].as_str().filter(|id| !id.is_empty());
    let id = id.ok_or("has no id, or one that is no text")?;
    let named = quoted(id.as_bytes());
    if id <= before {
        let before = quoted(before.as_bytes());
        return Err(format!(
            "has the id {named}, which does not follow {before}"
        ));
    }
    for member in ["name", "email"] {
        if !matches!(user.get(member), Some(Value::String(_) | Value::Null)) {
            return Err(format!("({named}) has no {member} that is a text or null"));
        }
    }
    let time = |member: &str| {
        let time = user[member].as_i64();
        time.ok_or_else(|| format!("({named}) has no {member} that is a whole number"))
    };
    let (created, updated) = (time("created_at")?, time("updated_at")?);
    match created <= updated {
        true => Ok(id),
        false => Err(format!(
            "({named}) was updated before it was created: {updated}, {created}"
        )),
    }
}
