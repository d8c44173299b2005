// Calls without pause with grpc-js until its input ends: load.js ADDRESS CHANNELS FOLDER, where FOLDER has the schema.
// Prints what load.py prints; COMPUTES as there.
"use strict";

const path = require("node:path");
const grpc = require("@grpc/grpc-js");
const { loadSync } = require("@grpc/proto-loader");

const AT_ONCE = 25;
const [address, channels, folder] = process.argv.slice(2);
const schema = loadSync(path.join(folder, "blockchain_tcp/v1/blockchain_tcp.proto"), { defaults: true, longs: Number });
const { Calc } = grpc.loadPackageDefinition(schema).blockchain_tcp.v1;
const failed = [];
let answered = 0;
let over = false;

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

async function load(begun) {
  const calc = new Calc(address, grpc.credentials.createInsecure(), { "grpc.use_local_subchannel_pool": 1 });
  for (let number = 0; !over; number += 1) {
    const sums = Array.from({ length: AT_ONCE }, (_, y) => call(calc, "add", { x: number, y }, { value: number + y }));
    if (process.env.COMPUTES) sums.push(call(calc, "nthPrimes", { n: [100] }, { values: [541] }));
    await Promise.all(sums);
    begun();
  }
  calc.close();
}

let waiting = Number(channels);
const loads = Array.from({ length: waiting }, () => {
  let isFirst = true;
  return load(() => {
    if (isFirst) {
      isFirst = false;
      waiting -= 1;
      if (waiting === 0) console.log("begun");
    }
  });
});
process.stdin.on("end", async () => {
  over = true;
  await Promise.all(loads);
  console.log(`${answered} ${JSON.stringify(failed)}`);
});
process.stdin.resume();
