"""A proxy between a worker and MongoDB that passes everything, refuses writes, loses answers, or is silent."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from typing import Any

import bson
from pymongo import uri_parser

__all__ = ["Proxy"]

_OP_MSG = 2013
_HEADER = struct.Struct("<iiii")  # length, request id, response to, operation
_MORE_TO_COME = 2
_WRITES = {"insert", "update", "delete", "findAndModify"}

#: Errors of a server that can't write now, whatever the documents are: code -> name.
REFUSALS = {
    13: "Unauthorized",
    10107: "NotWritablePrimary",
    13435: "NotPrimaryNoSecondaryOk",
    11600: "InterruptedAtShutdown",
    14031: "OutOfDiskSpace",
}


class Proxy:
    """A TCP proxy that knows enough of MongoDB's protocol (OP_MSG) to answer a write itself.

    Arguments:
        uri: The URI of one server without TLS.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        parsed = uri_parser.parse_uri(uri)
        (self._target,) = parsed["nodelist"]
        self._refusal: int | None = None
        self._unknown: tuple[str, ...] = ()
        self._loses_answers = False
        self._closed = False
        #: Cleared while the proxy is silent.
        self._flows = threading.Event()
        self._flows.set()
        #: The number of refused writes, and of lost answers.
        self.refused = self.lost = 0
        self._links: set[_Link] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def uri(self) -> str:
        """The URI of the server by way of this proxy."""
        host, port = self._target
        named = f"{host}:{port}" if f"{host}:{port}" in self._uri else host
        return self._uri.replace(named, f"127.0.0.1:{self.port}", 1)

    def refuse(self, code: int) -> None:
        """Answer every write with this error (one of `REFUSALS`), instead of passing it on."""
        self._refusal = code

    def lack(self, *operators: str) -> None:
        """Be a server that does not know these operators: each request with one of them is answered by an error."""
        self._unknown = operators

    def lose_answers(self) -> None:
        """Pass everything on, but cut the connection when the answer to a write comes."""
        self._loses_answers = True

    def freeze(self) -> None:
        """Pass nothing on, and keep all connections open."""
        self._flows.clear()

    def cut(self) -> None:
        """Cut all present connections. New ones are accepted."""
        with self._lock:
            links = list(self._links)
        for link in links:
            link.close()

    def heal(self) -> None:
        """Pass everything on again."""
        self._refusal, self._loses_answers, self._unknown = None, False, ()
        self._flows.set()

    def close(self) -> None:
        """Cut all connections, and accept no new ones."""
        self._closed = True
        self.heal()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            try:
                server = socket.create_connection(self._target, 10)
            except OSError:  # the server is away: so is the proxy
                client.close()
                continue
            server.settimeout(None)
            link = _Link(client, server)
            with self._lock:
                self._links.add(link)
            for pump in (self._pump_requests, self._pump_answers):
                threading.Thread(target=self._pump, args=(pump, link), daemon=True).start()

    def _pump(self, pump: Any, link: _Link) -> None:
        try:
            with contextlib.suppress(OSError, EOFError):
                pump(link)
        finally:
            link.close()
            with self._lock:
                self._links.discard(link)

    def _pump_requests(self, link: _Link) -> None:
        while True:
            message = _read(link.client)
            self._flows.wait()
            write = _write_command(message)
            lacking = [name for name in self._unknown if f"${name}\0".encode() in message]
            if lacking:
                link.answer(_error(message, 168, f"Unrecognized expression '${lacking[0]}'"))
            elif write is None:
                link.server.sendall(message)
            elif self._refusal is not None:
                self.refused += 1
                if not write.silent:
                    link.answer(_refusal(write, self._refusal))
            else:
                if self._loses_answers:
                    link.doomed.add(write.request_id)
                link.server.sendall(message)

    def _pump_answers(self, link: _Link) -> None:
        while True:
            message = _read(link.server)
            self._flows.wait()
            if _HEADER.unpack_from(message)[2] in link.doomed:
                self.lost += 1
                return
            link.answer(message)


class _Link:
    """A client's connection, and the proxy's connection to the server for it."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        self.doomed: set[int] = set()
        self._answering = threading.Lock()

    def answer(self, message: bytes) -> None:
        with self._answering:
            self.client.sendall(message)

    def close(self) -> None:
        for end in (self.client, self.server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


class _Write:
    """A write command."""

    def __init__(self, request_id: int, flags: int, documents: int, name: str) -> None:
        self.request_id = request_id
        self.silent = bool(flags & _MORE_TO_COME)
        self.documents = documents
        self.name = name


def _read(link: socket.socket) -> bytes:
    header = _exactly(link, _HEADER.size)
    return header + _exactly(link, _HEADER.unpack(header)[0] - _HEADER.size)


def _exactly(link: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = link.recv(min(size - len(data), 1 << 20))
        if not part:
            raise EOFError
        data += part
    return bytes(data)


def _write_command(message: bytes) -> _Write | None:
    """The command, if the message is a write."""
    length, request_id, _, operation = _HEADER.unpack_from(message)
    if operation != _OP_MSG:
        return None
    (flags,) = struct.unpack_from("<I", message, _HEADER.size)
    name, documents, at = "", 0, _HEADER.size + 4
    end = length - 4 if flags & 1 else length  # flag 1: a checksum follows
    while at < end:
        kind, (size,) = message[at], struct.unpack_from("<i", message, at + 1)
        if kind == 0:
            name = message[at + 6 : message.index(b"\0", at + 6)].decode()
        else:
            documents += _documents(message, at + 1, at + 1 + size)
        at += 1 + size
    return _Write(request_id, flags, documents, name) if name in _WRITES else None


def _documents(message: bytes, at: int, end: int) -> int:
    """The number of documents in a sequence."""
    count, at = 0, message.index(b"\0", at + 4) + 1
    while at < end:
        at += struct.unpack_from("<i", message, at)[0]
        count += 1
    return count


def _refusal(write: _Write, code: int) -> bytes:
    """A mongod's answer with this error. A full disk is an error of each document, others are of the whole command."""
    error = {"code": code, "errmsg": f"refused by the test: {REFUSALS[code]}"}
    if REFUSALS[code] == "OutOfDiskSpace":
        answer = {
            "ok": 1.0,
            "n": 0,
            "nModified": 0,
            "writeErrors": [{"index": n, **error} for n in range(max(write.documents, 1))],
        }
    else:
        answer = {"ok": 0.0, "codeName": REFUSALS[code], **error}
    return _answer(write.request_id, answer)


def _error(message: bytes, code: int, text: str) -> bytes:
    """A mongod's answer to this message: an error of the whole command."""
    return _answer(_HEADER.unpack_from(message)[1], {"ok": 0.0, "code": code, "errmsg": text})


def _answer(request_id: int, answer: dict[str, Any]) -> bytes:
    body = struct.pack("<IB", 0, 0) + bson.encode(answer)
    return _HEADER.pack(_HEADER.size + len(body), 0, request_id, _OP_MSG) + body
