"""TID 1500, CAD SR and presentation states that mammod writes are read back by it to the same lesions."""

from __future__ import annotations

import numpy as np
import pytest

from config.settings import Lesions
from daemon.dicom.equipment import is_own_report
from daemon.lesions.geometry import outline_of_region, region_of_outline
from daemon.lesions.lesion import Lesion, Region
from daemon.lesions.reader import read_lesions
from tests.support import report_objects as b

ROWS, COLUMNS = int(b.mammogram().Rows), int(b.mammogram().Columns)


@pytest.mark.parametrize("kind", ["tid1500", "mammo-cad-sr", "gsps"])
@pytest.mark.parametrize("graphic_type", sorted(b.REGIONS))
def test_each_graphic_type_comes_back(kind: str, graphic_type: str) -> None:
    image = b.mammogram()
    region = Region(graphic_type, np.asarray(b.REGIONS[graphic_type], np.float32).astype(np.float64))
    outline = outline_of_region(region, ROWS, COLUMNS)
    drawn = region_of_outline(outline) if graphic_type == "MULTIPOINT" else region
    lesion = Lesion(b.uid("source"), str(image.SOPInstanceUID), 1, outline, drawn)
    (made,) = b.reports(kind, [b.result(lesion)], image)
    assert is_own_report(made)  # so the service drops it before it is read
    (found,) = read_lesions(made, {str(image.SOPInstanceUID): image}, {}, Lesions()).lesions
    for corner in (np.min, np.max):
        apart = corner(lesion.outline, axis=0) - corner(found.outline, axis=0)
        assert np.abs(apart).max() <= 0.3  # a polygon of a circle has its corners elsewhere
