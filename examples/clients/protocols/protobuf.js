#!/usr/bin/env node
// Asks blockchain-tcpd over protobuf: node protobuf.js HOST PORT FOLDER, where FOLDER has the schema. README.md, beside this
// file, says how to run it.
"use strict";

const net = require("node:net");
const path = require("node:path");
const protobuf = require("protobufjs");

async function main([host, port, folder]) {
  const schema = await protobuf.load(path.join(folder, "blockchain_tcp/v1/blockchain_tcp.proto"));
  const Request = schema.lookupType("blockchain_tcp.v1.Request");
  const Response = schema.lookupType("blockchain_tcp.v1.Response");
  const Long = protobuf.util.Long; // Numbers of 64 bits: JavaScript's own have 53.
  const socket = net.connect(port, host);
  const requests = [
    { id: 1, add: { x: 2, y: 5 } },
    { id: 2, nthPrimes: { n: [9999, 1234, 1] } },
    { id: 3, add: { x: Long.MAX_VALUE, y: 1 } },
  ];
  // Requests may be sent at once; the responses come in their order.
  socket.end(Buffer.concat(requests.map((request) => Request.encodeDelimited(request).finish())));
  const chunks = [];
  for await (const chunk of socket) chunks.push(chunk);
  const reader = protobuf.Reader.create(Buffer.concat(chunks));
  const receive = () => Response.decodeDelimited(reader);
  console.log("add 2 5:", String(receive().add.value));
  console.log("primes 9999 1234 1:", receive().nthPrimes.values.join(" "));
  console.log("add 9223372036854775807 1:", receive().error.message);
}

main(process.argv.slice(2));
