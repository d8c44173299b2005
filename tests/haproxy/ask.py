"""Asks for the id over gRPC, TLS and HAProxy, with Alice's certificate: ask.py HOST. Prints the id of each answer."""

import sys

import grpc


def main():
    files = [open(name, "rb").read() for name in ("ca.pem", "alice.key", "alice.pem")]
    credentials = grpc.ssl_channel_credentials(*files)
    options = [("grpc.ssl_target_name_override", "ledger.example.org")]
    with grpc.secure_channel(f"{sys.argv[1]}:4244", credentials, options) as channel:
        # The message of the request is empty; that of the answer is its field 1, a text of 36 bytes.
        where = channel.unary_unary("/blockchain_tcp.v1.Server/Where")
        for _ in range(9):
            print(where(b"", timeout=10)[2:].decode())


main()
