#!/usr/bin/env node
// Asks blockchain-tcpd over gRPC: node grpc_client.js HOST:PORT FOLDER, where FOLDER has the schema. README.md, beside this
// file, says how to run it.
"use strict";

const path = require("node:path");
const { promisify } = require("node:util");
const grpc = require("@grpc/grpc-js");
const { loadSync } = require("@grpc/proto-loader");

async function main([server, folder]) {
  // Numbers of 64 bits as text: JavaScript's own have 53.
  const schema = loadSync(path.join(folder, "blockchain_tcp/v1/blockchain_tcp.proto"), { longs: String });
  const { Calc } = grpc.loadPackageDefinition(schema).blockchain_tcp.v1;
  const calc = new Calc(server, grpc.credentials.createInsecure());
  const call = (method, request) =>
    promisify(calc[method].bind(calc))(request, new grpc.Metadata(), { deadline: Date.now() + 10_000 });
  console.log("add 2 5:", (await call("add", { x: "2", y: "5" })).value);
  console.log("primes 9999 1234 1:", (await call("nthPrimes", { n: ["9999", "1234", "1"] })).values.join(" "));
  try {
    await call("add", { x: "9223372036854775807", y: "1" });
  } catch (error) {
    if (error.code !== grpc.status.OUT_OF_RANGE) throw error;
    console.log("add 9223372036854775807 1:", error.details);
  }
  calc.close();
}

main(process.argv.slice(2));
