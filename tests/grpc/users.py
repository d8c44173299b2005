"""Streams of users with the official client of gRPC.

users.py ADDRESS, with blockchain_tcp/v1/blockchain_tcp_pb2_grpc.py in the path. Prints one line for each thing it tries.
"""

import sys
import threading

import grpc

from blockchain_tcp.v1 import blockchain_tcp_pb2 as api
from blockchain_tcp.v1 import blockchain_tcp_pb2_grpc as stubs

# One connection for all, so that calls and streams share it.
channel = grpc.insecure_channel(sys.argv[1])
users, server = stubs.UsersStub(channel), stubs.ServerStub(channel)


def ids(stream):
    return [user.id for part in stream for user in part.users]


def status(stream):
    try:
        ids(stream)
        return "OK"
    except grpc.RpcError as error:
        return error.code().name + " " + error.details()


def in_order(all):
    return len(all), all[:1], all[-1:], all == sorted(all)


print("count", users.Count(api.CountRequest()).value)
print("all", *in_order(ids(users.GetUsers(api.GetUsersRequest()))))
print("after", *in_order(ids(users.GetUsers(api.GetUsersRequest(after="00049000")))))
print("page", *in_order(ids(users.GetUsers(api.GetUsersRequest(after="00049000", limit=10)))))
user = users.GetUser(api.GetUserRequest(id="00000007")).user
print("one", user.id, user.name, user.email, user.members, user.created_at, user.updated_at)

# Nothing is read, so it can't be done in time.
late = users.GetUsers(api.GetUsersRequest(), timeout=2)
next(late)
over = threading.Event()
late.add_callback(over.set)
over.wait()
# The sentence is the client's own.
print("late", status(late).split()[0])

# Others are answered while a stream waits for its reader.
waiting = users.GetUsers(api.GetUsersRequest())
first = next(waiting)
print("meanwhile", {server.Why(api.WhyRequest()).value for _ in range(100)}, users.Count(api.CountRequest()).value)
both = ids(users.GetUsers(api.GetUsersRequest()))
print("beside it", *in_order(both))
print("then", *in_order([user.id for user in first.users] + ids(waiting)))

# As many as there are connections, again and again: each one that is cancelled is free.
for _ in range(20):
    stream = users.GetUsers(api.GetUsersRequest())
    while True:
        try:
            next(stream)
            break
        except grpc.RpcError as error:
            # The one before may still be ending.
            assert error.details().startswith("too many clients take all users at once"), error
            stream = users.GetUsers(api.GetUsersRequest())
    stream.cancel()
print("cancelled")
