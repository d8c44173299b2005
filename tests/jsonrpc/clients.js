// Stock clients of JSON-RPC for Node.js: jayson and json-rpc-2.0.
// tests/support/clients.rs says what they are given and what they print; what both print must be the same.
"use strict";

const http = require("node:http");
const readline = require("node:readline");
const jayson = require("jayson/promise");
const { JSONRPCClient, createJSONRPCRequest } = require("json-rpc-2.0");

const LONG = ["np", Array(1000).fill(99)];

// Whether a connection ended without an answer, or there was none to be had.
const REFUSED = "ECONNREFUSED";
const isClosed = ({ code, message }) => ["ECONNRESET", "EPIPE", "UND_ERR_SOCKET", REFUSED].includes(code || message);

class Jayson {
  constructor(address, patience) {
    const [host, port] = address.split(":");
    this.agent = new http.Agent({ keepAlive: true, maxSockets: 16 });
    this.client = jayson.Client.http({ host, port, agent: this.agent, timeout: patience });
  }

  async call(method, params) {
    const { error, result } = await this.client.request(method, params);
    if (error) throw error;
    return result;
  }

  batch(calls) {
    return this.client.request(calls.map(([method, params]) => this.client.request(method, params, undefined, false)));
  }

  // It gives the request up, and shows no other error than that.
  static isTimeOut(error) {
    return error.code === "ECONNRESET";
  }
}

class JsonRpc2 {
  constructor(address, patience = 30_000) {
    this.client = new JSONRPCClient(async (request) => {
      const response = await fetch(`http://${address}/rpc`, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify(request),
      }).catch((error) => {
        // Of an error, the library shows only the message.
        throw new Error(error.cause?.code ?? error.message);
      });
      if (response.status === 200) this.client.receive(await response.json());
      else if (response.status !== 204) throw new Error(response.statusText);
    });
    this.late = this.client.timeout(patience);
  }

  call(method, params) {
    return this.late.request(method, params);
  }

  async batch(calls) {
    const answers = await this.late.requestAdvanced(calls.map(([method, params], id) => createJSONRPCRequest(id, method, params)));
    if (answers[0].error) throw answers[0].error;
    return answers;
  }

  static isTimeOut(error) {
    return error.message === "Request timeout";
  }
}

// A busy server may refuse to compute, and says to try again later.
async function computed(client, places) {
  for (;;) {
    try {
      return await client.call("np", places);
    } catch (error) {
      if (error.data !== "UNAVAILABLE") throw error;
    }
  }
}

async function run(Client, address) {
  const client = new Client(address);
  const lines = [];
  const refused = (...call) => client.call(...call).then(() => "taken", (error) => `${error.code} ${error.data}`);
  lines.push(`who ${(await client.call("who", [])) > 0 ? "True" : "False"}`);
  lines.push(`where ${await client.call("where", [])}`);
  lines.push(`why ${await client.call("why", [])}`);
  lines.push(`ping ${await client.call("ping", [])}`);
  lines.push(`help ${await client.call("help", ["add"])}`);
  lines.push(`add ${await client.call("add", [2, 5])}`);
  lines.push(`max ${await client.call("max", [2, 6])}`);
  lines.push(`np ${(await computed(client, [9999, 1234, 1, 2, 3, 4])).join(" ")}`);
  lines.push(`named ${await client.call("add", { y: 1, x: 2 })}`);
  lines.push(`largest ${await client.call("max", [0, Number.MAX_SAFE_INTEGER])}`);
  lines.push(`usage ${await refused("add", ["two", 5])}`);
  lines.push(`range ${await refused("np", [0])}`);
  lines.push(`unknown ${await refused("nothing", [])}`);
  const batch = async (calls) => (await client.batch(calls)).map(({ result }) => result);
  const numbers = [...Array(1000).keys()];
  lines.push(`batch ${(await batch([["add", [1, 2]], ["why", []]])).join(" ")}`);
  const sums = await batch(numbers.map((number) => ["add", [number, 1]]));
  lines.push(`batched ${sums.reduce((sum, value) => sum + value)}`);
  const right = await Promise.all(numbers.map(async (number) => (await client.call("add", [number, 1])) === number + 1));
  lines.push(`at once ${right.filter(Boolean).length}`);
  // The computations of a batch share half a second.
  const late = new Client(address, 100).batch(Array(200).fill(LONG));
  lines.push(await late.then(() => "in time", (error) => (Client.isTimeOut(error) ? "time-out" : String(error))));
  lines.push(`then ${await new Client(address).call("why", [])}`);
  client.agent?.destroy();
  return lines.join("\n");
}

