#!/usr/bin/env node
// A client of blockchain-tcpd in JavaScript for Node.js 18 or later, with nothing from npm.
//
//     node client.js [--repeat SECONDS] HOST PORT REQUEST [REQUEST ...]
//
// Class Client connects to any address of a name, within a time-out; sends many requests at once and matches their replies,
// however these are cut into packets; gives an ERR as a value of its own; keeps the connection alive with PING; and, when it
// is lost, makes a new one and asks again what was not answered. README.md, beside this file, says what is printed and when.
'use strict';

const dns = require('node:dns/promises');
const net = require('node:net');
const { once } = require('node:events');
const { parseArgs } = require('node:util');
const { setTimeout: sleep } = require('node:timers/promises');

const LONGEST_REPLY = 4096; // bytes: a server that sends longer lines speaks something else
const BATCH = 4096; // bytes of requests sent at once: the system takes them even when the server reads none
const ATTEMPTS = 5; // in a row without a reply, before it gives up
const PAUSE = 100; // milliseconds before the second attempt, and twice as long before each further one

/** What the server answers in the place of a value: a word for programs and a sentence for people. */
class ServerError extends Error {
  constructor(word, sentence) {
    super(`${word}: ${sentence}`);
    this.word = word;
  }
}

/** The server has no room now. */
class Busy extends Error {}

/** A connection that is made when it is needed, and made again when it is lost. */
class Client {
  #socket = null;
  #pieces = null;
  #buffer = '';

  constructor(host, port, timeout = 2) {
    Object.assign(this, { host, port, timeout });
  }

  close() {
    this.#socket?.destroy();
    this.#socket = null;
    this.#buffer = '';
  }

  /** Yields the reply to each request, in order: a string or a ServerError. Throws when there is no connection. */
  async *ask(requests) {
    let answered = 0;
    for (let failures = 0; answered < requests.length; ) {
      try {
        for await (const reply of this.#exchange(requests.slice(answered))) {
          answered += 1;
          failures = 0;
          yield reply;
        }
      } catch (error) {
        this.close();
        failures += 1;
        if (failures === ATTEMPTS) throw error;
        await sleep(PAUSE * 2 ** (failures - 1));
      }
    }
  }

  /** To be called when nothing has been asked for a while, or the server closes the connection. */
  async keepAlive() {
    for await (const reply of this.ask(['PING'])) {
      if (reply !== 'PONG') this.close();
    }
  }

  async *#exchange(requests) {
    // Nobody was asked anything: what has come is the end, or last words, or no reply to what is asked next.
    if (this.#buffer || this.#socket?.readableLength || this.#socket?.readableEnded) this.close();
    if (!this.#socket || this.#socket.destroyed) await this.#connect();
    for (const batch of batches(requests)) {
      this.#socket.write(batch.map((request) => `${request}\n`).join(''));
      for (let left = batch.length; left > 0; left -= 1) yield this.#reply(await this.#line());
    }
  }

  async #connect() {
    let failure;
    for (const { address } of await dns.lookup(this.host, { all: true })) {
      const socket = net.connect({ host: address, port: this.port }).setEncoding('latin1');
      // Whoever reads or connects is told; an error that comes meanwhile must not end the program.
      socket.on('error', () => {});
      const timer = this.#timer(socket, `no connection to ${address} in time`);
      try {
        await once(socket, 'connect');
        this.#socket = socket;
        this.#pieces = socket[Symbol.asyncIterator]();
        return;
      } catch (error) {
        failure = error;
      } finally {
        clearTimeout(timer);
      }
    }
    throw failure;
  }

