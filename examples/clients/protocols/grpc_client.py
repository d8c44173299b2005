#!/usr/bin/env python3
"""Asks blockchain-tcpd over gRPC: python3 grpc_client.py HOST:PORT. README.md, beside this file, says how to run it."""

import sys

import grpc

from blockchain_tcp.v1 import blockchain_tcp_pb2 as api
from blockchain_tcp.v1 import blockchain_tcp_pb2_grpc as services


def main():
    with grpc.insecure_channel(sys.argv[1]) as channel:
        calc = services.CalcStub(channel)
        print("add 2 5:", calc.Add(api.AddRequest(x=2, y=5), timeout=10).value)
        primes = calc.NthPrimes(api.NthPrimesRequest(n=[9999, 1234, 1]), timeout=10)
        print("primes 9999 1234 1:", *primes.values)
        try:
            calc.Add(api.AddRequest(x=2**63 - 1, y=1), timeout=10)
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.OUT_OF_RANGE, error
            print("add 9223372036854775807 1:", error.details())


if __name__ == "__main__":
    main()
