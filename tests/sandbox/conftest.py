"""A sandbox of its own for each test, and a caller that shares no code with the provider's clients."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from airflow_provider_sib.sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator

VISITOR = "kZMvWhf8npAu3H6qd57w2Hv6nh6rnxvg"
AGENT = "d9nKoegKSjmCtyK78"
GROUP = "PjRBMhWGen6aRHjif"
#: Brevo's OpenAPI description of Conversations.
CONTRACT: dict[str, Any] = yaml.safe_load(
    (Path(__file__).parent / "contract" / "conversations-openapi-3.1.yaml").read_text()
)


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Caller:
    """Calls a sandbox with the standard library's HTTP client."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.port = int(sandbox.page_url.rsplit(":", 1)[1].strip("/"))

    def raw(self, method: str, path: str, body: bytes | None, headers: dict[str, str], timeout=10.0) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def own(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        """Call the sandbox's own API."""
        data = None if body is None else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.raw(method, path, data, {"content-type": "application/json", **named})

    def __call__(
        self, method: str, path: str, body: Any = None, *, key: str | None = "", timeout=10.0
    ) -> Reply:
        """Call Brevo's API; the sandbox's key unless another or None is given."""
        headers = {} if key is None else {"api-key": key or self.sandbox.api_key}
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            headers["content-type"] = "application/json"
        return self.raw(method, f"/v3{path}", data, headers, timeout)


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def call(sandbox: Sandbox) -> Caller:
    return Caller(sandbox)


@pytest.fixture(scope="session")
def contract() -> dict[str, Any]:
    return CONTRACT
