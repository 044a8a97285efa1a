"""PyPI's `dicom-validator` on the tables of PS3.3 that PyPI's `dicom-standard` holds (edition 2020b).

By itself the validator downloads the standard when it runs. The tables are the same ones in another form,
so they are turned here into the form that it reads; what they demand, it decides.
"""

from __future__ import annotations

import html
import json
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.datadict import DicomDictionary

from tests.support.peers.programs import missing

TABLES = Path(sys.prefix) / "standard"  # where dicom-standard's wheel puts its data

# The content of an SR is made of macros, each with a condition on the value type, which the tables do not
# repeat: every attribute of every value type would be missing. DCMTK and PixelMed check that part.
_NOT_IN_THE_TABLES = frozenset({"sr-document-content"})


def iod_errors(path: Path) -> list[str]:
    """What `dicom-validator` finds wrong in a file, such as "sop-common (0018,A001)/(0018,1002):
    TagUnexpected".

    Modules of the IOD, types 1 to 3 of their attributes with conditions where these are on the data set
    itself, values against their representation, attributes of no module. Not enumerated values.
    """
    from dicom_validator.validator.error_handler import NullValidationResultHandler
    from dicom_validator.validator.iod_validator import IODValidator

    result = IODValidator(
        dcmread(path), _standard(), file_path=str(path), error_handler=NullValidationResultHandler()
    ).validate()
    return sorted(
        f"{module} {'/'.join(map(_tag, [*(where.parents or ()), where.tag]))}: {error.code.name}"
        for module, errors in result.module_errors.items()
        if module not in _NOT_IN_THE_TABLES
        for where, error in errors.items()
    ) + ([] if result.status.name in ("Passed", "Failed") else [result.status.name])


@cache
def _standard() -> Any:
    """A `DicomInfo` of every storage SOP class; some 3 s."""
    from dicom_validator.spec_reader.condition import ConditionType
    from dicom_validator.spec_reader.condition_parser import ConditionParser
    from dicom_validator.validator.dicom_info import DicomInfo

    if not TABLES.is_dir():
        missing(f"{TABLES} (PyPI's dicom-standard)", "nothing, but: make .venv/.ready")
    dictionary = {
        _tag(tag): {"name": name, "vr": vr, "vm": vm, "prop": ""} for tag, (vr, vm, name, *_) in DicomDictionary.items()
    }
    parser = ConditionParser(dictionary)
    identifiers = {iod["name"]: iod["id"] for iod in _table("ciods")}
    modules_of: dict[str, dict[str, Any]] = {}
    for row in _table("ciod_to_modules"):
        module = {"ref": row["moduleId"], "use": row["usage"]}
        if row["usage"] == "C":
            module["cond"] = parser.parse(f"C - {row['conditionalStatement']}").result_dict()
        modules_of.setdefault(row["ciodId"], {})[row["moduleId"]] = module
    iods = {
        sop["id"]: {"title": sop["ciod"], "modules": modules_of[identifiers[sop["ciod"]]], "group_macros": {}}
        for sop in _table("sops")
        if sop["ciod"] in identifiers
    }
    modules: dict[str, dict[str, Any]] = {name: {} for each in modules_of.values() for name in each}
    for row in _table("module_to_attributes"):
        _module, *path = row["path"].upper().split(":")
        if row["moduleId"] not in modules or any("XX" in part for part in path):  # overlays repeat their group
            continue
        level = modules[row["moduleId"]]
        *above, last = (f"({part[:4]},{part[4:]})" for part in path)
        for sequence in above:
            level = level[sequence].setdefault("items", {})
        level[last] = {"name": dictionary.get(last, {}).get("name", last), "type": row["type"]}
        if row["type"] in ("1C", "2C", "3"):
            condition = parser.parse(_text(row["description"]))
            if condition.type != ConditionType.UserDefined:
                level[last]["cond"] = condition.result_dict()
    return DicomInfo(dictionary, iods, modules)


def _table(name: str) -> list[dict[str, Any]]:
    return list(json.loads((TABLES / f"{name}.json").read_text()))


def _tag(tag: int) -> str:
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"


def _text(markup: str | None) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", markup or "")).split())
