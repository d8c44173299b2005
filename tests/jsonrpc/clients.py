"""Stock clients of JSON-RPC for Python: python-bitcoinrpc and jsonrpcclient.

tests/support/clients.rs says what they are given and what they print; what both print must be the same.
"""

import http.client
import json
import select
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import jsonrpcclient
from bitcoinrpc.authproxy import AuthServiceProxy, JSONRPCException

PATIENCE = 30
LONG = [99] * 1000


class Refused(Exception):
    pass


class Bitcoin:
    """Says version 1.1, and no jsonrpc member."""

    def __init__(self, address, patience=PATIENCE):
        self.connection = http.client.HTTPConnection(address, timeout=patience)
        self.proxy = AuthServiceProxy(f"http://user:password@{address}/", None, patience, self.connection)

    def call(self, method, *params):
        try:
            return getattr(self.proxy, method)(*params)
        except JSONRPCException as error:
            raise Refused(f"{error.code} {error.error['data']}") from error

    # It takes no answer to a batch without "error": null, and no params by name.
    def named(self):
        return self.call("add", 2, 1)

    def batch(self, *calls):
        return [self.call(*call) for call in calls]

    def send_batch(self, *calls):
        self.proxy.batch_([list(call) for call in calls])


class Plain:
    """jsonrpcclient makes requests and reads answers; the standard library sends them."""

    def __init__(self, address, patience=PATIENCE):
        self.connection = http.client.HTTPConnection(address, timeout=patience)

    def post(self, request):
        self.connection.request("POST", "/rpc", json.dumps(request), {"Content-Type": "application/json"})
        return jsonrpcclient.parse(json.loads(self.connection.getresponse().read()))

    def value(self, answer):
        if isinstance(answer, jsonrpcclient.Error):
            raise Refused(f"{answer.code} {answer.data}")
        return answer.result

    def call(self, method, *params):
        return self.value(self.post(jsonrpcclient.request(method, params or None)))

    def named(self):
        return self.value(self.post(jsonrpcclient.request("add", {"y": 1, "x": 2})))

    def batch(self, *calls):
        return [self.value(answer) for answer in self.send_batch(*calls)]

    def send_batch(self, *calls):
        return self.post([jsonrpcclient.request(method, params or None) for method, *params in calls])


def refused(client, *call):
    try:
        return f"taken: {client.call(*call)}"
    except Refused as error:
        return str(error)


def computed(client, *places):
    """A busy server may refuse to compute, and says to try again later."""
    while True:
        try:
            return client.call("np", *places)
        except Refused as error:
            assert str(error) == "-32000 UNAVAILABLE", error


def fifty(kind, address, first):
    client = kind(address)
    return sum(client.call("add", number, 1) == number + 1 for number in range(first, first + 50))


def run(kind, address):
    client = kind(address)
    yield f"who {client.call('who') > 0}"
    yield f"where {client.call('where')}"
    yield f"why {client.call('why')}"
    yield f"ping {client.call('ping')}"
    yield f"help {client.call('help', 'add')}"
    yield f"add {client.call('add', 2, 5)}"
    yield f"max {client.call('max', 2, 6)}"
    yield f"np {' '.join(map(str, computed(client, 9999, 1234, 1, 2, 3, 4)))}"
    yield f"named {client.named()}"
    assert client.call("add", 2**63 - 2, 1) == 2**63 - 1
    yield f"largest {client.call('max', 0, 2**53 - 1)}"
    yield f"usage {refused(client, 'add', 'two', 5)}"
    yield f"range {refused(client, 'np', 0)}"
    yield f"unknown {refused(client, 'nothing')}"
    yield f"batch {' '.join(map(str, client.batch(('add', 1, 2), ('why',))))}"
    yield f"batched {sum(client.batch(*(('add', number, 1) for number in range(1000))))}"
    with ThreadPoolExecutor(20) as pool:
        yield f"at once {sum(pool.map(lambda first: fifty(kind, address, first), range(0, 1000, 50)))}"
    # The computations of a batch share half a second.
    late = kind(address, patience=0.1)
    try:
        late.send_batch(*[("np", *LONG)] * 200)
        yield "in time"
    except TimeoutError:
        yield "time-out"
    yield f"then {kind(address).call('why')}"


