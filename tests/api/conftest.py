"""Both clients behind one face, and a server that does on the socket whatever a test says."""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
import json
import socket
import ssl
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_sib.api.aio import AsyncConversationsClient
from airflow_provider_sib.api.client import ConversationsClient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from airflow_provider_sib.api.calls import Call
    from airflow_provider_sib.api.wire import Answer

MESSAGE = json.dumps({"id": "m", "text": "hi"}).encode()


class SyncFace:
    def __init__(self, **settings: Any) -> None:
        self.slept: list[float] = []
        pause = settings.pop("pause", lambda: None)

        def sleep(seconds: float) -> None:
            self.slept.append(seconds)
            pause()

        self.client = ConversationsClient(**settings, sleep=sleep, random=lambda: 1.0)

    def perform(self, call: Call[Any]) -> Answer[Any]:
        return self.client.perform(call)

    def method(self, name: str, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.client, name)(*args, **kwargs)

    def close(self) -> None:
        self.client.close()


class AsyncFace:
    def __init__(self, **settings: Any) -> None:
        self.slept: list[float] = []
        self.runner = asyncio.Runner()
        pause = settings.pop("pause", lambda: None)

        async def sleep(seconds: float) -> None:
            self.slept.append(seconds)
            pause()

        self.client = AsyncConversationsClient(**settings, sleep=sleep, random=lambda: 1.0)

    def perform(self, call: Call[Any]) -> Answer[Any]:
        return self.runner.run(self.client.perform(call))

    def method(self, name: str, *args: Any, **kwargs: Any) -> Any:
        return self.runner.run(getattr(self.client, name)(*args, **kwargs))

    def close(self) -> None:
        self.runner.run(self.client.close())
        self.runner.close()


@pytest.fixture(params=[SyncFace, AsyncFace], ids=["sync", "async"])
def connect(request: pytest.FixtureRequest) -> Iterator[Callable[..., SyncFace | AsyncFace]]:
    """Make clients by their settings, of both kinds in turn, and close them in the end."""
    made: list[SyncFace | AsyncFace] = []

    def make(**settings: Any) -> SyncFace | AsyncFace:
        made.append(request.param(**settings))
        return made[-1]

    yield make
    for face in made:
        face.close()


class Peer:
    """A server whose behaviour on each connection is a function of the socket.

    :param behave: called for each connection in a thread of its own; the connection ends when it returns.
    :param tls: speaks TLS first.
    """

    def __init__(
        self, behave: Callable[[Peer, socket.socket], None], tls: ssl.SSLContext | None = None
    ) -> None:
        self.behave = behave
        self.tls = tls
        self.requests: list[bytes] = []
        self.connections = 0
        self.over = threading.Event()
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}/v3"
        self._start(self._accept)

    def _start(self, target: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(sock)
            self._start(self._serve, sock)

    def _serve(self, sock: socket.socket) -> None:
        with sock:
            try:
                if self.tls is not None:
                    sock = self.tls.wrap_socket(sock, server_side=True)
                    self._open.append(sock)
                self.behave(self, sock)
            except OSError:
                pass  # the client went away, as some tests want it to
            finally:
                sock.close()

    def read(self, sock: socket.socket) -> bytes:
        """Read one request with its body, and note it; b"" if the client closed."""
        data = b""
        while b"\r\n\r\n" not in data:
            if not (piece := sock.recv(65536)):
                return b""
            data += piece
        head, _, body = data.partition(b"\r\n\r\n")
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                while len(body) < int(line.partition(b":")[2]):
                    body += sock.recv(65536)
        self.requests.append(head + b"\r\n\r\n" + body)
        return self.requests[-1]

    def close(self) -> None:
        self.over.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._open:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
        for thread in self._threads:
            thread.join(5)


@pytest.fixture
def peer() -> Iterator[Callable[..., Peer]]:
    """Start servers by their behaviour, and end them."""
    made: list[Peer] = []

    def make(behave: Callable[[Peer, socket.socket], None], tls: ssl.SSLContext | None = None) -> Peer:
        made.append(Peer(behave, tls))
        return made[-1]

    yield make
    for one in made:
        one.close()


# What a peer may do


def answering(head: str = "", body: bytes = MESSAGE, status: str = "200 OK"):
    """Answer every request on a kept connection, in the same way."""

    def behave(peer, sock):
        while peer.read(sock):
            sock.sendall(
                f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\ncontent-type: application/json\r\n"
                f"{head}\r\n".encode()
                + body
            )

    return behave


def reset_at_once(peer, sock):
    """Have the connection end with a reset instead of a proper end."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")


def tunnel(to: int):
    def behave(peer, sock):
        peer.read(sock)
        with socket.create_connection(("127.0.0.1", to)) as onward:
            sock.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            passed_on(sock, onward)

    return behave


def passed_on(sock: socket.socket, onward: socket.socket) -> None:
    """Pass on what either side says, until the first hangs up."""

    def back():
        with suppress(OSError):  # either side has hung up
            while data := onward.recv(65536):
                sock.sendall(data)

    thread = threading.Thread(target=back, daemon=True)
    thread.start()
    while data := sock.recv(65536):
        onward.sendall(data)


# TLS


def self_signed(folder: Path) -> Path:
    """Make a certificate for 127.0.0.1 that nobody has signed, with its key, in one file."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("brevo.invalid")]
            ),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = folder / "certificate.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        + made.public_bytes(serialization.Encoding.PEM)
    )
    return path


def speaking_tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return self_signed(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def tls(certificate: Path) -> ssl.SSLContext:
    return speaking_tls(certificate)
