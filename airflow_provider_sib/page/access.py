"""Asks Airflow's auth manager who may see and control what, as Airflow does for its own pages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
from airflow.models.dag import DagModel

if TYPE_CHECKING:
    from collections.abc import Iterable

    from airflow.api_fastapi.auth.managers.models.base_user import BaseUser


def permitted(
    user: BaseUser, method: Literal["GET", "PUT"], dag_ids: Iterable[str | None]
) -> frozenset[str | None]:
    """Leave of some DAGs those whose runs a user may read, or edit.

    :param user: who asks.
    :param method: ``GET`` to read, ``PUT`` to edit.
    :param dag_ids: DAGs, also some that Airflow no longer has; None stands for a campaign that tells of no DAG, which
        takes the right to all DAGs and their runs.
    """
    manager = get_auth_manager()

    def may(dag_id: str | None) -> bool:
        if dag_id is None:
            return manager.is_authorized_dag(method=method, user=user) and manager.is_authorized_dag(
                method=method, access_entity=DagAccessEntity.RUN, user=user
            )
        return manager.is_authorized_dag(
            method=method,
            access_entity=DagAccessEntity.RUN,
            details=DagDetails(id=dag_id, team_name=DagModel.get_team_name(dag_id)),
            user=user,
        )

    return frozenset(dag_id for dag_id in set(dag_ids) if may(dag_id))
