// Calls with grpc-js: official.js ADDRESS FOLDER, where FOLDER has the schema. Prints one line for each answer.
"use strict";

const path = require("node:path");
const grpc = require("@grpc/grpc-js");
const { loadSync } = require("@grpc/proto-loader");

const [address, folder] = process.argv.slice(2);
const schema = loadSync(path.join(folder, "blockchain_tcp/v1/blockchain_tcp.proto"), { defaults: true, longs: String });
const { Calc, Server } = grpc.loadPackageDefinition(schema).blockchain_tcp.v1;
const calc = new Calc(address, grpc.credentials.createInsecure());
const server = new Server(address, grpc.credentials.createInsecure());

function call(client, method, request, options = {}) {
  return new Promise((resolve) => {
    client[method](request, new grpc.Metadata(), options, (error, answer) => resolve({ error, answer }));
  });
}

async function show(name, client, method, request) {
  const { error, answer } = await call(client, method, request);
  const code = error && Object.keys(grpc.status).find((name) => grpc.status[name] === error.code);
  if (error) console.log(name, code, error.details);
  else console.log(name, answer.values ? `[${answer.values.join(" ")}]` : answer.value);
}

async function main() {
  await show("Who", server, "who", {});
  await show("Where", server, "where", {});
  await show("Why", server, "why", {});
  await show("Ping", server, "ping", {});
  await show("Add", calc, "add", { x: "-9223372036854775808", y: "9223372036854775807" });
  await show("Max", calc, "max", { x: -2 });
  await show("NthPrimes", calc, "nthPrimes", { n: [9999, 1234, 1, 2, 3, 4] });
  await show("overflow", calc, "add", { x: "9223372036854775807", y: 1 });
  await show("nothing", calc, "nthPrimes", { n: [] });
  const divide = (request, metadata, options, callback) =>
    calc.makeUnaryRequest("/blockchain_tcp.v1.Calc/Divide", () => Buffer.alloc(0), String, request, metadata, options, callback);
  await show("unknown", { divide }, "divide", {});
  const late = await call(calc, "nthPrimes", { n: Array(1024).fill(10_000_000) }, { deadline: Date.now() + 1 });
  console.log("late", late.error.code === grpc.status.DEADLINE_EXCEEDED ? "DEADLINE_EXCEEDED" : late);
  const sums = Array.from({ length: 1000 }, (_, index) => call(calc, "add", { x: index, y: 1 }));
  const values = (await Promise.all(sums)).map(({ error, answer }) => (error ? NaN : Number(answer.value)));
  console.log("at once", values.reduce((sum, value) => sum + value));
  process.exit();
}

main();
