#!/bin/sh
# grpcio 1.85.3 (PyPI): a call that a server gives back unprocessed, by a GOAWAY whose last stream is before the call's, is sent again on
# another connection once. If the next server gives it back, too, the caller gets UNAVAILABLE, also with wait_for_ready.
#
# One would guess: as often as it is given back, because RFC 9113 (section 6.8) lets a client be sure each time that nothing was processed.
# Seen with the first 0, 1 and 2 connections giving the call back: OK, OK, UNAVAILABLE. The servers are of h2 4.3.0.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
/usr/bin/python3 -m venv "$dir/python"
"$dir/python/bin/pip" install --quiet --disable-pip-version-check grpcio==1.85.3 h2==4.3.0
cat >"$dir/ask.py" <<'END'
import socket
import threading

import grpc
import h2.config
import h2.connection
import h2.events


def serve(stream, gives_back):
    session = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    session.initiate_connection()
    stream.sendall(session.data_to_send())
    while data := stream.recv(65536):
        for event in session.receive_data(data):
            if isinstance(event, h2.events.StreamEnded) and gives_back:
                session.close_connection(last_stream_id=0)
            elif isinstance(event, h2.events.StreamEnded):
                session.send_headers(event.stream_id, [(":status", "200"), ("content-type", "application/grpc")])
                session.send_data(event.stream_id, bytes(5))
                session.send_headers(event.stream_id, [("grpc-status", "0")], end_stream=True)
        stream.sendall(session.data_to_send())
        if session.state_machine.state == h2.connection.ConnectionState.CLOSED:
            break
    stream.close()


def listen(listener, number):
    for connection in range(10):
        stream, _ = listener.accept()
        threading.Thread(target=serve, args=(stream, connection < number), daemon=True).start()


for number in range(3):
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=listen, args=(listener, number), daemon=True).start()
    with grpc.insecure_channel(f"127.0.0.1:{listener.getsockname()[1]}") as channel:
        try:
            channel.unary_unary("/package.Service/Method")(b"", timeout=20, wait_for_ready=True)
            print("OK")
        except grpc.RpcError as error:
            print(error.code().name)
END
seen=$(timeout 120 "$dir/python/bin/python3" "$dir/ask.py" | tr '\n' ' ')
echo "$seen"
[ "$seen" = "OK OK UNAVAILABLE " ]
