//! What the benches of the daemon use of the client: its load generator.

pub mod load;
