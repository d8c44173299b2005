#!/bin/sh
# rustyline 19.0.0 (crates.io, with-file-history): a history file whose last line has no line end, as an editor may leave it, swallows the
# next entry: append() writes it behind that line, and both are one entry from then on.
#
# One would guess: the entry begins a line of its own, since load() took the unended line for an entry. Seen after loading "why" and
# appending "exit": the file's last line is "whyexit".
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
mkdir "$dir/src"
cat >"$dir/Cargo.toml" <<'END'
[package]
name = "unended"
version = "0.0.0"
edition = "2021"
[dependencies]
rustyline = { version = "=19.0.0", default-features = false, features = ["with-file-history"] }
END
cat >"$dir/src/main.rs" <<'END'
use rustyline::history::{FileHistory, History};
use std::path::Path;

fn main() {
    let file = Path::new("history");
    let mut history = FileHistory::new();
    history.load(file).unwrap();
    println!("loaded {}", history.len());
    history.add("exit").unwrap();
    history.append(file).unwrap();
}
END
cargo build --quiet --manifest-path "$dir/Cargo.toml"
cd "$dir"
printf '#V2\nwho\nwhy' >history
seen="$(target/debug/unended), then $(tail -n 1 history)"
echo "$seen"
[ "$seen" = "loaded 2, then whyexit" ]
