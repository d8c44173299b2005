"""Stock clients of JSON-RPC for Python, python-bitcoinrpc and jsonrpcclient, call the server at the address in the
argument. What both print must be the same; it is printed once."""

import http.client
import json
import sys
from concurrent.futures import ThreadPoolExecutor

import jsonrpcclient
from bitcoinrpc.authproxy import AuthServiceProxy, JSONRPCException

ADDRESS = sys.argv[1]


class Refused(Exception):
    pass


class Bitcoin:
    """Says version 1.1, and no jsonrpc member."""

    def __init__(self):
        self.proxy = AuthServiceProxy(f"http://user:password@{ADDRESS}/")

    def call(self, method, *params):
        try:
            return getattr(self.proxy, method)(*params)
        except JSONRPCException as error:
            raise Refused(f"{error.code} {error.error['data']}") from error

    # It takes no batch without "error": null, and no params by name.
    def named(self):
        return self.call("add", 2, 1)

    def batch(self):
        return [self.call("add", 1, 2), self.call("why")]


class Plain:
    """jsonrpcclient makes requests and reads answers; the standard library sends them."""

    def __init__(self):
        self.connection = http.client.HTTPConnection(ADDRESS)

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

    def batch(self):
        requests = [jsonrpcclient.request("add", (1, 2)), jsonrpcclient.request("why")]
        return [self.value(answer) for answer in self.post(requests)]


def refused(client, *call):
    try:
        return f"taken: {client.call(*call)}"
    except Refused as error:
        return str(error)


def fifty(kind, first):
    client = kind()
    return sum(client.call("add", number, 1) == number + 1 for number in range(first, first + 50))


def run(kind):
    client = kind()
    yield f"add {client.call('add', 2, 5)}"
    yield f"max {client.call('max', 2, 6)}"
    yield f"np {' '.join(map(str, client.call('np', 9999, 1234, 1, 2, 3, 4)))}"
    yield f"ping {client.call('ping')}"
    yield f"why {client.call('why')}"
    yield f"named {client.named()}"
    assert client.call("add", 2**63 - 2, 1) == 2**63 - 1
    yield f"largest {client.call('max', 0, 2**53 - 1)}"
    yield f"usage {refused(client, 'add', 'two', 5)}"
    yield f"unknown {refused(client, 'nothing')}"
    yield f"batch {' '.join(map(str, client.batch()))}"
    with ThreadPoolExecutor(20) as pool:
        yield f"at once {sum(pool.map(lambda first: fifty(kind, first), range(0, 1000, 50)))}"


bitcoin, plain = list(run(Bitcoin)), list(run(Plain))
assert bitcoin == plain, (bitcoin, plain)
print("\n".join(plain))
