"""Asks over protobuf with Google's library and the code that protoc generates from our schema.

official.py HOST PORT, with blockchain_tcp/v1/blockchain_tcp_pb2.py in the path. Prints one line for each response.
"""

import socket
import sys

from google.protobuf.internal.decoder import _DecodeVarint32
from google.protobuf.internal.encoder import _VarintBytes

from blockchain_tcp.v1 import blockchain_tcp_pb2 as api


def receive(stream):
    head = b""
    while not head or head[-1] & 0x80:
        byte = stream.read(1)
        if not byte:
            return None
        head += byte
    length, _ = _DecodeVarint32(head, 0)
    return api.Response.FromString(stream.read(length))


requests = [
    api.Request(id=1, who=api.WhoRequest()),
    api.Request(id=2**64 - 1, where=api.WhereRequest()),
    api.Request(why=api.WhyRequest()),
    api.Request(id=4, ping=api.PingRequest()),
    api.Request(id=5, add=api.AddRequest(x=-(2**63), y=2**63 - 1)),
    api.Request(id=6, max=api.MaxRequest(x=-2)),
    api.Request(id=7, nth_primes=api.NthPrimesRequest(n=[9999, 1234, 1, 2, 3, 4])),
    api.Request(id=8, nth_primes=api.NthPrimesRequest(n=[1] * 1024)),
    api.Request(id=9, add=api.AddRequest(x=2**63 - 1, y=1)),
    api.Request(id=10, nth_primes=api.NthPrimesRequest()),
    api.Request(id=11),
]
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=30) as connection:
    messages = [request.SerializeToString() for request in requests]
    connection.sendall(b"".join(_VarintBytes(len(message)) + message for message in messages))
    connection.shutdown(socket.SHUT_WR)
    stream = connection.makefile("rb")
    while (response := receive(stream)) is not None:
        name = response.WhichOneof("result")
        result = getattr(response, name)
        if name == "error":
            print(response.id, api.ErrorCode.Name(result.code), result.message)
        else:
            value = list(result.values) if hasattr(result, "values") else result.value
            print(response.id, name, sum(value) if name == "nth_primes" and len(value) > 99 else value)
