#!/bin/sh
# clap_complete 4.6.11 with clap 4.6.7 (crates.io), for bash: an option whose ValueHint is Hostname offers the names of files (compgen -f). One
# whose hint is Other ("no other completion") offers nothing itself, but the script is registered with -o bashdefault -o default, with
# which bash offers files wherever nothing else is.
#
# One would guess: hosts (compgen -A hostname) for the first, nothing for the second, as in the script for zsh.
# Seen: "--server a-file.txt", "complete … -o bashdefault -o default …", and _hosts for --server in zsh's script.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
mkdir "$dir/src" "$dir/folder"
touch "$dir/folder/a-file.txt"
cat >"$dir/Cargo.toml" <<'END'
[package]
name = "hints"
version = "0.0.0"
edition = "2021"
[dependencies]
clap = "=4.6.7"
clap_complete = "=4.6.11"
END
cat >"$dir/src/main.rs" <<'END'
use clap::{Arg, Command, ValueHint};
use clap_complete::{generate, Shell};

fn main() {
    let server = Arg::new("server").long("server").value_hint(ValueHint::Hostname);
    let every = Arg::new("every").long("every").value_hint(ValueHint::Other);
    let mut command = Command::new("ask").arg(server).arg(every);
    let shell = match std::env::args().nth(1).as_deref() {
        Some("zsh") => Shell::Zsh,
        _ => Shell::Bash,
    };
    generate(shell, &mut command, "ask", &mut std::io::stdout());
}
END
cargo build --quiet --manifest-path "$dir/Cargo.toml"
"$dir/target/debug/hints" bash >"$dir/ask.bash"
seen=$(cd "$dir/folder" && bash -c '
    source ../ask.bash
    COMP_WORDS=(ask --server "") COMP_CWORD=2 COMPREPLY=()
    _ask ask "" --server 2>/dev/null
    echo "--server ${COMPREPLY[*]}"
    complete -p ask')
echo "$seen"
"$dir/target/debug/hints" zsh | grep -e '--server'
case $seen in
"--server a-file.txt
complete "*"-o bashdefault"*"-o default"* | "--server a-file.txt
complete "*"-o default"*"-o bashdefault"*) ;;
*) exit 1 ;;
esac
"$dir/target/debug/hints" zsh | grep -e '--server' | grep -q _hosts
