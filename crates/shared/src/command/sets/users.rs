//! Commands about the users in the store.

use std::sync::Arc;

use crate::command::user::{LONGEST_PAGE, UserStore};
use crate::command::{
    Argument, Call, CommandClass, CommandError, CommandSet, CommandSpec, Context, Parameter, Rpc,
    Unavailable, Value, ValueType,
};

/// USERS, USER and GET_USERS.
pub const SET: CommandSet = &[
    CommandSpec {
        name: "USERS",
        parameters: &[],
        result: ValueType::Integer,
        summary: "the number of users",
        class: CommandClass::Query,
        rpc: Some(Rpc::new("Users", "Count", 30)),
        execute: |context, _| {
            let count = store(context)?.count();
            count.map(Value::from).map_err(CommandError::Unavailable)
        },
    },
    CommandSpec {
        name: "USER",
        parameters: &[Parameter::id("ID")],
        result: ValueType::User,
        summary: "the user of this id, as JSON",
        class: CommandClass::Query,
        rpc: Some(Rpc::new("Users", "GetUser", 31)),
        execute: user,
    },
    CommandSpec {
        name: "GET_USERS",
        parameters: &[
            Parameter::id("AFTER").optional(),
            Parameter::integer_between("LIMIT", 1, LONGEST_PAGE as i64).optional(),
        ],
        result: ValueType::Users,
        summary: "the users ordered by id, from the one after AFTER on, at most LIMIT and 1000, as JSON",
        class: CommandClass::Query,
        rpc: Some(Rpc::new("Users", "GetUsers", 32)),
        execute: page,
    },
];

/// Returns whether this is a command of the set.
pub fn has(spec: &CommandSpec) -> bool {
    SET.iter().any(|own| own.name == spec.name)
}

/// Returns the store. A call of it may wait.
fn store(context: &Context) -> Result<&Arc<dyn UserStore>, CommandError<'_>> {
    if !context.may_wait {
        return Err(CommandError::Deferred);
    }
    let none = CommandError::Unavailable(Unavailable::Store);
    context.users.as_ref().ok_or(none)
}

fn user<'a>(context: &'a Context, call: &Call<'a>) -> Result<Value<'a>, CommandError<'a>> {
    let [Argument::Text(id)] = &call.arguments[..] else {
        return Err(CommandError::Usage(call.spec));
    };
    match store(context)?.user(id) {
        Ok(Some(user)) => Ok(Value::User(Box::new(user))),
        Ok(None) => Err(CommandError::NotFound(id.to_string())),
        Err(unavailable) => Err(CommandError::Unavailable(unavailable)),
    }
}

fn page<'a>(context: &'a Context, call: &Call<'a>) -> Result<Value<'a>, CommandError<'a>> {
    let (after, limit) = match &call.arguments[..] {
        [] => ("", LONGEST_PAGE),
        [Argument::Text(after)] => (&**after, LONGEST_PAGE),
        // It is between 1 and the longest page.
        [Argument::Text(after), Argument::Integer(limit)] => (&**after, *limit as usize),
        _ => return Err(CommandError::Usage(call.spec)),
    };
    let users = store(context)?.page(after, limit);
    users.map(Value::Users).map_err(CommandError::Unavailable)
}
