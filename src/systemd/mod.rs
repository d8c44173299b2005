//! systemd: what a service manager is told, and what it keeps.

pub mod notify;
