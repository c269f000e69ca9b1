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


def test_airflow_discovers_the_provider_with_its_form():
    manager = ProvidersManager()
    assert "airflow-provider-sib" in manager.providers
    (meta,) = [
        meta
        for meta in manager.iter_connection_type_hook_ui_metadata()
        if meta.connection_type == "sib_conversations"
    ]
    assert meta.hook_name == "Brevo (Sendinblue) Conversations"
    assert meta.field_behaviour["relabeling"] == {"password": "API key", "host": "Base URL"}


def test_the_form_has_a_field_for_every_extra_with_label_and_help():
    from airflow.api_fastapi.core_api.services.ui.connections import HookMetaService

    (meta,) = [m for m in HookMetaService.hook_meta_data() if m.connection_type == "sib_conversations"]
    assert meta.extra_fields.keys() == provider_info.CONN_FIELDS.keys()
    for name, shown in meta.extra_fields.items():
        spec = provider_info.CONN_FIELDS[name]
        assert shown["schema"]["title"] == spec["label"]
        assert shown["description"] == spec["description"]
        assert shown["schema"]["type"] == spec["schema"]["type"]
