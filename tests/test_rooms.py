"""The rules between rooms, names and licences of what is installed, and the lock file."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
ROOMS = ("config", "model", "training", "daemon")
MAY_IMPORT = {
    "config": {"config"},
    "model": {"model", "config"},
    "training": {"training", "model", "config"},
    "daemon": {"daemon", "model", "config"},
}
DICOM = {"pydicom", "pynetdicom", "highdicom"}
MAY_IMPORT_TENSORFLOW = {Path("model/engines/tensorflow.py")}
# Distributions whose metadata does not say, by a look at the licence file in their source.
LICENCES_BY_HAND = {"namex": "Apache-2.0"}


def sources(room: str) -> list[Path]:
    return sorted(path.relative_to(ROOT) for path in (ROOT / room).rglob("*.py"))


def imported(source: str) -> set[str]:
    """The top-level names that a module imports, anywhere in it, by statement or by importlib.import_module("...")."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide from this test; name the room"
            names.add((node.module or "").partition(".")[0])
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            names |= {str(a.value).partition(".")[0] for a in node.args if isinstance(a, ast.Constant)}
    return names


def test_imported_sees_every_form() -> None:
    source = "import a.b\nfrom c.d import e\ndef f():\n    import g\n    importlib.import_module('h.i')\n"
    assert imported(source) == {"a", "c", "g", "h"}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_it_may(room: str) -> None:
    assert sources(room)
    wrong = {
        str(path): sorted(forbidden)
        for path in sources(room)
        if (forbidden := imported((ROOT / path).read_text()) & (set(ROOMS) | {"tests", "deploy"}) - MAY_IMPORT[room])
    }
    assert not wrong


def test_networks_know_nothing_of_dicom() -> None:
    wrong = imported((ROOT / "model/networks.py").read_text()) & DICOM
    assert not wrong


def test_tensorflow_stays_in_the_engine_and_the_classifier_process() -> None:
    wrong = [
        str(path)
        for room in ("config", "model", "daemon")
        for path in sources(room)
        if path not in MAY_IMPORT_TENSORFLOW and "tensorflow" in imported((ROOT / path).read_text())
    ]
    assert not wrong


def test_no_other_distribution_claims_the_names_of_our_packages() -> None:
    owners = importlib.metadata.packages_distributions()
    others = {room: set(owners.get(room, [])) - {"mammod"} for room in ROOMS}
    assert others == {room: set() for room in ROOMS}


def declared() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    return [Requirement(line) for line in lines]


def locked() -> dict[str, list[Requirement]]:
    """Requirements of the lock by canonical name; more than one where Python versions differ."""
    pins: dict[str, list[Requirement]] = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        if "==" in line:
            requirement = Requirement(line.rstrip("\\ "))
            pins.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return pins


def pinned_version(requirement: Requirement) -> str:
    (specifier,) = requirement.specifier
    assert specifier.operator == "=="
    return specifier.version


@pytest.mark.parametrize("requirement", declared(), ids=str)
def test_pyproject_gives_ranges_and_the_lock_pins_each_within(requirement: Requirement) -> None:
    assert requirement.specifier
    assert not any(specifier.operator in ("==", "===") for specifier in requirement.specifier)
    pins = locked()[canonicalize_name(requirement.name)]
    for pin in pins:
        assert requirement.specifier.contains(pinned_version(pin))


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_the_lock_pins_one_version_for_each_python(python: str) -> None:
    environment = default_environment() | {"python_version": python, "python_full_version": f"{python}.0"}
    for name, pins in locked().items():
        here = [pin for pin in pins if pin.marker is None or pin.marker.evaluate(dict(environment))]
        assert len(here) == 1 or all("win32" in str(pin.marker) for pin in pins), name


def test_the_lock_names_no_host_and_hashes_everything() -> None:
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text
    assert not re.search(r"^\s*(--index|--extra-index|--find-links|-i |-f )", text, re.MULTILINE)
    entries = re.split(r"\n(?=[a-z0-9])", text)
    assert all("--hash=sha256:" in entry for entry in entries if "==" in entry)


def licence(distribution: importlib.metadata.Distribution) -> str:
    """What the metadata says: the expression, else the classifiers, else the first line of the free text."""
    metadata = distribution.metadata
    classifiers = [c for c in metadata.get_all("Classifier") or [] if c.startswith("License ::")]
    free_text = (metadata.get("License") or "").strip().partition("\n")[0]
    return metadata.get("License-Expression") or "; ".join(classifiers) or free_text


def is_gpl(text: str) -> bool:
    """GPL or AGPL; LGPL and the MPL are none of them."""
    return bool(re.search(r"(?<!L)GPL|General Public License", text.replace("Lesser General Public License", "LGPL")))


def test_is_gpl_tells_the_family_apart() -> None:
    gpl = ["GPL-3.0-or-later", "AGPL-3.0", "License :: OSI Approved :: GNU General Public License v3 (GPLv3)"]
    other = [
        "LGPL-2.1",
        "MPL-2.0",
        "License :: OSI Approved :: GNU Lesser General Public License v3 (LGPLv3)",
        "MIT",
    ]
    assert all(is_gpl(text) for text in gpl)
    assert not any(is_gpl(text) for text in other)


def test_nothing_in_the_lock_is_gpl() -> None:
    installed = {canonicalize_name(d.name): d for d in importlib.metadata.distributions()}
    ours = {name: installed[name] for name in locked() if name in installed}
    assert len(ours) > 50, "run this in the environment of the lock"
    licences = {name: LICENCES_BY_HAND.get(name) or licence(distribution) for name, distribution in ours.items()}
    assert not {name for name, text in licences.items() if not text}, (
        "no licence in the metadata: look, and write it down"
    )
    assert not {name: text for name, text in licences.items() if is_gpl(text)}