def post(address, body, length=None):
    """A body, which need not be all that is announced, and the answer to it."""
    connection = http.client.HTTPConnection(address, timeout=PATIENCE)
    length = len(body) if length is None else length
    connection.request("POST", "/", body, {"Content-Length": str(length), "Content-Type": "application/json"})
    response = connection.getresponse()
    error = json.loads(response.read())["error"]
    return f"{response.status} {error['code']} {error['data']}"


def run_once(address, narrow):
    yield f"no JSON {post(address, '{')}"
    yield f"no call {post(address, '{}')}"
    yield f"long {post(address, ' ' * (2**20 + 1))}"
    batch = [jsonrpcclient.request("np", LONG) for _ in range(200)]
    answers = Plain(address).post(batch)
    unavailable = {(answer.code, answer.data) for answer in answers if isinstance(answer, jsonrpcclient.Error)}
    yield f"unavailable {unavailable == {(-32000, 'UNAVAILABLE')}}"
    only = Caller(Plain(narrow))
    yield f"only {only.call('who')}"
    yield f"busy {post(narrow, '{}')}"
    # It is closed in the end, which a client does not notice before its next call.
    select.select([only.client.connection.sock], [], [], PATIENCE)
    yield f"idle {admitted(lambda: refused(only, 'why'))}, {only.retried > 0}"
    only.client.connection.close()
    yield f"late {admitted(lambda: post(narrow, '{', 9))}"


def admitted(ask):
    """What the answer is as soon as the server has room."""
    while "BUSY" in (answer := ask()):
        pass
    return answer


class Caller:
    """Sends a call again if the connection had been closed while it was idle, as RFC 9112 allows in section 9.3.1."""

    def __init__(self, client):
        self.client, self.retried, self.unaccepted = client, 0, 0

    def call(self, *call):
        try:
            return self.client.call(*call)
        except ConnectionRefusedError:
            raise
        except ConnectionError:
            # The next call connects anew.
            self.client.connection.close()
            self.retried += 1
            try:
                return self.client.call(*call)
            except ConnectionError:
                self.unaccepted += 1
                raise


class Load:
    """Calls without pause until the server closes the connections and takes no more."""

    def __init__(self, address, connections):
        self.asked, self.done = 0, [0] * connections
        self.changed = threading.Condition()
        self.answered, self.failed = 0, []
        self.callers = [Caller((Bitcoin, Plain)[place % 2](address)) for place in range(connections)]
        self.threads = [threading.Thread(target=self.run, args=item) for item in enumerate(self.callers)]

    def run(self, place, caller):
        number = 0
        is_open = True
        while is_open:
            asked = self.asked
            is_open = self.round(caller, number)
            number += 1
            with self.changed:
                self.done[place] = asked if is_open else None
                self.changed.notify()

    def round(self, caller, number):
        calls = [(("add", number, y), number + y) for y in range(10)] + [(("why",), 42), (("np", 100), [541])]
        for call, right in calls:
            try:
                answer = caller.call(*call)
            except ConnectionError:
                return False
            except Refused as error:
                # On a busy machine a computation may get no turn in time.
                answer = right if str(error) == "-32000 UNAVAILABLE" else str(error)
            except Exception as error:
                self.failed.append(repr(error))
                return False
            if answer != right:
                self.failed.append(f"{call}: {answer}")
            with self.changed:
                self.answered += 1
        return True

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
        unaccepted = sum(caller.unaccepted for caller in self.callers)
        print(self.answered, unaccepted, sum(caller.retried for caller in self.callers) - unaccepted, self.failed)


if sys.argv[1] == "everything":
    bitcoin, plain = list(run(Bitcoin, sys.argv[2])), list(run(Plain, sys.argv[2]))
    assert bitcoin == plain, (bitcoin, plain)
    print("\n".join(plain + list(run_once(*sys.argv[2:]))))
else:
    Load(sys.argv[2], int(sys.argv[3])).main()
