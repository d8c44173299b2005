#!/usr/bin/env python3
"""A client of blockchain-tcpd in Python 3.8 or later, with the standard library alone.

    python3 client.py [--repeat SECONDS] HOST PORT REQUEST [REQUEST ...]

Class Client is to be copied, the program below it shows its use. README.md, beside this file, says what both do.
"""

import os
import re
import selectors
import signal
import socket
import sys
import time

LONGEST_REQUEST = 1023  # bytes, without the line end
LONGEST_REPLY = 4096  # bytes: a server that sends longer lines speaks something else
BATCH = 4096  # bytes of requests sent at once: the system takes them even when the server reads none
ATTEMPTS = 5  # in a row without a reply, before it gives up
PAUSE = 0.1  # seconds before the second attempt, and twice as long before each further one


class ServerError(Exception):
    """What the server answers in the place of a value: a word for programs and a sentence for people."""

    def __init__(self, word, sentence):
        super().__init__(f"{word}: {sentence}")
        self.word = word


class Busy(ConnectionError):
    """The server has no room now."""


class Client:
    """A connection that is made when it is needed, and made again when it is lost."""

    def __init__(self, host, port, timeout=2.0):
        self.address = (host, port)
        self.timeout = timeout
        self.socket = None
        self.buffer = b""
        self.waiting = 0  # replies that are still to come

    def close(self):
        if self.socket:
            self.socket.close()
        self.socket = None
        self.buffer = b""
        self.waiting = 0

    def ask(self, requests):
        """Yields the reply to each request, in order: a str or a ServerError. Raises OSError when there is no connection."""
        for request in requests:
            if len(request) > LONGEST_REQUEST or not re.fullmatch(r"[\t -~]*[!-~][\t -~]*", request):
                raise ValueError(f"not a request: {request}")
        answered = failures = 0
        while answered < len(requests):
            try:
                batch = first_batch(requests, answered)
                self._send(batch)
                for _ in batch:
                    reply = self._reply()
                    self.waiting -= 1
                    answered, failures = answered + 1, 0
                    yield reply
            except OSError:
                self.close()
                failures += 1
                if failures == ATTEMPTS:
                    raise
                time.sleep(PAUSE * 2 ** (failures - 1))

    def keep_alive(self):
        """To be called when nothing has been asked for a while, or the server closes the connection."""
        if list(self.ask(["PING"])) != ["PONG"]:
            self.close()

    def _send(self, batch):
        # What nobody has waited for, because the caller has left, or what has come unasked is no reply to what is asked next.
        if self.socket and (self.waiting or self.buffer or self._readable(0)):
            self.close()
        if not self.socket:
            try:
                self.socket = socket.create_connection(self.address, self.timeout)
            except OSError as error:
                raise ConnectionError(f"no connection: {error}") from error
        self.waiting = len(batch)
        self.socket.sendall("".join(request + "\n" for request in batch).encode("ascii"))

    def _readable(self, seconds):
        with selectors.DefaultSelector() as selector:
            selector.register(self.socket, selectors.EVENT_READ)
            return bool(selector.select(seconds))

    def _reply(self):
        line = self._line()
        if not line.startswith("ERR "):
            return line
        word, _, sentence = line[4:].partition(" ")
        # These two are about the connection, whatever was asked, and the server closes after them.
        if word == "BUSY":
            raise Busy(f"the server is busy: {sentence}")
        if word == "TIMEOUT":
            raise ConnectionError(f"the server closed the connection: {sentence}")
        return ServerError(word, sentence)

    def _line(self):
        deadline = time.monotonic() + self.timeout
        while b"\n" not in self.buffer and len(self.buffer) <= LONGEST_REPLY:
            if not self._readable(deadline - time.monotonic()):
                raise TimeoutError("no reply in time")
            piece = self.socket.recv(LONGEST_REPLY)
            if not piece:
                raise ConnectionError("the server closed the connection")
            self.buffer += piece
        line, _, self.buffer = self.buffer.partition(b"\n")
        if len(line) > LONGEST_REPLY or not re.fullmatch(rb"[ -~]*", line):
            raise ConnectionError("the server sent something that is no reply")
        return line.decode("ascii")


def first_batch(requests, start):
    """As many of the requests, from there on, as are sent at once."""
    end, size = start, 0
    while end < len(requests) and size + len(requests[end]) < BATCH:
        size += len(requests[end]) + 1
        end += 1
    return requests[start:end]


# The program.


def put(line):
    try:
        print(line, flush=True)
    except OSError as error:
        if not isinstance(error, BrokenPipeError):
            print(f"client: stdout: {error}", file=sys.stderr)
        os._exit(74)  # sys.exit would try to print the line again.


def ask_and_print(client, requests):
    """Returns the exit status that this comes to."""
    status = 0
    try:
        for request, reply in zip(requests, client.ask(requests)):
            if isinstance(reply, ServerError):
                print(f"{request}: {reply}", file=sys.stderr)
                status = 1
            else:
                put(f"{request}\t{reply}")
    except ValueError as error:
        wrong(error)
    except OSError as error:
        host, port = client.address
        print(f"client: {host}:{port}: {error}", file=sys.stderr)
        status = 75 if isinstance(error, Busy) else 69
    return status


def wait(client, left, keepalive):
    """Waits, and keeps the connection alive meanwhile."""
    while left > keepalive:
        time.sleep(keepalive)
        left -= keepalive
        try:
            client.keep_alive()
        except OSError:
            pass  # The next request says so, if it still is so then.
    time.sleep(left)


def wrong(message):
    print(f"usage: client [--repeat SECONDS] HOST PORT REQUEST [REQUEST ...]\nclient: {message}", file=sys.stderr)
    sys.exit(64)


def seconds(text):
    if not re.fullmatch(r"[0-9]*\.?[0-9]+", text) or not 0.001 <= float(text) <= 1e6:
        wrong(f"not a number of seconds: {text}")
    return float(text)


def main():
    words, repeat = sys.argv[1:], None
    if words[:1] == ["--repeat"] and len(words) > 1:
        repeat, words = seconds(words[1]), words[2:]
    if len(words) < 3 or not words[0] or words[0].startswith("-"):
        wrong("nothing to ask")
    host, port, *requests = words
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        wrong(f"not a port: {port}")
    client = Client(host, int(port), seconds(os.environ.get("TIMEOUT", "2")))
    keepalive = seconds(os.environ.get("KEEPALIVE", "60"))

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # It ends without a traceback.
    while repeat:
        ask_and_print(client, requests)
        wait(client, repeat, keepalive)
    sys.exit(ask_and_print(client, requests))


if __name__ == "__main__":
    main()
