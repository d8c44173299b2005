#!/usr/bin/env node
// Asks blockchain-tcpd over JSON-RPC: node jsonrpc.js URL. README.md, beside this file, says how to run it.
"use strict";

const jayson = require("jayson/promise");

async function main([url]) {
  const client = jayson.Client.http(url);
  console.log("add 2 5:", (await client.request("add", [2, 5])).result);
  console.log("primes 9999 1234 1:", (await client.request("np", [9999, 1234, 1])).result.join(" "));
  // A number above 2^53 - 1 would be rounded by JavaScript, so this one is written down.
  const response = await fetch(url, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: '{"jsonrpc":"2.0","id":3,"method":"add","params":[9223372036854775807,1]}',
  });
  console.log("add 9223372036854775807 1:", (await response.json()).error.message);
}

main(process.argv.slice(2));
