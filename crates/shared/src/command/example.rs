//! Commands about words: the example of CONTRIBUTING.md.

use crate::command::{
    Argument, CommandClass, CommandError, CommandSet, CommandSpec, Parameter, Rpc, Value, ValueType,
};

/// The command set `words`.
pub const SET: CommandSet = &[CommandSpec {
    name: "LENGTH",
    parameters: &[Parameter::word("WORD")],
    result: ValueType::Integer,
    summary: "how many characters a word has",
    class: CommandClass::Query,
    rpc: Some(Rpc::new("Words", "Length", 100)),
    execute: |_, call| match call.arguments[..] {
        [Argument::Word(word)] => Ok(Value::from(word.len() as u64)),
        _ => Err(CommandError::Usage(call.spec)),
    },
}];

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::command::Context;

    #[test]
    fn the_example_is_what_contributing_shows_and_answers() {
        let (set, _) = include_str!("example.rs")
            .split_once("\n#[cfg(test)]")
            .expect("the tests are below");
        let shown = format!("\n```rust\n{set}```\n");
        assert!(include_str!("../../../../CONTRIBUTING.md").contains(&shown));
        let context = Context::new(Arc::default(), uuid::Uuid::nil(), &[SET]);
        assert_eq!(context.reply_to("LENGTH chain"), "5");
        assert_eq!(context.reply_to("LENGTH"), "ERR USAGE usage: LENGTH WORD");
    }
}
