"""What Airflow is told of the provider, held against Airflow's own schemas and its own discovery."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import airflow
import jsonschema
import pytest
from airflow.providers_manager import ProvidersManager

from airflow_provider_sib import provider_info

INFO = provider_info.get_provider_info()
AIRFLOW = Path(airflow.__file__).parent


def test_it_is_valid_against_the_schema_that_discovery_checks():
    schema = json.loads((AIRFLOW / "provider_info.schema.json").read_text())
    jsonschema.validate(INFO, schema)


def test_it_is_valid_against_the_schema_of_provider_yaml():
    """The stricter schema knows the form; discovery's lets wrong keys pass."""
    schema = json.loads((AIRFLOW / "provider.yaml.schema.json").read_text())
    of_the_file = {"state": "ready", "source-date-epoch": 0, "versions": ["0.1.0"]}
    jsonschema.validate(INFO | of_the_file, schema)
    assert INFO.keys() <= schema["properties"].keys()


def test_the_keys_are_the_kebab_case_ones_that_airflow_reads():
    (connection_type,) = INFO["connection-types"]
    assert connection_type.keys() == {
        "connection-type",
        "hook-class-name",
        "hook-name",
        "ui-field-behaviour",
        "conn-fields",
    }
    assert connection_type["ui-field-behaviour"].keys() == {"hidden-fields", "relabeling", "placeholders"}


def test_the_port_stays_visible():
    """Airflow 3.3's form posts 0 for a hidden port, and the Test button is then refused (apache/airflow#73298)."""
    (connection_type,) = INFO["connection-types"]
    assert "port" not in connection_type["ui-field-behaviour"]["hidden-fields"]


def test_the_package_name_is_the_distributions_name():
    """Where they differ, Airflow's discovery of all providers dies."""
    (entry_point,) = [
        entry
        for entry in entry_points(group="apache_airflow_provider")
        if entry.value.startswith("airflow_provider_sib")
    ]
    assert entry_point.dist is not None
    assert entry_point.dist.name == INFO["package-name"]
    assert entry_point.load()() == INFO


def test_describing_the_provider_imports_the_standard_library_only():
    """A provider whose description imports Airflow breaks a bare `import airflow` on 3.2 and later."""
    code = (
        "import sys; before = set(sys.modules); import airflow_provider_sib.provider_info as p;"
        "p.get_provider_info(); print(*(set(sys.modules) - before))"
    )
    added = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert {name.split(".")[0] for name in added.split()} <= sys.stdlib_module_names | {
        "airflow_provider_sib"
    }


def modules_named() -> list[str]:
    return [
        module
        for kind in ("hooks", "operators", "sensors", "triggers")
        for entry in INFO[kind]
        for module in entry["python-modules"]
    ]


@pytest.mark.parametrize("module", modules_named())
def test_every_module_named_exists(module):
    importlib.import_module(module)


@pytest.mark.parametrize(
    "path", [*INFO["notifications"], *(kind["hook-class-name"] for kind in INFO["connection-types"])]
)
def test_every_class_named_exists(path):
    module, name = path.rsplit(".", 1)
    assert isinstance(getattr(importlib.import_module(module), name), type)


def test_airflow_discovers_the_provider():
    assert "airflow-provider-sib" in ProvidersManager().providers


@pytest.fixture(scope="module")
def form() -> dict:
    """Give what Airflow's UI draws the form from, as its API server makes it in a process of its own."""
    code = (
        "from airflow.api_fastapi.core_api.services.ui.connections import HookMetaService as service;"
        "(meta,) = [m for m in service.hook_meta_data() if m.connection_type == 'sib_conversations'];"
        "print(meta.model_dump_json())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_the_form_labels_the_standard_fields(form):
    assert form["hook_name"] == "Brevo (Sendinblue) Conversations"
    standard = form["standard_fields"]
    assert (standard["password"]["title"], standard["host"]["title"]) == ("API key", "Base URL")
    assert standard["host"]["placeholder"] == "https://api.brevo.com/v3"
    assert {name for name, shown in standard.items() if shown and shown["hidden"]} == {"login", "url_schema"}


def test_the_form_has_a_field_for_every_extra_with_label_help_and_default(form):
    assert form["extra_fields"].keys() == provider_info.CONN_FIELDS.keys()
    for name, shown in form["extra_fields"].items():
        spec = provider_info.CONN_FIELDS[name]
        assert shown["schema"]["title"] == spec["label"]
        assert shown["description"] == spec["description"]
        assert shown["value"] == spec["schema"].get("default")
        # The form of Airflow 3.1 and 3.2 knows no fractions.
        assert shown["schema"]["type"][0] in (spec["schema"]["type"][0], "integer")
