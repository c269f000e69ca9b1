"""The differences between the supported versions of Airflow, and between its processes, and nothing else."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from datetime import timedelta

    from airflow.sdk import Connection, Context, conf
    from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException
else:
    try:
        from airflow.sdk import conf
        from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException
    except ImportError:  # Airflow 3.1
        from airflow.configuration import conf
        from airflow.exceptions import AirflowException, AirflowFailException, AirflowSkipException

__all__ = [
    "AirflowException",
    "AirflowFailException",
    "AirflowSkipException",
    "as_long_as_the_run",
    "conf",
    "get_connection",
    "get_variable",
    "keeps_deep_links",
    "runs_in_airflow",
    "set_variable",
    "task_state_store",
]


class TaskStateStore(Protocol):
    """What survives a retry, a clear and a SIGKILL of one task instance: JSON values by name."""

    def get(self, key: str) -> Any: ...
    def set(self, key: str, value: Any, *, retention: timedelta | None = None) -> None: ...
    def delete(self, key: str) -> None: ...


def task_state_store(context: Context) -> TaskStateStore | None:
    """Give the running task's state store, or None on Airflow 3.1 and 3.2, which have none."""
    return context.get("task_state_store")


def as_long_as_the_run() -> timedelta | None:
    """Give the retention of what outlives ``[state_store] default_retention_days``; None without such a store."""
    from airflow import sdk

    # Not before it is needed, since it loads more than a DAG file needs. Airflow's stub leaves it out.
    retention: timedelta | None = getattr(sdk, "NEVER_EXPIRE", None)
    return retention


def keeps_deep_links() -> bool:
    """Tell whether Airflow's UI opens an address inside a plugin's page, as it does from 3.3 on."""
    from importlib.metadata import version

    major, minor = version("apache-airflow-core").split(".")[:2]
    return (int(major), int(minor)) >= (3, 3)


def runs_in_airflow() -> bool:
    """Tell whether this process is run by Airflow's supervisor: a task, a trigger, a DAG file's parsing.

    Anywhere else (a command line, the API server) Airflow's SDK finds nothing that is stored in the database, and
    says so as if it did not exist: there `airflow.models` is asked.
    """
    return hasattr(sys.modules.get("airflow.sdk.execution_time.task_runner"), "SUPERVISOR_COMMS")


def get_connection(conn_id: str) -> Connection:
    """Get an Airflow connection, in whatever process this is.

    :raises Exception: Airflow's own, when there is no such connection.
    """
    if runs_in_airflow():
        from airflow.sdk import BaseHook

        return BaseHook.get_connection(conn_id)
    from airflow.models import Connection as StoredConnection

    return StoredConnection.get_connection_from_secrets(conn_id)


def get_variable(key: str) -> str | None:
    """Get an Airflow Variable, in whatever process this is.

    Airflow's own ``Variable.get`` takes a failing API server, and in other processes a failing database or secrets
    backend, for a Variable that does not exist.

    :return: its value, or None when there surely is none.
    :raises RuntimeError: when that could not be learnt.
    """
    if not runs_in_airflow():
        return _stored_variable(key)
    from airflow.sdk.exceptions import ErrorType
    from airflow.sdk.execution_time.comms import ErrorResponse, GetVariable, VariableResult
    from airflow.sdk.execution_time.task_runner import SUPERVISOR_COMMS

    answer = SUPERVISOR_COMMS.send(GetVariable(key=key))
    if isinstance(answer, VariableResult):
        return answer.value
    if isinstance(answer, ErrorResponse) and answer.error == ErrorType.VARIABLE_NOT_FOUND:
        return None
    raise RuntimeError(f"Airflow did not tell the value of its Variable {key}: {answer}")


def _stored_variable(key: str) -> str | None:
    from airflow.configuration import ensure_secrets_loaded

    for backend in ensure_secrets_loaded():
        try:
            value = backend.get_variable(key=key)
        except Exception as error:
            cause = str(getattr(error, "orig", None) or error).partition("\n")[0]
            raise RuntimeError(
                f"Airflow's Variable {key} could not be read by {type(backend).__name__} "
                f"({type(error).__name__}: {cause}); is this process given Airflow's database?"
            ) from error
        if value is not None:
            return value
    return None


def set_variable(key: str, value: str, description: str) -> None:
    """Set an Airflow Variable, in whatever process this is."""
    if runs_in_airflow():
        from airflow.sdk import Variable

        Variable.set(key, value, description=description)
    else:
        from airflow.models import Variable as StoredVariable

        StoredVariable.set(key, value, description=description)