// Posts a body, which need not be all that is announced. Returns the connection, and the answer as it is shown.
function post(address, body, length = body.length, agent = new http.Agent()) {
  return new Promise((resolve, reject) => {
    const headers = { "content-type": "application/json", "content-length": length };
    const request = http.request(`http://${address}/`, { method: "POST", headers, agent }, async (response) => {
      let text = "";
      for await (const chunk of response.setEncoding("utf8")) text += chunk;
      const { error, result } = JSON.parse(text);
      resolve({ socket: request.socket, shown: error ? `${response.statusCode} ${error.code} ${error.data}` : result });
    });
    request.on("error", reject);
    request.write(body);
    if (body.length === length) request.end();
  });
}

// The answer as soon as the server has room.
async function admitted(ask) {
  for (;;) {
    const shown = await ask();
    if (!String(shown).includes("BUSY")) return shown;
  }
}

async function runOnce(address, narrow) {
  const show = async (...request) => (await post(...request)).shown;
  console.log(`no JSON ${await show(address, "{")}`);
  console.log(`no call ${await show(address, "{}")}`);
  console.log(`long ${await show(address, " ".repeat(2 ** 20 + 1))}`);
  const answers = await new Jayson(address).batch(Array(200).fill(LONG));
  const errors = new Set(answers.filter(({ error }) => error).map(({ error }) => `${error.code} ${error.data}`));
  console.log(`unavailable ${[...errors].join() === "-32000 UNAVAILABLE" ? "True" : "False"}`);
  const agent = new http.Agent({ keepAlive: true });
  const call = (method) => [narrow, JSON.stringify({ jsonrpc: "2.0", method, id: 1 }), undefined, agent];
  const only = await post(...call("who"));
  only.socket.ref();
  const closed = new Promise((resolve) => only.socket.on("close", resolve));
  console.log(`only ${only.shown}`);
  console.log(`busy ${await show(narrow, "{}")}`);
  // It is closed in the end, which the agent notices itself.
  await closed;
  let another;
  const again = () => post(...call("why")).then(({ socket, shown }) => ((another = socket), shown));
  console.log(`idle taken: ${await admitted(again)}, ${another !== only.socket ? "True" : "False"}`);
  agent.destroy();
  console.log(`late ${await admitted(() => show(narrow, "{", 9))}`);
}

async function askEverything(address, narrow) {
  // It is executed, and not answered.
  new JsonRpc2(address).client.notify("why", []);
  const printed = [await run(Jayson, address), await run(JsonRpc2, address)];
  if (printed[0] !== printed[1]) throw new Error(printed.join("\n\n"));
  console.log(printed[0]);
  await runOnce(address, narrow);
}

// Calls without pause until the server closes the connections and takes no more.
async function load(address, number) {
  const failed = [];
  let [asked, answered, unaccepted, retried] = [0, 0, 0, 0];
  let changed = () => {};

  // Sends a call again if the connection had been closed while it was idle, as RFC 9112 allows in section 9.3.1.
  async function call(client, method, params) {
    try {
      return await client.call(method, params);
    } catch (error) {
      if (!isClosed(error) || [error.code, error.message].includes(REFUSED)) throw error;
    }
    try {
      const answer = await client.call(method, params);
      retried += 1;
      return answer;
    } catch (error) {
      unaccepted += isClosed(error);
      throw error;
    }
  }

  async function round(client, x) {
    const calls = Array.from({ length: 10 }, (_, y) => ["add", [x, y], x + y]);
    for (const [method, params, right] of [...calls, ["why", [], 42], ["np", [100], [541]]]) {
      let answer;
      try {
        answer = await call(client, method, params);
      } catch (error) {
        if (isClosed(error)) return false;
        // On a busy machine a computation may get no turn in time.
        answer = error.data === "UNAVAILABLE" ? right : String(error.message);
      }
      if (JSON.stringify(answer) !== JSON.stringify(right)) failed.push(`${method} ${params}: ${answer}`);
      answered += 1;
    }
    return true;
  }

  const callers = Array.from({ length: number }, (_, place) => {
    const Client = [Jayson, JsonRpc2][place % 2];
    return { client: new Client(address), done: 0, isOpen: true };
  });
  const rounds = callers.map(async (caller) => {
    for (let number = 0; caller.isOpen; number += 1) {
      const since = asked;
      caller.isOpen = await round(caller.client, number);
      caller.done = since;
      changed();
    }
  });
  for await (const _ of readline.createInterface({ input: process.stdin })) {
    asked += 1;
    while (callers.every(({ isOpen }) => isOpen) && callers.some(({ done }) => done < asked)) {
      await new Promise((resolve) => (changed = resolve));
    }
    console.log(callers.every(({ isOpen }) => isOpen) ? "round" : "closed");
  }
  await Promise.all(rounds);
  console.log(`${answered} ${unaccepted} ${retried} ${JSON.stringify(failed)}`);
}

const [use, ...rest] = process.argv.slice(2);
(use === "everything" ? askEverything(...rest) : load(rest[0], Number(rest[1]))).catch((error) => {
  console.error(error);
  process.exit(1);
});
