#!/usr/bin/env node
// A client of blockchain-tcpd in JavaScript for Node.js 18 or later, with nothing from npm.
//
//     node client.js [--repeat SECONDS] HOST PORT REQUEST [REQUEST ...]
//
// Class Client is to be copied, the program below it shows its use. README.md, beside this file, says what both do.
'use strict';

const dns = require('node:dns/promises');
const net = require('node:net');
const { once } = require('node:events');
const { setTimeout: sleep } = require('node:timers/promises');

const LONGEST_REQUEST = 1023; // bytes, without the line end
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

/** A connection that is made when it is needed, and made again when it is lost. The time-out is in milliseconds. */
class Client {
  #socket = null;
  #pieces = null;
  #buffer = '';
  #waiting = 0; // replies that are still to come

  constructor(host, port, timeout = 2000) {
    Object.assign(this, { host, port, timeout });
  }

  close() {
    this.#socket?.destroy();
    this.#socket = null;
    this.#buffer = '';
    this.#waiting = 0;
  }

  /** Yields the reply to each request, in order: a string or a ServerError. Throws when there is no connection. */
  async *ask(requests) {
    const isRequest = (text) => text.length <= LONGEST_REQUEST && /^[\t -~]*[!-~][\t -~]*$/.test(text);
    const wrong = requests.find((request) => !isRequest(request));
    if (wrong !== undefined) throw new RangeError(`not a request: ${wrong}`);
    for (let answered = 0, failures = 0; answered < requests.length; ) {
      try {
        const batch = firstBatch(requests, answered);
        await this.#send(batch);
        while (this.#waiting > 0) {
          const reply = await this.#reply();
          this.#waiting -= 1;
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

  async #send(batch) {
    // What nobody has waited for, because the caller has left, or what has come unasked is no reply to what is asked next.
    if (this.#waiting || this.#buffer || this.#socket?.readableLength || this.#socket?.readableEnded) this.close();
    if (!this.#socket || this.#socket.destroyed) {
      await this.#connect().catch((error) => {
        throw new Error(`no connection: ${error.message}`);
      });
    }
    this.#waiting = batch.length;
    this.#socket.write(batch.map((request) => `${request}\n`).join(''));
  }

  async #connect() {
    let failure;
    for (const { address } of await dns.lookup(this.host, { all: true })) {
      const socket = net.connect({ host: address, port: this.port }).setEncoding('latin1');
      // Whoever reads or connects is told; an error that comes meanwhile must not end the program.
      socket.on('error', () => {});
      try {
        await this.#inTime(socket, 'timed out', once(socket, 'connect'));
        this.#socket = socket;
        this.#pieces = socket[Symbol.asyncIterator]();
        return;
      } catch (error) {
        failure = error;
      }
    }
    throw failure;
  }

  /** Waits for the promise, and has the socket fail if it takes too long. */
  async #inTime(socket, otherwise, promise) {
    const timer = setTimeout(() => socket.destroy(new Error(otherwise)), this.timeout);
    return promise.finally(() => clearTimeout(timer));
  }

  async #reply() {
    const line = await this.#inTime(this.#socket, 'no reply in time', this.#line());
    if (!line.startsWith('ERR ')) return line;
    const [, word, sentence] = /^ERR ([^ ]*) ?(.*)$/.exec(line);
    // These two are about the connection, whatever was asked, and the server closes after them.
    if (word === 'BUSY') throw new Busy(`the server is busy: ${sentence}`);
    if (word === 'TIMEOUT') throw new Error(`the server closed the connection: ${sentence}`);
    return new ServerError(word, sentence);
  }

  async #line() {
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
  }
}

/** As many of the requests, from there on, as are sent at once. */
function firstBatch(requests, start) {
  let end = start;
  for (let size = 0; end < requests.length; end += 1) {
    size += requests[end].length + 1;
    if (size > BATCH) break;
  }
  return requests.slice(start, end);
}

// The program.

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
        process.stdout.write(`${request}\t${reply}\n`);
      }
    }
  } catch (error) {
    if (error instanceof RangeError) wrong(error.message);
    console.error(`client: ${client.host}:${client.port}: ${error.message}`);
    status = error instanceof Busy ? 75 : 69;
  }
  return status;
}

/** Waits, and keeps the connection alive meanwhile. */
async function wait(client, time, keepalive) {
  for (; time > keepalive; time -= keepalive) {
    await sleep(keepalive);
    // If it fails, the next request says so, if it still is so then.
    await client.keepAlive().catch(() => {});
  }
  await sleep(time);
}

function wrong(message) {
  console.error(`usage: client [--repeat SECONDS] HOST PORT REQUEST [REQUEST ...]\nclient: ${message}`);
  process.exit(64);
}

/** This number of seconds in milliseconds. */
function milliseconds(text) {
  if (!/^\d*\.?\d+$/.test(text) || !(text >= 0.001 && text <= 1e6)) wrong(`not a number of seconds: ${text}`);
  return text * 1000;
}

async function main() {
  let words = process.argv.slice(2);
  let repeat = 0;
  if (words[0] === '--repeat' && words.length > 1) {
    repeat = milliseconds(words[1]);
    words = words.slice(2);
  }
  const [host, port, ...requests] = words;
  if (requests.length === 0 || !host || host.startsWith('-')) wrong('nothing to ask');
  if (!/^\d{1,5}$/.test(port) || port < 1 || port > 65535) wrong(`not a port: ${port}`);
  const client = new Client(host, port, milliseconds(process.env.TIMEOUT ?? '2'));
  const keepalive = milliseconds(process.env.KEEPALIVE ?? '60');

  process.stdout.on('error', (error) => {
    if (error.code !== 'EPIPE') console.error(`client: stdout: ${error.message}`);
    process.exit(74);
  });
  while (repeat) {
    await askAndPrint(client, requests);
    await wait(client, repeat, keepalive);
  }
  process.exitCode = await askAndPrint(client, requests);
  client.close();
}

main();
