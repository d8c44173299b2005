// A client of protobuf with protobufjs, which reads our schema from the folder in the variable SCHEMA.
// tests/support/clients.rs says what it is given and what it prints.
"use strict";

const net = require("node:net");
const os = require("node:os");
const path = require("node:path");
const readline = require("node:readline");
const protobuf = require("protobufjs");

const PIPELINED = 25;
const { Long } = protobuf.util;
const schema = protobuf.loadSync(path.join(process.env.SCHEMA, "blockchain_tcp/v1/blockchain_tcp.proto"));
const [Request, Response] = ["Request", "Response"].map((name) => schema.lookupType(`blockchain_tcp.v1.${name}`));
const codes = schema.lookupEnum("blockchain_tcp.v1.ErrorCode").valuesById;

// Sends requests, and reads the responses in their order.
class Connection {
  constructor(address, patience = 30_000) {
    const at = address.lastIndexOf(":");
    this.responses = [];
    this.received = Buffer.alloc(0);
    this.end = undefined;
    this.socket = net.connect(Number(address.slice(at + 1)), address.slice(0, at));
    this.socket.setTimeout(patience, () => this.ended(new Error("time-out")));
    this.socket.on("error", (error) => this.ended(error));
    this.socket.on("data", (chunk) => this.read(chunk));
    this.socket.on("end", () => this.ended(this.received.length ? new Error("half a response") : null));
  }

  read(chunk) {
    this.received = Buffer.concat([this.received, chunk]);
    const reader = protobuf.Reader.create(this.received);
    let whole = 0;
    try {
      while (reader.pos < reader.len) {
        this.responses.push(Response.decodeDelimited(reader));
        whole = reader.pos;
      }
    } catch (error) {
      // The rest is still to come.
      if (!(error instanceof RangeError)) throw error;
    }
    this.received = this.received.subarray(whole);
    this.wake?.();
  }

  ended(end) {
    this.end ??= { end };
    this.wake?.();
  }

  send(...requests) {
    this.socket.write(Buffer.concat(requests.map((request) => Request.encodeDelimited(request).finish())));
  }

  // The next response, or null at the end.
  async receive() {
    while (!this.responses.length && !this.end) await new Promise((resolve) => (this.wake = resolve));
    if (this.responses.length) return this.responses.shift();
    if (this.end.end) throw this.end.end;
    return null;
  }

  ask(request) {
    this.send(request);
    return this.receive();
  }

  close() {
    this.socket.destroy();
  }
}

const add = (id, x, y) => ({ id, add: { x, y } });
const primes = (id, n) => ({ id, nthPrimes: { n } });
const why = (id = 0) => ({ id, why: {} });
const long = (id) => primes(id, Array(1024).fill(10_000_000));
const isBusy = ({ error }) => error && codes[error.code] === "ERROR_CODE_UNAVAILABLE";

function shown(response) {
  if (!response) return "the end";
  const { id, error, nthPrimes } = response;
  if (error) return `${id} ${codes[error.code]} ${error.message}`;
  if (nthPrimes) return `${id} nth_primes ${nthPrimes.values.join(" ")}`;
  const name = Response.oneofs.result.oneof.find((name) => response[name]);
  return `${id} ${name} ${response[name].value}`;
}

