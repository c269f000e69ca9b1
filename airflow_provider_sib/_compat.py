"""The differences between the supported versions of Airflow, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from airflow.sdk import Context, conf
    from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException
else:
    try:
        from airflow.sdk import conf
        from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException
    except ImportError:  # Airflow 3.1
        from airflow.configuration import conf
        from airflow.exceptions import AirflowFailException, AirflowSkipException

__all__ = ["AirflowFailException", "AirflowSkipException", "conf", "task_state_store"]


class TaskStateStore(Protocol):
    """What survives a retry, a clear and a SIGKILL of one task instance: JSON values by name."""

    def get(self, key: str) -> Any: ...
    def set(self, key: str, value: Any) -> None: ...
    def delete(self, key: str) -> None: ...


def task_state_store(context: Context) -> TaskStateStore | None:
    """Give the running task's state store, or None on Airflow 3.1 and 3.2, which have none."""
    return context.get("task_state_store")
