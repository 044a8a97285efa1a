"""Fixtures for tests of the whole service."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset

from model.bundle import untrained_bundle
from tests.support.built_once import built_once
from tests.support.lesion_objects import MarkedRegion, mammogram, measurement_report_of, segmentation_of
from tests.support.services import Service, save, service

ROWS, COLUMNS = 400, 320
TOP, BOTTOM, LEFT, RIGHT = 100, 140, 60, 110


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Path:
    """A copy of the untrained bundle, which is built once (see `tests.support.built_once`)."""
    path = tmp_path_factory.mktemp("bundle") / "untrained"
    return Path(shutil.copytree(built_once(pytestconfig, "untrained", untrained_bundle), path))


@pytest.fixture
def new_service(tmp_path: Path, untrained: Path) -> Iterator[Callable[..., Service]]:
    """Makes services that are ended with the test: `new_service(archive, settings=..., engine=...)`."""
    with ExitStack() as stack:

        def make(*arguments: Any, name: str = "service", **choices: Any) -> Service:
            return stack.enter_context(service(tmp_path / name, untrained, *arguments, **choices))

        yield make


@dataclass(frozen=True)
class Case:
    """A mammogram and a SEG of one lesion on it, as data sets and as files."""

    image: Dataset
    segmentation: Dataset
    image_path: Path
    segmentation_path: Path

    @property
    def files(self) -> list[Path]:
        return [self.segmentation_path, self.image_path]


def make_case(folder: Path, number: int = 1, **image_options: Any) -> Case:
    """Case `number` in `folder`; the lesion covers columns 60 to 110 and rows 100 to 140."""
    folder.mkdir(parents=True, exist_ok=True)
    image = mammogram(ROWS, COLUMNS, seed=number, patient_id=f"CASE-{number}", **image_options)
    mask = np.zeros((ROWS, COLUMNS), np.uint8)
    mask[TOP:BOTTOM, LEFT:RIGHT] = 1
    segmentation = segmentation_of(image, mask)
    return Case(
        image,
        segmentation,
        save(image, folder / f"image-{number}.dcm"),
        save(segmentation, folder / f"seg-{number}.dcm"),
    )


def report_on(image: Dataset, path: Path, **options: Any) -> Path:
    """A TID 1500 report that marks the same place by a POLYLINE."""
    corners = [(LEFT, TOP), (RIGHT, TOP), (RIGHT, BOTTOM), (LEFT, BOTTOM), (LEFT, TOP)]
    return save(measurement_report_of(image, [MarkedRegion("POLYLINE", corners)], **options), path)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return make_case(tmp_path / "case")
