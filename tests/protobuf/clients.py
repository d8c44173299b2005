"""A client of protobuf with Google's library and the code that protoc generates from our schema, which is in the path.

tests/support/clients.rs says what it is given and what it prints.
"""

import os
import socket
import sys
import threading

from google.protobuf.proto import parse_length_prefixed, serialize_length_prefixed

from blockchain_tcp.v1 import blockchain_tcp_pb2 as api

PIPELINED = 25
LONG = [10_000_000] * 1024


class Connection:
    """Sends requests, and reads the responses in their order."""

    def __init__(self, address, patience=30):
        host, port = address.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), timeout=patience)
        self.stream = self.socket.makefile("rwb")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stream.close()
        self.socket.close()

    def send(self, *requests):
        for request in requests:
            serialize_length_prefixed(request, self.stream)
        self.stream.flush()

    def receive(self):
        """The next response, or None at the end."""
        return parse_length_prefixed(api.Response, self.stream)

    def ask(self, request):
        self.send(request)
        return self.receive()


def add(number, x, y):
    return api.Request(id=number, add=api.AddRequest(x=x, y=y))


def primes(number, places):
    return api.Request(id=number, nth_primes=api.NthPrimesRequest(n=places))


def why(number=0):
    return api.Request(id=number, why=api.WhyRequest())


def shown(response):
    if response is None:
        return "the end"
    name = response.WhichOneof("result")
    result = getattr(response, name)
    if name == "error":
        return f"{response.id} {api.ErrorCode.Name(result.code)} {result.message}"
    return " ".join(map(str, [response.id, name, *(result.values if name == "nth_primes" else [result.value])]))


def ask_everything(address, narrow):
    with Connection(address) as connection:
        for request in [
            api.Request(id=1, who=api.WhoRequest()),
            api.Request(id=2**64 - 1, where=api.WhereRequest()),
            why(),
            api.Request(id=4, ping=api.PingRequest()),
            add(5, -(2**63), 2**63 - 1),
            api.Request(id=6, max=api.MaxRequest(x=-2)),
            primes(7, [9999, 1234, 1, 2, 3, 4]),
            add(8, 2**63 - 1, 1),
            primes(9, []),
            primes(10, [0]),
            api.Request(id=11),
        ]:
            response = connection.ask(request)
            # A busy server may refuse to compute, and says to try again later.
            while response.error.code == api.ERROR_CODE_UNAVAILABLE:
                response = connection.ask(request)
            print(shown(response))
        connection.stream.write(b"\x03WHO")
        connection.send(why(12))
        print(shown(connection.receive()), shown(connection.receive()), sep=", ")
        # Longer than a message may be.
        print(shown(connection.ask(primes(13, [1] * 70_000))), shown(connection.receive()), sep=", ")
    with Connection(address) as connection:
        connection.send(*(add(number, number, 1) for number in range(1000)))
        connection.socket.shutdown(socket.SHUT_WR)
        sums = [connection.receive() for _ in range(1000)]
        assert [sum.id for sum in sums] == list(range(1000))
        print("pipelined", sum(sum.add.value for sum in sums), shown(connection.receive()))
    connections = [Connection(address) for _ in range(250)]
    for number, connection in enumerate(connections):
        connection.send(*(add(call, number, call) for call in range(4)))
    print("over connections", sum(connection.receive().add.value for connection in connections for _ in range(4)))
    for connection in connections:
        connection.__exit__()
    time_out(address)
    with Connection(narrow) as connection, Connection(narrow) as second:
        print(shown(second.receive()), shown(second.receive()), sep=", ")
        print(shown(connection.receive()), shown(connection.receive()), sep=", ")


def time_out(address):
    """More computations than there is time for: the last client has less of it than the server."""
    busy = [Connection(address) for _ in range(50 * os.cpu_count())]
    for connection in busy:
        connection.send(primes(1, LONG))
    with Connection(address, patience=0.05) as connection:
        connection.send(primes(1, LONG), why(2))
        try:
            print(shown(connection.receive()))
        except TimeoutError:
            print("time-out")
    # Its response may still come: there is another connection for what comes next.
    with Connection(address) as connection:
        print("then", shown(connection.ask(why(3))))
    responses = [connection.receive() for connection in busy]
    for connection in busy:
        connection.__exit__()
    print("computed", any(list(response.nth_primes.values) == [179424673] * 1024 for response in responses))
    print("refused", *{api.ErrorCode.Name(response.error.code) for response in responses if response.HasField("error")})


class Load:
    """Calls without pause until the server closes the connections."""

    def __init__(self, address, connections):
        self.asked, self.done = 0, [0] * connections
        self.changed = threading.Condition()
        self.answered, self.unaccepted, self.failed = 0, 0, []
        connected = [Connection(address) for _ in range(connections)]
        self.threads = [threading.Thread(target=self.run, args=item) for item in enumerate(connected)]

    def run(self, place, connection):
        number = 0
        is_open = True
        while is_open:
            asked = self.asked
            is_open = self.round(connection, number)
            number += 1
            with self.changed:
                self.done[place] = asked if is_open else None
                self.changed.notify()

    def round(self, connection, number):
        expected = [(add(y, number, y), f"{y} add {number + y}") for y in range(PIPELINED)]
        expected += [(why(PIPELINED), f"{PIPELINED} why 42"), (primes(99, [100]), "99 nth_primes 541")]
        try:
            connection.send(*(request for request, _ in expected))
            for place, (_, right) in enumerate(expected):
                response = connection.receive()
                if response is None:
                    self.count(place, len(expected) - place)
                    return False
                # On a busy machine a computation may get no turn in time.
                if shown(response) != right and response.error.code != api.ERROR_CODE_UNAVAILABLE:
                    self.failed.append(f"{right}: {shown(response)}")
        except OSError as error:
            self.failed.append(repr(error))
            return False
        self.count(len(expected), 0)
        return True

    def count(self, answered, unaccepted):
        with self.changed:
            self.answered += answered
            self.unaccepted += unaccepted

    def main(self):
        for thread in self.threads:
            thread.start()
        for _ in sys.stdin:
            with self.changed:
                self.asked += 1
                self.changed.wait_for(lambda: None in self.done or min(self.done) == self.asked)
            print("closed" if None in self.done else "round", flush=True)
        for thread in self.threads:
            thread.join()
        print(self.answered, self.unaccepted, 0, self.failed)


if sys.argv[1] == "everything":
    ask_everything(*sys.argv[2:])
else:
    Load(sys.argv[2], int(sys.argv[3])).main()
