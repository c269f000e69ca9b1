"""Asks Airflow's auth manager who may see and control what, as Airflow does for its own pages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
from airflow.configuration import conf
from airflow.models.dag import DagModel
from airflow.models.team import Team

if TYPE_CHECKING:
    from collections.abc import Iterable

    from airflow.api_fastapi.auth.managers.models.base_user import BaseUser

NO_DAG = "<none>"
"""An id that no DAG can have: only the right to all DAGs holds for it. Asked without an id, the FAB auth manager tells
whether there is any DAG that the user may read."""


def permitted(
    user: BaseUser, method: Literal["GET", "PUT"], dag_ids: Iterable[str | None]
) -> frozenset[str | None]:
    """Leave of some DAGs those whose runs a user may read, or edit.

    :param user: who asks.
    :param method: ``GET`` to read, ``PUT`` to edit.
    :param dag_ids: DAGs, also some that Airflow no longer has; None stands for a campaign that tells of no DAG, which
        takes the right to all DAGs and their runs. With ``[core] multi_team`` both take it in every team.
    """
    manager = get_auth_manager()

    def may(dag_id: str) -> bool:
        return all(
            manager.is_authorized_dag(
                method=method,
                access_entity=DagAccessEntity.RUN,
                details=DagDetails(id=dag_id, team_name=team),
                user=user,
            )
            for team in _teams(dag_id)
        )

    return frozenset(dag_id for dag_id in set(dag_ids) if may(dag_id or NO_DAG))


def _teams(dag_id: str) -> list[str | None]:
    """Name the team whose DAG it is; all teams where Airflow no longer knows, so that none sees what may be another's.

    The simple auth manager asks for no team where it is given none (``SimpleAuthManager._is_authorized``).
    """
    if conf.getboolean("core", "multi_team", fallback=False) and DagModel.get_current(dag_id) is None:
        return [None, *Team.get_all_team_names()]
    return [DagModel.get_team_name(dag_id)]
