#!/bin/sh
# sd-notify 0.5.0 (crates.io): an abstract address, NOTIFY_SOCKET=@NAME, is taken for the file "@NAME" in the working directory. sd_notify(3)
# names that form, and container managers use it; READY=1 never arrives there, so the service counts as failed to start.
#
# One would guess: the @ becomes the zero byte of an abstract address. Seen: notify() fails with NotFound, and the socket gets nothing.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
mkdir "$dir/src"
cat >"$dir/Cargo.toml" <<'END'
[package]
name = "abstract-address"
version = "0.0.0"
edition = "2021"
[dependencies]
sd-notify = "=0.5.0"
END
cat >"$dir/src/main.rs" <<'END'
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

fn main() {
    let name = format!("a-service-manager-{}", std::process::id());
    let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    std::env::set_var("NOTIFY_SOCKET", format!("@{name}"));
    let sent = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    let arrived = socket.recv(&mut [0; 100]).is_ok();
    println!("notify: {:?}, arrived: {arrived}", sent.map_err(|error| error.kind()));
}
END
cargo build --quiet --manifest-path "$dir/Cargo.toml"
seen=$(cd "$dir" && target/debug/abstract-address)
echo "$seen"
[ "$seen" = "notify: Err(NotFound), arrived: false" ]
