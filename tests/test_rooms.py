"""Who may import whom, how long things may be, names and licences of what is installed, and the lock file."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import re
import tomllib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence, Set
from functools import cache
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]

# The one table of who may import whom. A package imports itself and the packages named here.
PACKAGES: dict[str, set[str]] = {
    "config": set(),
    "model": {"config"},
    "training": {"model", "config"},
    "daemon": {"model", "config"},
    "tests": {"config", "model", "training", "daemon", "benchmarks"},
    "benchmarks": {"config", "model", "training", "daemon", "tests"},
}
# The rooms of daemon, from the ground up: a room imports itself and rooms before it. A module that lies flat
# belongs to the room of its name; FLAT names the room of the others.
DAEMON_ROOMS = (
    "errors",
    "events",
    "dicom",
    "system",
    "ledger",
    "storage",
    "nodes",
    "lesions",
    "reports",
    "workers",
    "jobs",
    "dimse",
    "audit",
    "archive",
    "receiving",
    "monitoring",
    "maintenance",
    "composition",
    "service",
    "tools",
    "checks",
    "demo",
    "cli",
)
FLAT = {"": "errors", "__main__": "cli"}
SHIPPED = ("config", "model", "training", "daemon")

MAX_MODULE_LINES = 350
MAX_CLASS_LINES = 250
MAX_FUNCTION_LINES = 60  # of its body: a command's signature is its list of options
MAX_ROOM_LINES = 2_000  # lines that are not empty
MAX_FLAT_MODULES = 8  # modules directly in daemon

DICOM = {"pydicom", "pynetdicom", "highdicom"}
# Settings of these names are no modules.
NO_MODULES = {"model.engine"}
MAY_IMPORT_TENSORFLOW = {Path("model/engines/tensorflow.py")}
# Distributions whose metadata does not name a licence; read from the licence file in their source.
LICENCES_BY_HAND = {"namex": "Apache-2.0"}


def sources(package: str) -> list[Path]:
    return sorted(path.relative_to(ROOT) for path in (ROOT / package).rglob("*.py"))


def dotted(path: Path) -> str:
    """Return the dotted name of the module in `path`; that of a package for its `__init__.py`."""
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


@cache
def modules() -> dict[str, Path]:
    """Return every module of ours by its dotted name."""
    return {dotted(path): path for package in PACKAGES for path in sources(package)}


def imported(tree: ast.AST, known: Collection[str] = ()) -> set[str]:
    """Return the dotted names that a module imports, anywhere in it.

    These are import statements (also in functions and for typing only), importlib.import_module("...") and
    factories by name, "package.module:function" with a module in `known`.
    `from a import b` is a.b if that is in `known`, else a.
    """
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide from this test: name the package"
            parent = node.module or ""
            names |= {full if (full := f"{parent}.{alias.name}") in known else parent for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            names |= {str(argument.value) for argument in node.args if isinstance(argument, ast.Constant)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            module, colon, _ = node.value.partition(":")
            names |= {module} if colon and module in known else set()
    return names


def top_level(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imported(tree_of(path))}


@cache
def imports_of_ours() -> dict[str, set[str]]:
    """Return the module graph: for every module of ours the modules of ours that it imports."""
    known = modules()
    return {name: (imported(tree_of(path), known.keys()) & known.keys()) - {name} for name, path in known.items()}


def room(module: str) -> str:
    """Return the room of a module of daemon."""
    part = module.split(".")[1] if "." in module else ""
    return FLAT.get(part, part)


def against_the_order(graph: Mapping[str, Set[str]], order: Sequence[str] = DAEMON_ROOMS) -> list[str]:
    """Return the imports inside daemon from a room to a later one, as "importer -> imported"."""
    place = {name: number for number, name in enumerate(order)}
    last = len(order)  # of a room without a place, which another test reports
    return sorted(
        f"{module} -> {target}"
        for module, targets in graph.items()
        if module.partition(".")[0] == "daemon"
        for target in targets
        if target.partition(".")[0] == "daemon" and place.get(room(target), last) > place.get(room(module), last)
    )


def circles(graph: Mapping[str, Set[str]]) -> list[list[str]]:
    """Return the groups of modules that import each other (strongly connected components; Tarjan 1972)."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        number[module] = lowest[module] = len(number)
        stack.append(module)
        for target in sorted(graph.get(module, ())):
            if target not in number:
                visit(target)
                lowest[module] = min(lowest[module], lowest[target])
            elif target in stack:
                lowest[module] = min(lowest[module], number[target])
        if lowest[module] == number[module]:
            place = stack.index(module)
            if len(stack) - place > 1:
                found.append(sorted(stack[place:]))
            del stack[place:]

    for module in sorted(graph):
        if module not in number:
            visit(module)
    return sorted(found)


def too_long(tree: ast.AST) -> list[str]:
    """Return the classes and functions in a module that are over their limit, with their length in lines."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            lines, limit = (node.end_lineno or 0) - node.lineno + 1, MAX_CLASS_LINES
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines, limit = (node.end_lineno or 0) - node.body[0].lineno + 1, MAX_FUNCTION_LINES
        else:
            continue
        if lines > limit:
            found.append(f"{node.name}: {lines} lines, at most {limit}")
    return found


def test_imported_sees_every_form() -> None:
    source = """
import a.b
from c.d import e, n
if TYPE_CHECKING:
    from t import u
def f():
    import g
    importlib.import_module("h.i")
    run("j.k:open", "l.m", "no.module: text")
