"""Nothing from the wire, an image file or a bundle is executed: no eval, no pickle, no shell.

The syntax tree of every module of ours is checked. `multiprocessing` pickles between our own processes, as
one user; that is no boundary.
"""

from __future__ import annotations

import ast
import time
from pathlib import Path

import pytest

from daemon.archive.stow_rs import judge
from daemon.events.outcomes import StoreOutcomeKind
from tests.test_rooms import ROOT, SHIPPED, sources

FORBIDDEN_MODULES = {
    "pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "jsonpickle", "yaml", "code",
    "codeop", "pty", "runpy", "imp", "xmlrpc", "telnetlib", "ftplib",
}  # fmt: skip
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "execfile"}
# Functions by the last part of their name: they run a shell or a program, or revive objects with code.
FORBIDDEN_FUNCTIONS = {
    "system", "popen", "execv", "execve", "execvp", "execl", "spawnl", "spawnv", "getoutput", "getstatusoutput",
    "create_subprocess_shell", "mktemp", "model_from_json", "model_from_config", "deserialize_keras_object",
    "enable_unsafe_deserialization", "unsafe_load", "full_load", "load_module",
}  # fmt: skip
# The demo starts `mammod serve`, OpenVINO's engine converts a network: a fixed list of arguments, no shell.
MAY_START_PROGRAMS = {
    Path("daemon/demo/service.py"),
    Path("model/engines/onednn.py"),
    Path("model/engines/openvino.py"),
}
# The engine's factory is named by our own code.
MAY_IMPORT_BY_NAME = {Path("daemon/workers/classifier_process.py"), Path("daemon/workers/ray_engine.py")}


def findings(source: str, path: Path) -> list[str]:
    """What is wrong in a module: line and construct."""
    wrong = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            names = {module.partition(".")[0] for module in modules}
            if isinstance(node, ast.ImportFrom):
                names |= {alias.name for alias in node.names} & FORBIDDEN_FUNCTIONS
            allowed = {"subprocess"} if path in MAY_START_PROGRAMS else set()
            bad = names & (FORBIDDEN_MODULES | FORBIDDEN_FUNCTIONS | {"subprocess"}) - allowed
            wrong += [f"{node.lineno}: import {name}" for name in bad]
        elif isinstance(node, ast.Call):
            wrong += [f"{node.lineno}: {what}" for what in _call(node, path)]
    return wrong


def _call(node: ast.Call, path: Path) -> list[str]:
    name = ast.unparse(node.func)
    last = name.rpartition(".")[2]
    keywords = {keyword.arg: keyword.value for keyword in node.keywords}

    def says(keyword: str, value: bool) -> bool:
        given = keywords.get(keyword)
        return isinstance(given, ast.Constant) and given.value is value

    wrong = []
    if name in FORBIDDEN_CALLS or last in FORBIDDEN_FUNCTIONS:
        wrong.append(name)
    if "shell" in keywords and not says("shell", False):
        wrong.append(f"{name}(shell=...)")
    if "allow_pickle" in keywords and not says("allow_pickle", False):
        wrong.append(f"{name}(allow_pickle=...)")
    if "safe_mode" in keywords and not says("safe_mode", True):
        wrong.append(f"{name}(safe_mode=...)")
    if last == "load_model" and not says("safe_mode", True):
        wrong.append(f"{name} without safe_mode=True")
    if name == "torch.load" and not says("weights_only", True):
        wrong.append(f"{name} without weights_only=True")
    if last == "import_module" and not isinstance(node.args[0], ast.Constant) and path not in MAY_IMPORT_BY_NAME:
        wrong.append(f"{name} of a name that is not written there")
    return wrong


@pytest.mark.parametrize(
    "source",
    [
        "eval(text)", "exec(text)", "compile(text, '', 'exec')", "__import__(name)", "import pickle", "import os, marshal",
        "from pickle import loads", "def f():\n    import shelve", "import yaml", "os.system(command)",
        "from os import popen", "import subprocess", "run(command, shell=True)", "run(command, shell=wanted)",
        "np.load(file, allow_pickle=True)", "keras.models.load_model(path)", "load_model(path, safe_mode=False)",
        "keras.config.enable_unsafe_deserialization()", "torch.load(path)", "importlib.import_module(name)",
        "tempfile.mktemp()", "keras.models.model_from_json(text)",
    ],
)  # fmt: skip
def test_each_of_these_is_found(source: str) -> None:
    assert findings(source, Path("daemon/x.py"))


@pytest.mark.parametrize(
    "source",
    [
        "re.compile(pattern)", "np.load(file)", "np.load(file, allow_pickle=False)", "load_model(path, safe_mode=True)",
        "model.evaluate(data)", "importlib.import_module('tensorflow')", "torch.load(path, weights_only=True)",
    ],
)  # fmt: skip
def test_none_of_these_is(source: str) -> None:
    assert findings(source, Path("daemon/x.py")) == []


@pytest.mark.parametrize("room", SHIPPED)
def test_no_module_of_ours_runs_what_it_reads(room: str) -> None:
    found = {str(path): wrong for path in sources(room) if (wrong := findings((ROOT / path).read_text(), path))}
    assert found == {}


def test_an_xml_bomb_for_an_answer_costs_nothing_and_names_no_instance() -> None:
    """STOW-RS answers are the only XML from outside; expat stops entities that grow without bound."""
    levels = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10))
    bomb = f'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a0 "1.2.3">{levels}]><NativeDicomModel>&a9;</NativeDicomModel>'
    began = time.monotonic()
    outcome = judge(200, "application/dicom+xml", bomb.encode(), "1.2.3")
    assert outcome.kind is StoreOutcomeKind.RETRY
    assert time.monotonic() - began < 60, "a hang limit"


def test_an_answer_in_xml_opens_no_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("1.2.3")
    entity = f'<!DOCTYPE x [<!ENTITY f SYSTEM "{(tmp_path / "secret").as_uri()}">]>'
    reference = (
        '<DicomAttribute tag="00081199"><Item number="1"><DicomAttribute tag="00081155"><Value number="1">&f;</Value>'
        "</DicomAttribute></Item></DicomAttribute>"
    )
    answer = f'<?xml version="1.0"?>{entity}<NativeDicomModel>{reference}</NativeDicomModel>'
    assert judge(200, "application/dicom+xml", answer.encode(), "1.2.3").kind is StoreOutcomeKind.RETRY
    plain = answer.replace("&f;", "1.2.3").replace(entity, "")
    assert judge(200, "application/dicom+xml", plain.encode(), "1.2.3").kind is StoreOutcomeKind.STORED
