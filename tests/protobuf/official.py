"""Asks over protobuf with Google's library and the code that protoc generates from our schema.

official.py HOST PORT, with blockchain_tcp/v1/blockchain_tcp_pb2.py in the path. Prints one line for each response.
"""

import socket
import sys

from google.protobuf.proto import parse_length_prefixed, serialize_length_prefixed

from blockchain_tcp.v1 import blockchain_tcp_pb2 as api

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
    stream = connection.makefile("rwb")
    for request in requests:
        serialize_length_prefixed(request, stream)
    stream.flush()
    connection.shutdown(socket.SHUT_WR)
    while (response := parse_length_prefixed(api.Response, stream)) is not None:
        name = response.WhichOneof("result")
        result = getattr(response, name)
        if name == "error":
            print(response.id, api.ErrorCode.Name(result.code), result.message)
        else:
            value = list(result.values) if hasattr(result, "values") else result.value
            print(response.id, name, sum(value) if name == "nth_primes" and len(value) > 99 else value)
