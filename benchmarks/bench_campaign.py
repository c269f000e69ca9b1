"""Measures how fast a campaign is delivered, against loops without a ledger: ``python benchmarks/bench_campaign.py``.

All send to one bare server in another process that answers with a documented message, at once or after a latency.
The campaign keeps its ledger in SQLite, synchronous=FULL. Every figure is the best of a few rounds that take turns,
since whatever else the machine does only makes them slower.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import socket
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

KEY = "xkeysib-benchmark"

# https://developers.brevo.com/reference/send-an-automated-message-to-a-visitor
MESSAGE = {
    "id": "AXCR3k9bpSY7bpuh7",
    "type": "agent",
    "text": "Good morning!\nHow can I help you?",
    "html": "Good morning!<br>How can I help you?",
    "visitorId": "kZMvWhf8npAu3H6qd57w2Hv6nh6rnxvg",
    "agentId": "d9nKoegKSjmCtyK78",
    "createdAt": 1470222622433,
    "isPushed": True,
    "isTrigger": False,
    "isMissed": False,
    "isMissedByVisitor": False,
}


def serve(listening: socket.socket, latency_seconds: float) -> None:
    """Answer every request with the message, ``latency_seconds`` after it came."""
    body = json.dumps(MESSAGE).encode()
    answer = (
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nsib-request-id: 1\r\n"
        b"x-sib-ratelimit-limit: 1000000000\r\nx-sib-ratelimit-remaining: 999999999\r\n"
        b"x-sib-ratelimit-reset: 3600\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    )

    class Connection(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport, self.received = transport, b""

        def data_received(self, data: bytes) -> None:
            self.received += data
            while (end := self.received.find(b"\r\n\r\n")) >= 0:
                head = self.received[:end].lower()
                at = head.find(b"content-length:")
                length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
                if len(self.received) < end + 4 + length:
                    return
                self.received = self.received[end + 4 + length :]
                if latency_seconds:
                    loop.call_later(latency_seconds, self.transport.write, answer)
                else:
                    self.transport.write(answer)

    async def run() -> None:
        await loop.create_server(Connection, sock=listening, backlog=1024)
        await asyncio.Event().wait()

    loop = asyncio.new_event_loop()
    loop.run_until_complete(run())


def text_for(number: int) -> str:
    """Give the text of one message."""
    return f"Hello visitor {number}, a new version is out."


def brevo_python(base_url: str, messages: int, in_flight: int) -> float:  # noqa: ARG001  the plain loop has one
    """Send in a plain loop of the official SDK."""
    from brevo import Brevo

    client = Brevo(api_key=KEY, base_url=base_url)
    began = time.perf_counter()
    for number in range(messages):
        client.conversations.send_an_automated_message_to_a_visitor(
            visitor_id=f"visitor-{number}", text=text_for(number)
        )
    return messages / (time.perf_counter() - began)


def bare_aiohttp(base_url: str, messages: int, in_flight: int) -> float:
    """Send with aiohttp and nothing else, and read the message's id."""
    import aiohttp

    async def run() -> float:
        numbers = iter(range(messages))
        connector = aiohttp.TCPConnector(limit=in_flight)
        async with aiohttp.ClientSession(connector=connector, headers={"api-key": KEY}) as session:

            async def caller() -> None:
                for number in numbers:
                    body = {"visitorId": f"visitor-{number}", "text": text_for(number)}
                    async with session.post(
                        f"{base_url}/conversations/pushedMessages", json=body
                    ) as response:
                        assert (await response.json())["id"]

            began = time.perf_counter()
            await asyncio.gather(*(caller() for _ in range(in_flight)))
            return messages / (time.perf_counter() - began)

    return asyncio.run(run())


def operator(base_url: str, messages: int, in_flight: int) -> float:
    """Send a campaign as an operator does, whose ``max_in_flight`` is also what a kill may put in doubt."""
    return campaign(base_url, messages, in_flight, claimed_beside=0)


