// Stock clients of JSON-RPC for Node.js, jayson and json-rpc-2.0, call the server at the address in the argument. What both
// print must be the same; it is printed once.
'use strict';
const http = require('http');
const jayson = require('jayson/promise');
const { JSONRPCClient, createJSONRPCRequest } = require('json-rpc-2.0');

const [host, port] = process.argv[2].split(':');
const agent = new http.Agent({ keepAlive: true, maxSockets: 16 });

const old = jayson.Client.http({ host, port, agent });
const client = new JSONRPCClient(async (request) => {
  const response = await fetch(`http://${host}:${port}/rpc`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(request),
  });
  if (response.status === 200) client.receive(await response.json());
  else if (response.status !== 204) throw new Error(response.statusText);
});

// Each calls a method, and sends a batch of two calls.
const ways = [
  {
    async call(method, params) {
      const { error, result } = await old.request(method, params);
      if (error) throw error;
      return result;
    },
    async batch(...calls) {
      const answers = await old.request(calls.map(([method, params]) => old.request(method, params, undefined, false)));
      return answers.map((answer) => answer.result);
    },
  },
  {
    call: (method, params) => client.request(method, params),
    async batch(...calls) {
      const requests = calls.map(([method, params], index) => createJSONRPCRequest(index + 1, method, params));
      const answers = await client.requestAdvanced(requests);
      return answers.map((answer) => answer.result);
    },
  },
];

async function run(way) {
  const lines = [];
  const refused = (method, params) =>
    way.call(method, params).then(() => 'taken', (error) => `${error.code} ${error.data}`);
  lines.push(`add ${await way.call('add', [2, 5])}`);
  lines.push(`max ${await way.call('max', [2, 6])}`);
  lines.push(`np ${(await way.call('np', [9999, 1234, 1, 2, 3, 4])).join(' ')}`);
  lines.push(`ping ${await way.call('ping', [])}`);
  lines.push(`why ${await way.call('why', [])}`);
  lines.push(`named ${await way.call('add', { y: 1, x: 2 })}`);
  lines.push(`largest ${await way.call('max', [0, Number.MAX_SAFE_INTEGER])}`);
  lines.push(`usage ${await refused('add', ['two', 5])}`);
  lines.push(`unknown ${await refused('nothing', [])}`);
  lines.push(`batch ${(await way.batch(['add', [1, 2]], ['why', []])).join(' ')}`);
  const sums = await Promise.all([...Array(1000).keys()].map((number) => way.call('add', [number, 1])));
  lines.push(`at once ${sums.filter((sum, number) => sum === number + 1).length}`);
  return lines.join('\n');
}

(async () => {
  client.notify('why', []);
  const printed = [await run(ways[0]), await run(ways[1])];
  if (printed[0] !== printed[1]) throw new Error(printed.join('\n\n'));
  console.log(printed[0]);
  agent.destroy();
})().catch((error) => {
  console.error(error);
  process.exit(1);
});
