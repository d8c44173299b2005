// Calls without pause with grpc-js until its input ends: load.js ADDRESS CHANNELS FOLDER, where FOLDER has the schema.
// Prints what tests/stock.rs says; COMPUTES as in load.py.
"use strict";

const path = require("node:path");
const readline = require("node:readline");
const grpc = require("@grpc/grpc-js");
const { loadSync } = require("@grpc/proto-loader");

const AT_ONCE = 25;
const LONG = Array(1024).fill(10_000_000);
const [address, channels, folder] = process.argv.slice(2);
const schema = loadSync(path.join(folder, "blockchain_tcp/v1/blockchain_tcp.proto"), { defaults: true, longs: Number });
const { Calc } = grpc.loadPackageDefinition(schema).blockchain_tcp.v1;
const failed = [];
let [asked, answered, late, over] = [0, 0, 0, false];
let changed = () => {};

function call(calc, method, request, expected) {
  const options = { deadline: Date.now() + 20_000, waitForReady: true };
  return new Promise((resolve) => {
    calc[method](request, new grpc.Metadata({ waitForReady: true }), options, (error, answer) => {
      // On a busy machine a computation may get no turn in time.
      if (error?.message.includes("too many clients compute")) answered += 0;
      else if (error) failed.push(error.message);
      else if (JSON.stringify(answer) === JSON.stringify(expected)) answered += 1;
      else failed.push(`${method}: ${JSON.stringify(answer)}`);
      resolve();
    });
  });
}

// A call that has less time than it takes.
function hasty(calc) {
  const options = { deadline: Date.now() + 1 };
  return new Promise((resolve) => {
    calc.nthPrimes({ n: LONG }, new grpc.Metadata({ waitForReady: true }), options, (error) => {
      if (error?.code === grpc.status.DEADLINE_EXCEEDED) late += 1;
      else if (error) failed.push(`not late: ${error.message}`);
      resolve();
    });
  });
}

async function load(own) {
  const calc = new Calc(address, grpc.credentials.createInsecure(), { "grpc.use_local_subchannel_pool": 1 });
  for (let number = 0; !over; number += 1) {
    const since = asked;
    const sums = Array.from({ length: AT_ONCE }, (_, y) => call(calc, "add", { x: number, y }, { value: number + y }));
    if (process.env.COMPUTES) sums.push(call(calc, "nthPrimes", { n: [100] }, { values: [541] }), hasty(calc));
    await Promise.all(sums);
    own.done = since;
    changed();
  }
  calc.close();
}

async function main() {
  const all = Array.from({ length: Number(channels) }, () => ({ done: 0 }));
  const loads = all.map(load);
  for await (const _ of readline.createInterface({ input: process.stdin })) {
    asked += 1;
    while (all.some(({ done }) => done < asked)) await new Promise((resolve) => (changed = resolve));
    console.log("round");
  }
  over = true;
  await Promise.all(loads);
  console.log(`${answered} ${late} ${JSON.stringify(failed)}`);
}

main();
