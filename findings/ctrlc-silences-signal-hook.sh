#!/bin/sh
# ctrlc 3.5.2 beside signal-hook 0.4.6 in one process (crates.io): whichever is registered second decides. After ctrlc's handler is set,
# signal-hook's action for SIGINT never runs again, and neither library says so. In the other order both run.
#
# One would guess: both run, since signal-hook chains to the handler that it finds, or ctrlc refuses with MultipleHandlers.
# Seen: "ctrlc second: signal-hook 0, ctrlc 1" and "signal-hook second: signal-hook 1, ctrlc 1".
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
mkdir "$dir/src"
cat >"$dir/Cargo.toml" <<'END'
[package]
name = "two-signal-libraries"
version = "0.0.0"
edition = "2021"
[dependencies]
ctrlc = "=3.5.2"
signal-hook = "=0.4.6"
END
cat >"$dir/src/main.rs" <<'END'
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

static HOOK: AtomicUsize = AtomicUsize::new(0);
static CTRLC: AtomicUsize = AtomicUsize::new(0);

fn hook() {
    let count = || {
        HOOK.fetch_add(1, SeqCst);
    };
    // It touches an atomic only.
    unsafe { signal_hook::low_level::register(signal_hook::consts::SIGINT, count) }.unwrap();
}

fn ctrlc() {
    ctrlc::set_handler(|| {
        CTRLC.fetch_add(1, SeqCst);
    })
    .expect("no MultipleHandlers");
}

fn main() {
    let second = std::env::args().nth(1).unwrap();
    if second == "ctrlc" {
        hook();
        ctrlc();
    } else {
        ctrlc();
        hook();
    }
    signal_hook::low_level::raise(signal_hook::consts::SIGINT).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while CTRLC.load(SeqCst) == 0 && Instant::now() < deadline {
        std::thread::yield_now();
    }
    println!("{second} second: signal-hook {}, ctrlc {}", HOOK.load(SeqCst), CTRLC.load(SeqCst));
}
END
cargo build --quiet --manifest-path "$dir/Cargo.toml"
seen=$("$dir/target/debug/two-signal-libraries" ctrlc; "$dir/target/debug/two-signal-libraries" signal-hook)
echo "$seen"
[ "$seen" = "ctrlc second: signal-hook 0, ctrlc 1
signal-hook second: signal-hook 1, ctrlc 1" ]
