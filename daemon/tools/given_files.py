"""Files given to a command: each instance by its SOP Instance UID, lesion objects, and what is not used."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pydicom import dcmread
from pydicom.errors import InvalidDicomError

from daemon.dicom.equipment import is_own_report
from daemon.errors import LesionError
from daemon.lesions.reader import lesion_references
from daemon.tools.unread import is_normal_without_lesions, why_no_lesion_object


@dataclass
class Files:
    """The files given: each instance by its SOP Instance UID, and the lesion objects among them.

    `refused` holds files the user named that cannot be used, with the reason; `skipped` counts files in
    folders that are not DICOM, or are reports of mammod. `notes` are sentences on files that are not used or
    not read; `without_findings` counts CAD reports that found nothing, a normal result.
    """

    paths: dict[str, Path] = field(default_factory=dict)
    sources: dict[str, Path] = field(default_factory=dict)
    refused: dict[Path, str] = field(default_factory=dict)
    skipped: int = 0
    notes: list[str] = field(default_factory=list)
    without_findings: int = 0


def sort_files(files: Iterable[tuple[Path, bool]]) -> Files:
    """Read the header of every file; each comes with whether the user named it or a folder above it."""
    found = Files()
    for path, named in files:
        try:
            header = dcmread(path, stop_before_pixels=True)
            uid = str(header.get("SOPInstanceUID") or "")
        except InvalidDicomError:
            _skip(found, path, named, "not a DICOM file; DICOM Part 10 files are expected")
            continue
        except OSError as error:
            _skip(found, path, True, f"cannot be read: {error.strerror or type(error).__name__}")
            continue
        except Exception as error:  # pydicom raises many kinds on damaged files
            _skip(found, path, True, f"this DICOM file is damaged ({type(error).__name__}); copy it again")
            continue
        if not uid:
            _skip(found, path, named, "this DICOM file has no SOP Instance UID, so nothing can refer to it")
            continue
        if is_own_report(header):
            _skip(found, path, named, "a report of mammod, which marks nothing new")
            continue
        if (earlier := found.paths.get(uid)) is not None:
            found.notes.append(f"{path}: it has the SOP Instance UID of {earlier}; {path} is used, the other is not")
            found.sources.pop(uid, None)
        found.paths[uid] = path
        try:
            if lesion_references(header) is not None:
                found.sources[uid] = path
            elif said := why_no_lesion_object(header):
                found.notes.append(f"{path}: {said}")
                found.without_findings += is_normal_without_lesions(header)
        except LesionError:
            found.sources[uid] = path  # the reason is reported when it is classified
    return found


def _skip(found: Files, path: Path, report: bool, reason: str) -> None:
    if report:
        found.refused[path] = reason
    else:
        found.skipped += 1
