"""What the Airflow plugin costs every daemon and task, and that Airflow finds it."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import entry_points

CODE = """
import json, sys
import airflow.plugins_manager
before = set(sys.modules)
import airflow_provider_sib.plugin
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def test_importing_it_brings_nothing_but_itself():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    added = json.loads(done.stdout.splitlines()[-1])
    # Airflow itself reads the provider's info when it is imported.
    assert {"airflow_provider_sib.plugin"} == set(added) - {"airflow_provider_sib"}


def test_airflow_finds_it_by_its_entry_point():
    [found] = [point for point in entry_points(group="airflow.plugins") if point.name == "sib"]
    plugin = found.load()
    [mounted] = plugin.fastapi_apps
    [view] = plugin.external_views
    assert view["href"] == f"{mounted['url_prefix'].strip('/')}/"
