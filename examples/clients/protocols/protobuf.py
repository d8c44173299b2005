#!/usr/bin/env python3
"""Asks blockchain-tcpd over protobuf: python3 protobuf.py HOST PORT. README.md, beside this file, says how to run it."""

import socket
import sys

from google.protobuf.internal.decoder import _DecodeVarint32
from google.protobuf.internal.encoder import _VarintBytes

from blockchain_tcp.v1 import blockchain_tcp_pb2 as api


class Client:
    """A connection. Requests may be sent at once; the responses come in their order."""

    def __init__(self, host, port):
        self.socket = socket.create_connection((host, port), timeout=10)
        self.stream = self.socket.makefile("rb")

    def send(self, *requests):
        messages = [request.SerializeToString() for request in requests]
        self.socket.sendall(b"".join(_VarintBytes(len(message)) + message for message in messages))

    def receive(self):
        head = self._read(1)
        while head[-1] & 0x80:
            head += self._read(1)
        length, _ = _DecodeVarint32(head, 0)
        return api.Response.FromString(self._read(length))

    def _read(self, length):
        data = self.stream.read(length)
        if len(data) < length:
            raise ConnectionError("the server closed the connection")
        return data


def main():
    client = Client(sys.argv[1], int(sys.argv[2]))
    client.send(
        api.Request(id=1, add=api.AddRequest(x=2, y=5)),
        api.Request(id=2, nth_primes=api.NthPrimesRequest(n=[9999, 1234, 1])),
        api.Request(id=3, add=api.AddRequest(x=2**63 - 1, y=1)),
    )
    print("add 2 5:", client.receive().add.value)
    print("primes 9999 1234 1:", *client.receive().nth_primes.values)
    response = client.receive()
    assert response.error.code == api.ERROR_CODE_USAGE
    print("add 9223372036854775807 1:", response.error.message)


if __name__ == "__main__":
    main()
