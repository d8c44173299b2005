//! The words of errors. What each is the reply to is in `transcripts.txt`.

use std::collections::BTreeSet;

use shared::command::NoRoom;
use shared::command::Unavailable;
use shared::command::{BadHeader, CommandError, ParameterType, sets};

use super::words_of_the_document;

/// - More words may come in later versions; a client treats an unknown word like `INTERNAL`.
#[test]
fn the_server_says_no_word_that_the_document_lacks() {
    let (wanted, given) = (&ParameterType::Word, &b"x"[..]);
    let known: BTreeSet<&str> = [
        CommandError::Unknown(b"x"),
        CommandError::Usage(&sets::server::SET[0]),
        CommandError::TooManyArguments,
        CommandError::Argument {
            wanted,
            given: given.into(),
        },
        CommandError::OutOfRange("too large"),
        CommandError::ComputeBusy,
        CommandError::BadInput(b"x"),
        CommandError::TooLong(1),
        CommandError::NoRoom(NoRoom::Here { clients: 1 }),
        CommandError::NoRoom(NoRoom::ForAddress { limit: 1 }),
        CommandError::NoRoom(NoRoom::Uncounted { limit: 1 }),
        CommandError::NoRoom(NoRoom::BeforeHeader { limit: 1 }),
        CommandError::BadHeader(BadHeader::Missing),
        CommandError::Idle,
        CommandError::MadeRoom,
        CommandError::Unavailable(Unavailable::Membership),
        CommandError::Internal,
        CommandError::NotFound("x".to_string()),
    ]
    .iter()
    .map(CommandError::word)
    .collect();
    assert_eq!(words_of_the_document(), known);
}
