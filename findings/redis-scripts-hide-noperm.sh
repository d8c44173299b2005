#!/bin/sh
# Redis 7.0.15 (Debian 12, redis-server 5:7.0.15-1~deb12u7): a right that a user lacks is refused with NOPERM when a command is sent, and
# with ERR when the same command is called by a script: the error code alone doesn't tell a missing right from any other failure.
#
# One would guess: NOPERM both times, as the script's error is the command's. Seen: "NOPERM …" and "ERR The user executing the script …".
set -eu
cd "$(dirname "$0")"
dir=$(mktemp -d)
redis=
trap 'kill "$redis" 2>/dev/null || true; wait 2>/dev/null || true; rm -rf "$dir"' EXIT
for package in redis-server redis-tools; do lib/fetch-deb bookworm "$package=5:7.0.15-1~deb12u7" "$dir/root"; done
for package in liblzf1=3.6-3 libjemalloc2=5.3.0-1 liblua5.1-0=5.1.5-9 lua-cjson=2.1.0+dfsg-2.2 lua-bitop=1.0.2-7 libatomic1=12.2.0-14+deb12u1; do
    lib/fetch-deb bookworm "$package" "$dir/root"
done
export LD_LIBRARY_PATH="$dir/root/usr/lib/x86_64-linux-gnu"
"$dir/root/usr/bin/redis-server" --port 26790 --save "" --dir "$dir" >"$dir/log" 2>&1 &
redis=$!
ask() { "$dir/root/usr/bin/redis-cli" -p 26790 "$@" 2>&1; }
for _ in $(seq 100); do
    [ "$(ask PING)" = PONG ] && break
    sleep 0.1
done
ask ACL SETUSER reader on nopass '~*' +get +eval +ping >/dev/null
sent=$(ask --user reader --pass '' --no-auth-warning SET key value | head -n 1)
called=$(ask --user reader --pass '' --no-auth-warning EVAL 'return redis.call("SET", KEYS[1], "value")' 1 key | head -n 1)
echo "sent:   $sent"
echo "called: $called"
case $sent in *NOPERM*) ;; *) exit 1 ;; esac
case $called in *NOPERM*) exit 1 ;; *"ERR The user executing the script"*) ;; *) exit 1 ;; esac
