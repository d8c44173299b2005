"""Calls with the official client of gRPC and the code that protoc generates from our schema.

official.py ADDRESS SCHEMA, with blockchain_tcp/v1/blockchain_tcp_pb2_grpc.py in the path and the schema's descriptor set,
made by protoc. Prints one line for each answer.
"""

import sys

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from blockchain_tcp.v1 import blockchain_tcp_pb2 as api
from blockchain_tcp.v1 import blockchain_tcp_pb2_grpc as stubs


def show(name, call):
    try:
        answer = call()
        print(name, list(answer.values) if hasattr(answer, "values") else answer.value)
    except grpc.RpcError as error:
        print(name, error.code().name, error.details())


def clear_json_names(messages):
    for message in messages:
        clear_json_names(message.nested_type)
        for field in message.field:
            field.ClearField("json_name")


channel = grpc.insecure_channel(sys.argv[1])
server, calc = stubs.ServerStub(channel), stubs.CalcStub(channel)
raw = channel.unary_unary("/blockchain_tcp.v1.Calc/Add")
show("Who", lambda: server.Who(api.WhoRequest()))
show("Where", lambda: server.Where(api.WhereRequest()))
show("Why", lambda: server.Why(api.WhyRequest()))
show("Ping", lambda: server.Ping(api.PingRequest()))
show("Add", lambda: calc.Add(api.AddRequest(x=-(2**63), y=2**63 - 1)))
show("Max", lambda: calc.Max(api.MaxRequest(x=-2)))
show("NthPrimes", lambda: calc.NthPrimes(api.NthPrimesRequest(n=[9999, 1234, 1, 2, 3, 4])))
show("overflow", lambda: calc.Add(api.AddRequest(x=2**63 - 1, y=1)))
show("nothing", lambda: calc.NthPrimes(api.NthPrimesRequest()))
show("zero", lambda: calc.NthPrimes(api.NthPrimesRequest(n=[0])))
show("unknown", lambda: channel.unary_unary("/blockchain_tcp.v1.Calc/Divide")(b""))
show("malformed", lambda: raw(b"\xff"))
show("long", lambda: raw(bytes(6_000_000)))
show("headers", lambda: calc.Add(api.AddRequest(), metadata=[("key", 17_000 * "x")]))
show("gzip", lambda: calc.NthPrimes(api.NthPrimesRequest(n=[1] * 1000), compression=grpc.Compression.Gzip))
try:
    calc.NthPrimes(api.NthPrimesRequest(n=[10_000_000] * 1024), timeout=0.001)
except grpc.RpcError as error:
    # Client or server may be the first to notice, and each has a sentence of its own.
    print("late", error.code().name)
show("in time", lambda: calc.Max(api.MaxRequest(x=1, y=2), timeout=100_000_000))

calls = [calc.Add.future(api.AddRequest(x=index, y=1)) for index in range(1000)]
print("at once", sum(call.result().value for call in calls))

health = health_pb2_grpc.HealthStub(channel)
serving = health_pb2.HealthCheckResponse.ServingStatus.Name
for service in ["", "blockchain_tcp.v1.Calc", "other"]:
    request = health_pb2.HealthCheckRequest(service=service)
    try:
        print("health", service, serving(health.Check(request).status))
    except grpc.RpcError as error:
        print("health", service, error.code().name)
    print("watch", service, serving(next(health.Watch(request)).status))
listed = health.List(health_pb2.HealthListRequest()).statuses
print("listed", {serving(response.status) for response in listed.values()}, sorted(listed))

# With reflection alone, a client finds every method.
database = ProtoReflectionDescriptorDatabase(channel)
pool = descriptor_pool.DescriptorPool(database)
for service in sorted(database.get_services()):
    print("service", service, *(method.name for method in pool.FindServiceByName(service).methods))
# What it gives is what protoc makes of the file.
schema = descriptor_pb2.FileDescriptorSet()
with open(sys.argv[2], "rb") as file:
    schema.ParseFromString(file.read())
[expected] = schema.file
clear_json_names(expected.message_type)
print("schema", database.FindFileByName(expected.name) == expected)
for name, module in [("grpc/health/v1/health.proto", health_pb2), ("grpc/reflection/v1alpha/reflection.proto", reflection_pb2)]:
    own = descriptor_pb2.FileDescriptorProto()
    module.DESCRIPTOR.CopyToProto(own)
    # Python's packages have other names for the files.
    own.name = name
    own.ClearField("options")
    clear_json_names(own.message_type)
    print(name, database.FindFileByName(name) == own)


def reflect(**question):
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    [response] = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(**question)]))
    return response.error_response.error_code


print("reflected", reflect(file_by_filename="no.proto"), reflect(file_containing_symbol="no.Name"), reflect())
