#!/bin/sh
# PgBouncer 1.18.0 (Debian 12, pgbouncer 1.18.0-1+deb12u1) in transaction mode, whose PostgreSQL has gone: the next client of libpq 17
# (psycopg-binary 3.2.13) is connected at once, with connect_timeout=2, and its first statement waits longer than 10 s, without an end.
# The statement of the client after it is refused at once.
#
# One would guess: connect_timeout ends an attempt when the database is away, and a statement fails when its server is not there. But
# PgBouncer answers the login itself, from what it knows of the server before, and queues the statement for query_wait_timeout (120 s).
# Only a deadline of the client's own ends that. The server here says as much of the protocol as a login and one answer need.
set -eu
cd "$(dirname "$0")"
dir=$(mktemp -d)
chmod 755 "$dir"
trap 'rm -rf "$dir"' EXIT
version=1.18.0-1+deb12u1
for package in "pgbouncer=$version" libevent-2.1-7=2.1.12-stable-8 libc-ares2=1.18.1-3; do
    lib/fetch-deb bookworm "$package" "$dir/root"
done
/usr/bin/python3 -m venv "$dir/python"
"$dir/python/bin/pip" install --quiet --disable-pip-version-check psycopg==3.2.13 psycopg-binary==3.2.13
cat >"$dir/ask.py" <<'END'
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

import psycopg

folder = sys.argv[1]
listener = socket.create_server(("127.0.0.1", 0))
streams = []


def message(kind, body):
    return kind + struct.pack("!I", len(body) + 4) + body


def read(stream, length):
    data = b""
    while len(data) < length:
        part = stream.recv(length - len(data))
        if not part:
            raise EOFError
        data += part
    return data


def serve(stream):
    ready = message(b"Z", b"I")
    try:
        read(stream, struct.unpack("!I", read(stream, 4))[0] - 4)
        parameters = [b"server_version\0" + b"15.0\0", b"client_encoding\0UTF8\0", b"standard_conforming_strings\0on\0"]
        stream.sendall(message(b"R", bytes(4)) + b"".join(message(b"S", one) for one in parameters) + message(b"K", bytes(8)) + ready)
        while True:
            kind = read(stream, 1)
            read(stream, struct.unpack("!I", read(stream, 4))[0] - 4)
            if kind == b"Q":
                stream.sendall(message(b"C", b"SELECT 0\0") + ready)
    except (EOFError, OSError):
        stream.close()


def accept():
    while True:
        try:
            stream, _ = listener.accept()
        except OSError:
            return
        streams.append(stream)
        threading.Thread(target=serve, args=(stream,), daemon=True).start()


threading.Thread(target=accept, daemon=True).start()
probe = socket.create_server(("127.0.0.1", 0))
port = probe.getsockname()[1]
probe.close()
with open(f"{folder}/pgbouncer.ini", "w") as file:
    file.write(
        f"[databases]\nx = host=127.0.0.1 port={listener.getsockname()[1]} user=u\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
        f"listen_port = {port}\nauth_type = any\npool_mode = transaction\nunix_socket_dir =\n"
    )
os.chmod(f"{folder}/pgbouncer.ini", 0o644)
drop = ["-u", "nobody"] if os.getuid() == 0 else []
bouncer = subprocess.Popen([f"{folder}/root/usr/sbin/pgbouncer", *drop, "-q", f"{folder}/pgbouncer.ini"], stderr=subprocess.DEVNULL)
options = f"host=127.0.0.1 port={port} dbname=x user=me connect_timeout=2"


def ask():
    begun = time.monotonic()
    try:
        with psycopg.connect(options, autocommit=True) as connection:
            connected = time.monotonic() - begun
            # Of libpq itself, which psycopg's own functions would go around.
            result = connection.pgconn.exec_(b"SELECT")
            if connected >= 2:
                return "connected late"
            return "answered" if result.status == psycopg.pq.ExecStatus.COMMAND_OK else "refused"
    except psycopg.OperationalError:
        return "not connected"


def ask_in_a_child():
    child = os.fork()
    if child == 0:
        print(ask(), flush=True)
        os._exit(0)
    for _ in range(100):
        if os.waitpid(child, os.WNOHANG)[0] == child:
            return
        time.sleep(0.1)
    print("waits", flush=True)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


try:
    for _ in range(50):
        time.sleep(0.1)
        if (answer := ask()) == "answered":
            break
    print(answer, flush=True)
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    for stream in streams:
        stream.shutdown(socket.SHUT_RDWR)
    time.sleep(0.5)
    ask_in_a_child()
    ask_in_a_child()
finally:
    bouncer.terminate()
    bouncer.wait()
END
chmod 644 "$dir/ask.py"
libraries=$(echo "$dir"/root/usr/lib/*-linux-gnu*)
seen=$(LD_LIBRARY_PATH=$libraries timeout 120 "$dir/python/bin/python3" "$dir/ask.py" "$dir" | tr '\n' ' ')
echo "$seen"
[ "$seen" = "answered waits refused " ]
