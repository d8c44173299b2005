"""Calls without pause with the official client until its input ends.

load.py ADDRESS CHANNELS, with blockchain_tcp/v1/blockchain_tcp_pb2_grpc.py in the path. Prints `begun` after the first calls,
and in the end the number of calls that were answered, and all that were not. With the variable COMPUTES, one call of 26 computes.
"""

import os
import sys
import threading

import grpc

from blockchain_tcp.v1 import blockchain_tcp_pb2 as api
from blockchain_tcp.v1 import blockchain_tcp_pb2_grpc as stubs

AT_ONCE = 25
over = threading.Event()
begun = threading.Barrier(int(sys.argv[2]) + 1)
answered, failed = [], []


def load():
    channel = grpc.insecure_channel(sys.argv[1], options=[("grpc.use_local_subchannel_pool", 1)])
    calc = stubs.CalcStub(channel)
    number = 0
    while not over.is_set():
        # A server that is not there yet is waited for.
        calls = [calc.Add.future(api.AddRequest(x=number, y=y), wait_for_ready=True, timeout=20) for y in range(AT_ONCE)]
        if "COMPUTES" in os.environ:
            computed = calc.NthPrimes.future(api.NthPrimesRequest(n=[100]), wait_for_ready=True, timeout=20)
        for y, call in enumerate(calls):
            try:
                assert call.result().value == number + y
            except grpc.RpcError as error:
                failed.append(f"{error.code().name} {error.details()}")
        try:
            assert "COMPUTES" not in os.environ or computed.result().values == [541]
        except grpc.RpcError as error:
            # On a busy machine it may get no turn in time.
            if "too many clients compute" not in error.details():
                failed.append(f"{error.code().name} {error.details()}")
        if number == 0:
            begun.wait()
        number += AT_ONCE
    answered.append(number)


threads = [threading.Thread(target=load) for _ in range(int(sys.argv[2]))]
for thread in threads:
    thread.start()
begun.wait()
print("begun", flush=True)
sys.stdin.read()
over.set()
for thread in threads:
    thread.join()
print(sum(answered), failed)
