//! What the daemon, its client and its monitoring plugin share.
//!
//! A module uses those below it only:
//!
//! ```text
//! schema              protobuf messages of the commands
//! command             the table of commands: names, arguments, handlers
//! dial                a server's addresses, DNS with a deadline, connections, replies
//! args     clock      command lines; monotonic clocks
//! stdio    sync       standard streams; threads and locks, which a model check replaces
//! text     sys        escaping; the only module with unsafe code
//! ```

pub mod args;
pub mod clock;
pub mod command;
pub mod dial;
pub mod schema;
pub mod stdio;
pub mod sync;
pub mod sys;
pub mod text;
