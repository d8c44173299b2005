#!/usr/bin/env python3
"""A client of blockchain-tcpd in Python 3.8 or later, with the standard library alone.

    python3 client.py [--repeat SECONDS] HOST PORT REQUEST [REQUEST ...]

Class Client connects to any address of a name, within a time-out; sends many requests at once and matches their replies,
however these are cut into packets; gives an ERR as a value of its own; keeps the connection alive with PING; and, when it is
lost, makes a new one and asks again what was not answered. README.md, beside this file, says what is printed and when.
"""

import argparse
import os
import re
import select
import signal
import socket
import sys
import time

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
        self.buffer = bytearray()

    def close(self):
        if self.socket:
            self.socket.close()
        self.socket = None
        self.buffer.clear()

    def ask(self, requests):
        """Yields the reply to each request, in order: a str or a ServerError. Raises OSError when there is no connection."""
        answered = failures = 0
        while answered < len(requests):
            try:
                for reply in self._exchange(requests[answered:]):
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

    def _exchange(self, requests):
        # Nobody was asked anything: what has come is the end, or last words, or no reply to what is asked next.
        if self.socket and (self.buffer or select.select([self.socket], [], [], 0)[0]):
            self.close()
        if not self.socket:
            self.socket = socket.create_connection(self.address, self.timeout)
        for batch in batches(requests):
            self.socket.settimeout(self.timeout)
            self.socket.sendall("".join(request + "\n" for request in batch).encode("ascii"))
            for _ in batch:
                yield self._reply()

    def _reply(self):
        line = self._line()
        if not line.startswith("ERR "):
            return line
        _, word, sentence = (line + " ").split(" ", 2)
        # These two are about the connection, whatever was asked, and the server closes after them.
        if word == "BUSY":
            raise Busy(f"the server is busy: {sentence.rstrip()}")
        if word == "TIMEOUT":
            raise ConnectionError(f"the server closed the connection: {sentence.rstrip()}")
        return ServerError(word, sentence.rstrip())

    def _line(self):
        deadline = time.monotonic() + self.timeout
        while (end := self.buffer.find(b"\n")) < 0 and len(self.buffer) <= LONGEST_REPLY:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("no reply in time")
            self.socket.settimeout(left)
            piece = self.socket.recv(LONGEST_REPLY)
            if not piece:
                raise ConnectionError("the server closed the connection")
            self.buffer += piece
        line = bytes(self.buffer[:end])
        del self.buffer[: end + 1]
        if not 0 <= end <= LONGEST_REPLY or not re.fullmatch(rb"[ -~]*", line):
            raise ConnectionError("the server sent something that is no reply")
        return line.decode("ascii")


def batches(requests):
    """Cuts the requests into batches that are sent at once."""
    batch, size = [], 0
    for request in requests:
        if batch and size + len(request) + 1 > BATCH:
            yield batch
            batch, size = [], 0
        batch.append(request)
        size += len(request) + 1
    yield batch


def ask_and_print(client, requests):
    """Returns the exit status that this comes to."""
    status = 0
    try:
        for request, reply in zip(requests, client.ask(requests)):
            if isinstance(reply, ServerError):
                print(f"{request}: {reply}", file=sys.stderr)
                status = 1
            else:
                print(f"{request}\t{reply}")
    except OSError as error:
        print(f"client.py: {':'.join(map(str, client.address))}: {error}", file=sys.stderr)
        status = 75 if isinstance(error, Busy) else 69
    sys.stdout.flush()
    return status


def wait(client, seconds, keepalive):
    """Waits, and keeps the connection alive meanwhile."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, keepalive))
        if left > keepalive:
            try:
                client.keep_alive()
            except OSError:
                pass  # The next request says so, if it still is so then.


class Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(64, f"{self.format_usage()}client.py: {message}\n")


def seconds(text):
    if not re.fullmatch(r"\d*\.?\d+", text, re.ASCII) or not 0 < float(text) <= 1e6:
        raise argparse.ArgumentTypeError(f"not a number of seconds: {text}")
    return float(text)


def port(text):
    if not re.fullmatch(r"\d{1,5}", text, re.ASCII) or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"not a port: {text}")
    return int(text)


def request(text):
    """A line without a word would get no reply; a line end, or too long a line, would be something else."""
    if not re.fullmatch(r"[\t -~]*[!-~][\t -~]*", text) or len(text) > 1023:
        raise argparse.ArgumentTypeError(f"not a request: {text!r}")
    return text


def main():
    parser = Parser(prog="client.py", allow_abbrev=False)
    parser.add_argument("--repeat", type=seconds, metavar="SECONDS", help="ask again every so often")
    parser.add_argument("host", metavar="HOST")
    parser.add_argument("port", metavar="PORT", type=port)
    parser.add_argument("requests", metavar="REQUEST", type=request, nargs="+")
    arguments = parser.parse_args()
    try:
        timeout, keepalive = seconds(os.environ.get("TIMEOUT", "2")), seconds(os.environ.get("KEEPALIVE", "60"))
    except argparse.ArgumentTypeError as error:
        parser.error(error)

    # Both signals end it in the same way: by an exception, wherever it is.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    client, status = Client(arguments.host, arguments.port, timeout), 0
    try:
        while True:
            latest = ask_and_print(client, arguments.requests)
            if not arguments.repeat:
                return latest
            status = status or min(latest, 1)
            wait(client, arguments.repeat, keepalive)
    except KeyboardInterrupt:
        return status
    finally:
        client.close()


if __name__ == "__main__":
    sys.exit(main())