  #timer(socket, what) {
    return setTimeout(() => socket.destroy(new Error(what)), this.timeout * 1000);
  }

  #reply(line) {
    if (!line.startsWith('ERR ')) return line;
    const [, word, sentence] = /^ERR ([^ ]*) ?(.*)$/.exec(line);
    // These two are about the connection, whatever was asked, and the server closes after them.
    if (word === 'BUSY') throw new Busy(`the server is busy: ${sentence}`);
    if (word === 'TIMEOUT') throw new Error(`the server closed the connection: ${sentence}`);
    return new ServerError(word, sentence);
  }

  async #line() {
    const timer = this.#timer(this.#socket, 'no reply in time');
    try {
      let end;
      while ((end = this.#buffer.indexOf('\n')) < 0 && this.#buffer.length <= LONGEST_REPLY) {
        const { value, done } = await this.#pieces.next();
        if (done) throw new Error('the server closed the connection');
        this.#buffer += value;
      }
      const line = this.#buffer.slice(0, Math.max(end, 0));
      this.#buffer = this.#buffer.slice(end + 1);
      if (end < 0 || end > LONGEST_REPLY || !/^[ -~]*$/.test(line)) throw new Error('the server sent something that is no reply');
      return line;
    } finally {
      clearTimeout(timer);
    }
  }
}

/** Cuts the requests into batches that are sent at once. */
function* batches(requests) {
  let batch = [];
  let size = 0;
  for (const request of requests) {
    if (batch.length && size + request.length + 1 > BATCH) {
      yield batch;
      batch = [];
      size = 0;
    }
    batch.push(request);
    size += request.length + 1;
  }
  yield batch;
}

/** Returns the exit status that this comes to. */
async function askAndPrint(client, requests) {
  let status = 0;
  try {
    let next = 0;
    for await (const reply of client.ask(requests)) {
      const request = requests[next++];
      if (reply instanceof ServerError) {
        console.error(`${request}: ${reply.message}`);
        status = 1;
      } else {
        console.log(`${request}\t${reply}`);
      }
    }
  } catch (error) {
    console.error(`client.js: ${client.host}:${client.port}: ${error.message}`);
    status = error instanceof Busy ? 75 : 69;
  }
  return status;
}

/** Waits, and keeps the connection alive meanwhile. */
async function wait(client, seconds, keepalive) {
  const end = performance.now() + seconds * 1000;
  for (let left; (left = end - performance.now()) > 0; ) {
    await sleep(Math.min(left, keepalive * 1000));
    // If it fails, the next request says so, if it still is so then.
    if (left > keepalive * 1000) await client.keepAlive().catch(() => {});
  }
}

function wrong(message) {
  console.error(`usage: node client.js [--repeat SECONDS] HOST PORT REQUEST [REQUEST ...]\nclient.js: ${message}`);
  process.exit(64);
}

function seconds(text) {
  if (!/^\d*\.?\d+$/.test(text) || !(text > 0 && text <= 1e6)) wrong(`not a number of seconds: ${text}`);
  return Number(text);
}

function parse() {
  try {
    return parseArgs({ options: { repeat: { type: 'string' } }, allowPositionals: true });
  } catch (error) {
    return wrong(error.message);
  }
}

async function main() {
  const { values, positionals } = parse();
  const [host, port, ...requests] = positionals;
  if (requests.length === 0) wrong('nothing to ask');
  if (!/^\d{1,5}$/.test(port) || port < 1 || port > 65535) wrong(`not a port: ${port}`);
  // A line without a word would get no reply; a line end, or too long a line, would be something else.
  for (const request of requests) {
    if (!/^[\t -~]*[!-~][\t -~]*$/.test(request) || request.length > 1023) wrong(`not a request: ${JSON.stringify(request)}`);
  }
  const repeat = values.repeat === undefined ? null : seconds(values.repeat);
  const timeout = seconds(process.env.TIMEOUT ?? '2');
  const keepalive = seconds(process.env.KEEPALIVE ?? '60');

  const client = new Client(host, port, timeout);
  let status = 0;
  for (const signal of ['SIGINT', 'SIGTERM']) {
    process.on(signal, () => {
      client.close();
      process.exit(status);
    });
  }
  for (;;) {
    const latest = await askAndPrint(client, requests);
    if (repeat === null) {
      client.close();
      process.exitCode = latest;
      return;
    }
    status ||= Math.min(latest, 1);
    await wait(client, repeat, keepalive);
  }
}

main();
