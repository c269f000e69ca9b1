"""Gives tests of one's own DAGs the fixture `sib_sandbox`. Imports nothing but pytest until it is used."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow_provider_sib.sandbox import Sandbox


@pytest.fixture
def sib_sandbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """Run a sandbox for one test, and point Airflow's connection ``sib_conversations_default`` at it::

        def test_everybody_is_told(sib_sandbox):
            sib_sandbox.configure(unknown_visitor="reject")
            dag.test()
            assert [message["text"] for message in sib_sandbox.messages()] == ["Version 2 is out."]

    Another connection is one line: ``monkeypatch.setenv("AIRFLOW_CONN_MINE", sib_sandbox.connection_json())``.
    """
    from airflow_provider_sib.sandbox import Sandbox

    with Sandbox() as sandbox:
        monkeypatch.setenv("AIRFLOW_CONN_SIB_CONVERSATIONS_DEFAULT", sandbox.connection_json())
        yield sandbox
