"""Containerfile, compose file and Kubernetes manifest: what they name is there. `make lint-deploy` asks
their own linters.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from config import __version__
from config.loading import load_settings
from config.settings import Settings
from tests.support.installing import ROOT

CONTAINERFILE = ROOT / "deploy/container/Containerfile"
COMPOSE = ROOT / "deploy/container/compose.yaml"
MANIFEST = ROOT / "deploy/kubernetes/mammod.yaml"


def objects() -> dict[str, Any]:
    return {each["kind"]: each for each in yaml.safe_load_all(MANIFEST.read_text())}


def set_by(variable: str) -> tuple[str, str]:
    section, key = variable.removeprefix("MAMMOD_").lower().split("__")
    return section, key


def is_a_setting(variable: str) -> bool:
    section, key = set_by(variable)
    field = Settings.model_fields.get(section)
    return field is not None and key in getattr(field.annotation, "model_fields", {})


def container_variables() -> dict[str, str]:
    return dict(re.findall(r"\b(MAMMOD_\w+)=(\S+)", CONTAINERFILE.read_text()))


def paths_served() -> set[str]:
    return set(re.findall(r'"(/[a-z]+)": lambda', (ROOT / "daemon/monitoring/http_server.py").read_text()))


def test_the_container_names_settings_files_and_pages_that_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    text = CONTAINERFILE.read_text()
    variables = container_variables()
    assert variables and all(map(is_a_setting, variables))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    assert settings.status.host == "0.0.0.0" and settings.spool.directory == Path("/data/spool")
    exposed = re.search(r"^EXPOSE (.*)$", text, re.MULTILINE)
    assert exposed and exposed[1].split() == [str(settings.listener.port), str(settings.status.port)]
    (asked,) = re.findall(rf"http://127\.0\.0\.1:{settings.status.port}(/\w+)", text)
    assert asked in paths_served()
    assert (ROOT / "deploy/install.sh").stat().st_mode & 0o111 and "deploy/install.sh --root /app" in text
    stages = [line.split() for line in text.splitlines() if line.startswith("FROM ")]
    assert stages[0][-2:] == ["AS", "build"] and len(stages) == 2
    (user,) = re.findall(r"^USER (\d+):(\d+)$", text, re.MULTILINE)
    assert user != ("0", "0") and f"--uid {user[0]}" in text


def test_what_the_build_ignores_is_nothing_that_it_needs() -> None:
    ignored = CONTAINERFILE.with_name("Containerfile.dockerignore").read_text().splitlines()
    needed = [
        "config",
        "model",
        "training",
        "daemon",
        "deploy",
        "docs",
        "requirements.lock",
        "pyproject.toml",
        "README.md",
    ]
    assert not set(ignored) & set(needed)
    assert {".git", ".venv"} <= set(ignored)


def test_compose_names_settings_and_files_that_exist() -> None:
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    ours, archive = services["mammod"], services["orthanc"]
    context = (COMPOSE.parent / ours["build"]["context"]).resolve()
    assert context == ROOT and (context / ours["build"]["dockerfile"]) == CONTAINERFILE
    assert all(map(is_a_setting, ours["environment"]))
    assert ours["environment"]["MAMMOD_ARCHIVE__HOST"] in services
    assert ours["environment"]["MAMMOD_ARCHIVE__AE_TITLE"] == archive["environment"]["ORTHANC__DICOM_AET"]
    assert ours["read_only"] and ours["cap_drop"] == ["ALL"] and "/tmp" in ours["tmpfs"]
    assert int(ours["stop_grace_period"].removesuffix("s")) > Settings().service.shutdown_timeout_s
    # The status page and Orthanc are for this machine only.
    assert [port for port in ours["ports"] + archive["ports"] if not port.startswith("127.0.0.1:")] == ["11112:11112"]


def test_the_manifest_names_settings_and_pages_that_exist(tmp_path: Path) -> None:
    kinds = objects()
    text = kinds["ConfigMap"]["data"]["mammod.toml"]
    file = tmp_path / "mammod.toml"
    # What is commented out must be right as well.
    file.write_text(re.sub(r"^# (\w+ = )", r"\1", text, flags=re.MULTILINE))
    settings = load_settings(file)
    assert tomllib.loads(text)["listener"]["peers"] and settings.spool.directory == Path("/data/spool")
    pod = kinds["StatefulSet"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"dicom": settings.listener.port, "status": settings.status.port}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = container[probe]["httpGet"]
        assert asked["port"] == "status" and asked["path"] in paths_served()
    assert container["livenessProbe"]["httpGet"]["path"] != container["readinessProbe"]["httpGet"]["path"]
    assert container["image"].endswith(f":{__version__}")
    assert kinds["StatefulSet"]["spec"]["replicas"] == 1, "the ledger is a SQLite file"
    assert pod["enableServiceLinks"] is False
    assert pod["terminationGracePeriodSeconds"] > settings.service.shutdown_timeout_s
    assert pod["securityContext"]["runAsNonRoot"] and container["securityContext"]["readOnlyRootFilesystem"]
    assert (
        f"USER {pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}"
        in CONTAINERFILE.read_text()
    )
    volumes = {volume["name"] for volume in pod["volumes"]} | {
        claim["metadata"]["name"] for claim in kinds["StatefulSet"]["spec"]["volumeClaimTemplates"]
    }
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    for kind in ("Service", "StatefulSet"):
        selected = kinds[kind]["spec"]["selector"]
        assert (
            selected.get("matchLabels", selected).items()
            <= kinds["StatefulSet"]["spec"]["template"]["metadata"]["labels"].items()
        )
