"""A local Brevo Conversations to try things on: nothing that is sent to it reaches anybody.

``python -m airflow_provider_sib.sandbox`` runs it; :class:`Sandbox` runs it inside a test. What it answers is in
the docstring of `airflow_provider_sib.sandbox.state`, its own API in that of `server`, faults in that of
`faults`. Importing this package is cheap: the server is imported when a `Sandbox` is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_provider_sib.sandbox.threaded import Sandbox

__all__ = ["Sandbox"]


def __getattr__(name: str) -> Any:
    if name == "Sandbox":
        from airflow_provider_sib.sandbox.threaded import Sandbox

        return Sandbox
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
