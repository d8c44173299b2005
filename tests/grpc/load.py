"""Calls without pause with the official client until its input ends.

load.py ADDRESS CHANNELS, with blockchain_tcp/v1/blockchain_tcp_pb2_grpc.py in the path. Prints what tests/stock.rs says. With the
variable COMPUTES, one call of 27 computes, and another has less time than it takes.
"""

import os
import sys
import threading

import grpc

from blockchain_tcp.v1 import blockchain_tcp_pb2 as api
from blockchain_tcp.v1 import blockchain_tcp_pb2_grpc as stubs

AT_ONCE = 25
computes = "COMPUTES" in os.environ
changed = threading.Condition()
asked, done, over = 0, [0] * int(sys.argv[2]), False
answered, failed, late = [], [], []


def load(place):
    channel = grpc.insecure_channel(sys.argv[1], options=[("grpc.use_local_subchannel_pool", 1)])
    calc = stubs.CalcStub(channel)
    number = 0
    while not over:
        since = asked
        # A server that is not there yet is waited for.
        calls = [calc.Add.future(api.AddRequest(x=number, y=y), wait_for_ready=True, timeout=20) for y in range(AT_ONCE)]
        if computes:
            computed = calc.NthPrimes.future(api.NthPrimesRequest(n=[100]), wait_for_ready=True, timeout=20)
            hasty = calc.NthPrimes.future(api.NthPrimesRequest(n=[10_000_000] * 1024), wait_for_ready=True, timeout=0.001)
        for y, call in enumerate(calls):
            try:
                assert call.result().value == number + y
            except grpc.RpcError as error:
                failed.append(f"{error.code().name} {error.details()}")
        try:
            assert not computes or computed.result().values == [541]
        except grpc.RpcError as error:
            # On a busy machine it may get no turn in time.
            if "too many clients compute" not in error.details():
                failed.append(f"{error.code().name} {error.details()}")
        if computes and hasty.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
            late.append(number)
        elif computes and hasty.code() != grpc.StatusCode.OK:
            failed.append(f"not late: {hasty.code()} {hasty.details()}")
        number += AT_ONCE
        with changed:
            done[place] = since
            changed.notify()
    answered.append(number)


threads = [threading.Thread(target=load, args=[place]) for place in range(len(done))]
for thread in threads:
    thread.start()
for _ in sys.stdin:
    with changed:
        asked += 1
        changed.wait_for(lambda: min(done) == asked)
    print("round", flush=True)
over = True
for thread in threads:
    thread.join()
print(sum(answered), len(late), failed)
