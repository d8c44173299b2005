//! systemd: notifications to the service manager, and its descriptor store.

pub mod notify;
