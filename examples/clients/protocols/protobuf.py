#!/usr/bin/env python3
"""Asks blockchain-tcpd over protobuf: python3 protobuf.py HOST PORT. README.md, beside this file, says how to run it."""

import socket
import sys

from google.protobuf.proto import parse_length_prefixed, serialize_length_prefixed

from blockchain_tcp.v1 import blockchain_tcp_pb2 as api


def main():
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=10) as connection, connection.makefile("rwb") as stream:

        def receive():
            response = parse_length_prefixed(api.Response, stream)
            if response is None:
                raise ConnectionError("the server closed the connection")
            return response

        # Requests may be sent at once; the responses come in their order.
        serialize_length_prefixed(api.Request(id=1, add=api.AddRequest(x=2, y=5)), stream)
        serialize_length_prefixed(api.Request(id=2, nth_primes=api.NthPrimesRequest(n=[9999, 1234, 1])), stream)
        serialize_length_prefixed(api.Request(id=3, add=api.AddRequest(x=2**63 - 1, y=1)), stream)
        stream.flush()
        print("add 2 5:", receive().add.value)
        print("primes 9999 1234 1:", *receive().nth_primes.values)
        response = receive()
        assert response.error.code == api.ERROR_CODE_USAGE
        print("add 9223372036854775807 1:", response.error.message)


if __name__ == "__main__":
    main()