async function askEverything(address, narrow) {
  let connection = new Connection(address);
  const show = async () => console.log(`${shown(await connection.receive())}, ${shown(await connection.receive())}`);
  const requests = [
    { id: 1, who: {} },
    { id: Long.MAX_UNSIGNED_VALUE, where: {} },
    why(),
    { id: 4, ping: {} },
    add(5, Long.MIN_VALUE, Long.MAX_VALUE),
    { id: 6, max: { x: -2 } },
    primes(7, [9999, 1234, 1, 2, 3, 4]),
    add(8, Long.MAX_VALUE, 1),
    primes(9, []),
    primes(10, [0]),
    { id: 11 },
  ];
  for (const request of requests) {
    let response = await connection.ask(request);
    // A busy server may refuse to compute, and says to try again later.
    while (isBusy(response)) response = await connection.ask(request);
    console.log(shown(response));
  }
  connection.socket.write("\x03WHO");
  connection.send(why(12));
  await show();
  // Longer than a message may be.
  connection.send(primes(13, Array(70_000).fill(1)));
  await show();

  connection = new Connection(address);
  connection.send(...Array.from({ length: 1000 }, (_, id) => add(id, id, 1)));
  connection.socket.end();
  let sum = 0;
  for (let id = 0; id < 1000; id += 1) {
    const response = await connection.receive();
    if (Number(response.id) !== id) throw new Error(shown(response));
    sum += Number(response.add.value);
  }
  console.log(`pipelined ${sum} ${shown(await connection.receive())}`);

  const connections = Array.from({ length: 250 }, () => new Connection(address));
  connections.forEach((connection, x) => connection.send(...[0, 1, 2, 3].map((y) => add(y, x, y))));
  sum = 0;
  for (const connection of connections) {
    for (let y = 0; y < 4; y += 1) sum += Number((await connection.receive()).add.value);
    connection.close();
  }
  console.log(`over connections ${sum}`);
  await timeOut(address);

  connection = new Connection(narrow);
  const first = connection;
  await new Promise((resolve) => first.socket.on("connect", resolve));
  connection = new Connection(narrow);
  await show();
  connection = first;
  await show();
}

// More computations than there is time for: the last client has less of it than the server.
async function timeOut(address) {
  const busy = Array.from({ length: 50 * os.cpus().length }, () => new Connection(address));
  for (const connection of busy) connection.send(long(1));
  await Promise.all(busy.map(({ socket }) => new Promise((resolve) => socket.write("", resolve))));
  const late = new Connection(address, 50);
  late.send(long(1), why(2));
  console.log(await late.receive().then(shown, (error) => error.message));
  late.close();
  // Its response may still come: there is another connection for what comes next.
  const next = new Connection(address);
  console.log(`then ${shown(await next.ask(why(3)))}`);
  next.close();
  const responses = await Promise.all(busy.map((connection) => connection.receive()));
  for (const connection of busy) connection.close();
  const isRight = ({ values }) => values.length === 1024 && values.every((value) => Number(value) === 179_424_673);
  console.log(`computed ${responses.some(({ nthPrimes }) => nthPrimes && isRight(nthPrimes)) ? "True" : "False"}`);
  const errors = responses.filter(({ error }) => error).map(({ error }) => codes[error.code]);
  console.log(["refused", ...new Set(errors)].join(" "));
}

// Calls without pause until the server closes the connections.
async function load(address, number) {
  const failed = [];
  let [asked, answered, unaccepted] = [0, 0, 0];
  const connections = Array.from({ length: number }, () => ({ connection: new Connection(address), done: 0, isOpen: true }));
  let changed = () => {};

  async function round(connection, number) {
    const expected = Array.from({ length: PIPELINED }, (_, y) => [add(y, number, y), `${y} add ${number + y}`]);
    expected.push([why(PIPELINED), `${PIPELINED} why 42`], [primes(99, [100]), "99 nth_primes 541"]);
    connection.send(...expected.map(([request]) => request));
    for (const [place, [, right]] of expected.entries()) {
      const response = await connection.receive();
      if (!response) {
        unaccepted += expected.length - place;
        return false;
      }
      answered += 1;
      // On a busy machine a computation may get no turn in time.
      if (shown(response) !== right && !isBusy(response)) failed.push(`${right}: ${shown(response)}`);
    }
    return true;
  }

  const rounds = connections.map(async (own) => {
    for (let number = 0; own.isOpen; number += 1) {
      const since = asked;
      own.isOpen = await round(own.connection, number).catch((error) => {
        failed.push(String(error));
        return false;
      });
      own.done = since;
      changed();
    }
  });
  for await (const _ of readline.createInterface({ input: process.stdin })) {
    asked += 1;
    while (connections.every(({ isOpen }) => isOpen) && connections.some(({ done }) => done < asked)) {
      await new Promise((resolve) => (changed = resolve));
    }
    console.log(connections.every(({ isOpen }) => isOpen) ? "round" : "closed");
  }
  await Promise.all(rounds);
  console.log(`${answered} ${unaccepted} 0 ${JSON.stringify(failed)}`);
}

const [use, ...rest] = process.argv.slice(2);
(use === "everything" ? askEverything(...rest) : load(rest[0], Number(rest[1]))).catch((error) => {
  console.error(error);
  process.exit(1);
});
