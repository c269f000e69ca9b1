"""Parsing a DAG file is free: what importing the operators adds to a process that has airflow.sdk."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

MODULES = ["operators", "sensors", "notifications", "hooks"]
CODE = """
import json, sys, time
from airflow.sdk import DAG, BaseOperator
before = set(sys.modules)
from airflow_provider_sib.{module} import *
print(json.dumps(sorted(set(sys.modules) - before)))
"""


@pytest.mark.parametrize("module", MODULES)
def test_only_modules_of_ours_and_airflows_base_classes_are_added(module):
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(module=module)], capture_output=True, text=True, check=True
    )
    added = set(json.loads(done.stdout.splitlines()[-1]))
    ours = {name for name in added if name.startswith("airflow_provider_sib")}
    assert not ours & {
        "airflow_provider_sib.triggers",
        "airflow_provider_sib.api.models",
        "airflow_provider_sib.api.calls",
        "airflow_provider_sib.api.client",
        "airflow_provider_sib.api.aio",
    }
    others = {name.split(".")[0] for name in added - ours}
    assert others <= sys.stdlib_module_names | {"airflow"}
    assert {name for name in added if name.startswith("airflow.")} <= {
        "airflow.sdk.bases.hook",
        "airflow.sdk.bases.notifier",
        "airflow.sdk.bases.operatorlink",
        "airflow.sdk.bases.sensor",
        # Of which an audience may be; airflow.sdk of Airflow 3.1 has not loaded it by itself.
        "airflow.sdk.definitions.xcom_arg",
        "airflow.sdk.execution_time.lazy_sequence",
    }