"""
    known = {"c.d.n", "j.k", "l.m"}
    assert imported(ast.parse(source), known) == {"a.b", "c.d", "c.d.n", "t", "g", "h.i", "j.k"}


def test_an_import_against_the_order_a_circle_and_what_is_too_long_are_found() -> None:
    graph = {
        "daemon.a.x": {"daemon.b.y", "daemon.a.z"},
        "daemon.a.z": {"daemon.a.x"},
        "daemon.b.y": {"daemon.a.z"},
        "daemon.b": {"daemon.a.z"},
    }
    assert against_the_order(graph, ("a", "b")) == ["daemon.a.x -> daemon.b.y"]
    assert circles(graph) == [["daemon.a.x", "daemon.a.z", "daemon.b.y"]]
    assert circles({"p": {"q"}, "q": {"r", "s"}, "r": {"s"}, "s": set()}) == []
    body = "    x = 1\n"
    assert too_long(ast.parse("def f(\n    a,\n    b,\n):\n" + body * 60 + "class C:\n" + body * 249)) == []
    assert too_long(ast.parse("def f():\n" + body * 61 + "class C:\n" + body * 250)) == [
        "f: 61 lines, at most 60",
        "C: 251 lines, at most 250",
    ]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_what_it_may(package: str) -> None:
    assert sources(package)
    forbidden = {*PACKAGES, "deploy"} - {package} - PACKAGES[package]
    wrong = {str(path): sorted(found) for path in sources(package) if (found := top_level(path) & forbidden)}
    assert not wrong


def test_every_room_of_daemon_has_a_place_in_the_order() -> None:
    rooms = {room(module) for module in modules() if module.partition(".")[0] == "daemon"}
    assert rooms == set(DAEMON_ROOMS), (
        "give each new room its place in DAEMON_ROOMS, and a line in docs/explanation/architecture.md"
    )
    assert len(set(DAEMON_ROOMS)) == len(DAEMON_ROOMS)


def test_a_room_imports_only_rooms_before_it() -> None:
    assert sum(len(targets) for targets in imports_of_ours().values()) > 500, "the graph is there"
    assert against_the_order(imports_of_ours()) == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circles(imports_of_ours()) == []


def test_no_module_class_or_function_is_too_long() -> None:
    # Migrations of the ledger stay as they were released.
    paths = [path for package in SHIPPED for path in sources(package) if "migrations" not in path.parts]
    long_modules = [
        f"{path}: {lines} lines, at most {MAX_MODULE_LINES}"
        for path in paths
        if (lines := len((ROOT / path).read_text().splitlines())) > MAX_MODULE_LINES
    ]
    assert [*long_modules, *(f"{path}: {one}" for path in paths for one in too_long(tree_of(path)))] == []


def test_no_room_is_too_large_and_few_modules_lie_flat() -> None:
    lines: Counter[str] = Counter()
    for path in sources("daemon"):
        if "migrations" not in path.parts:
            lines[room(dotted(path))] += sum(bool(line.strip()) for line in (ROOT / path).read_text().splitlines())
    assert {name: count for name, count in lines.items() if count > MAX_ROOM_LINES} == {}
    flat = sorted(path.name for path in (ROOT / "daemon").glob("*.py"))
    assert len(flat) <= MAX_FLAT_MODULES, flat


def test_strings_that_name_a_module_or_what_is_in_it_name_one_that_exists() -> None:
    # Crash steps, factories, console scripts and what monkeypatch replaces.
    pattern = re.compile(rf"({'|'.join((*SHIPPED, 'tests', 'benchmarks'))})(\.\w+)+(?<!\.md)(:[\w.]+)?")
    strings = [
        (path, node.value)
        for path in modules().values()
        if path != Path("tests/test_rooms.py")
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and pattern.fullmatch(node.value)
    ]
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    strings += [(Path("pyproject.toml"), value) for value in scripts.values()]
    wrong = [f"{path}: {text}" for path, text in strings if text not in NO_MODULES and not exists(text)]
    assert not wrong
    assert len(strings) > 20


def exists(text: str) -> bool:
    """Return whether "package.module:name", "package.module" or "package.module.name" is there."""
    module, _, name = text.partition(":")
    names = name.split(".") if name else []
    while module and module not in modules():
        module, _, last = module.rpartition(".")
        names.insert(0, last)
    found: object = importlib.import_module(module) if module and names else module
    for part in names:
        found = getattr(found, part, None)
    return bool(module) and found is not None


def test_a_string_that_names_nothing_is_found() -> None:
    assert exists("daemon.errors") and exists("daemon.errors:LesionError") and exists("tests.test_rooms.exists")
    assert not exists("daemon.gone") and not exists("daemon.errors:Gone") and not exists("gone.gone")


def test_networks_know_nothing_of_dicom() -> None:
    wrong = top_level(Path("model/networks.py")) & DICOM
    assert not wrong


def test_tensorflow_stays_in_the_engine_and_the_classifier_process() -> None:
    wrong = [
        str(path)
        for package in ("config", "model", "daemon")
        for path in sources(package)
        if path not in MAY_IMPORT_TENSORFLOW and "tensorflow" in top_level(path)
    ]
    assert not wrong


def test_no_other_distribution_claims_the_names_of_our_packages() -> None:
    owners = importlib.metadata.packages_distributions()
    others = {package: set(owners.get(package, [])) - {"mammod"} for package in PACKAGES}
    assert others == {package: set() for package in PACKAGES}


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