def campaign(base_url: str, messages: int, in_flight: int, *, claimed_beside: int | None = None) -> float:
    """Send a campaign with a ledger on this machine's disk; enrolment apart.

    :param claimed_beside: rows between intent and result beside those on the wire; None: half as many.
    """
    from airflow_provider_sib.api.aio import AsyncConversationsClient
    from airflow_provider_sib.api.wire import Retries
    from airflow_provider_sib.campaign.announcement import Announcement, Enroller
    from airflow_provider_sib.campaign.audience import Row
    from airflow_provider_sib.campaign.engine import Done, Rules, SendEngine, enrol, open_campaign
    from airflow_provider_sib.campaign.ledger import State
    from airflow_provider_sib.campaign.sql_ledger import SqlLedger
    from airflow_provider_sib.delivery import Courier

    with tempfile.TemporaryDirectory() as directory:
        ledger = SqlLedger(f"sqlite:///{directory}/ledger.db")
        announcement = Announcement("Hello visitor [[ visitor.number ]], a new version is out.")
        open_campaign(ledger, "bench", binding={"host": base_url}, announcement=announcement)
        rows = (Row(f"visitor-{number}", {"number": str(number)}, line=number) for number in range(messages))
        enrol(ledger, "bench", rows, Enroller("bench", announcement))
        beside = in_flight // 2 if claimed_beside is None else claimed_beside
        rules = Rules(account="bench", max_in_flight=in_flight + beside)
        engine = SendEngine(ledger, "bench", rules)
        engine.begin(resumed=False)
        courier = Courier(
            engine,
            lambda: AsyncConversationsClient(
                api_key=KEY, base_url=base_url, retries=Retries(attempts=1), max_connections=in_flight
            ),
            max_in_flight=rules.max_in_flight,
            connections=in_flight,
        )
        began = time.perf_counter()
        assert courier.run() == Done()
        seconds = time.perf_counter() - began
        assert ledger.counts("bench").by_state == {State.SENT: messages}
        ledger.close()
        return messages / seconds


CASES: list[tuple[str, float, int, dict[str, Callable[[str, int, int], float]]]] = [
    (
        "no latency, 64 in flight",
        0.0,
        64,
        {
            "brevo-python": brevo_python,
            "bare aiohttp": bare_aiohttp,
            "operator": operator,
            "campaign": campaign,
        },
    ),
    (
        "100 ms latency, 256 in flight",
        0.1,
        256,
        {"bare aiohttp": bare_aiohttp, "operator": operator, "campaign": campaign},
    ),
]


def main() -> None:
    """Run the cases, print a table, write JSON on demand."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--messages", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    found: dict[str, dict[str, float]] = {}
    for name, latency_seconds, in_flight, loops in CASES:
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            listening.listen(1024)
            base_url = f"http://127.0.0.1:{listening.getsockname()[1]}/v3"
            server = multiprocessing.get_context("fork").Process(
                target=serve, args=(listening, latency_seconds), daemon=True
            )
            server.start()
        rounds: dict[str, list[float]] = defaultdict(list)
        # More of them where each takes its time, so that the look at the quota and the last answers weigh little.
        most = options.messages * (3 if latency_seconds else 1)
        for _ in range(options.rounds):
            for loop, run in loops.items():
                messages = most // (5 if loop == "brevo-python" else 1)
                rounds[loop].append(run(base_url, messages, in_flight))
        server.terminate()
        server.join()
        found[name] = {loop: round(max(figures), 1) for loop, figures in rounds.items()}
    columns = (("brevo-python", 14), ("bare aiohttp", 14), ("operator", 11), ("campaign", 11))
    print(f"{'messages a second':<32}{''.join(f'{name:>{width}}' for name, width in columns)}  shares")
    for name, figures in found.items():
        cells = "".join(
            f"{figures[loop]:>{width},.0f}" if loop in figures else f"{'':>{width}}"
            for loop, width in columns
        )
        shares = ", ".join(
            f"{figures[ours] / figures[loop]:.2f} x {loop} ({ours})"
            for ours in ("operator", "campaign")
            for loop in figures
            if loop not in ("campaign", "operator")
        )
        print(f"{name:<32}{cells}  {shares}")
    if options.json:
        options.json.write_text(json.dumps({"messages_per_second": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
