"""Views: a frame as people see it, small."""

from __future__ import annotations

import numpy as np
import pytest
from pydicom import Dataset

from daemon.reports.display_image import FIT, view_of
from model.errors import ImageError
from tests.support.bundles import image


def ramp(**attributes: object) -> Dataset:
    """2000 rows, 1000 columns: dark above, bright below; a window over the upper half's values."""
    stored = np.repeat(np.arange(2000, dtype=np.uint16)[:, None], 1000, axis=1)
    return image(stored, VOILUTFunction="LINEAR_EXACT", WindowCenter=500, WindowWidth=1000, **attributes)


def test_a_view_is_windowed_and_keeps_its_proportions() -> None:
    view = view_of(ramp())
    assert view.grey.dtype == np.uint8
    assert view.grey.shape == (FIT[1], FIT[1] // 2)
    assert view.scale == FIT[1] / 2000
    column = view.grey[:, 0].astype(float)
    # Row r of the view is stored value 2000 (r + 0.5) / 1050, windowed to r * 2000 / 1050 / 1000.
    expected = np.clip((np.arange(FIT[1]) + 0.5) * 2000 / FIT[1] / 1000, 0, 1) * 255
    np.testing.assert_allclose(column, expected, atol=1.5)


def test_monochrome1_is_turned_over() -> None:
    plain, inverted = view_of(ramp()), view_of(ramp(PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_allclose(255.0 - plain.grey, inverted.grey, atol=1)


def test_a_small_image_is_not_enlarged_and_one_without_window_is_stretched() -> None:
    stored = np.full((40, 60), 1000, np.uint16)
    stored[:, 30:] = 1100
    view = view_of(image(stored))
    assert view.scale == 1 and view.grey.shape == (40, 60)
    assert set(np.unique(view.grey)) == {0, 255}


def test_a_frame_of_several() -> None:
    stored = np.zeros((3, 40, 60), np.uint16)
    stored[1] = np.arange(60)
    several = image(stored, WindowCenter=30, WindowWidth=60)
    assert view_of(several, 2).grey.max() > 200
    assert view_of(several, 3).grey.max() == 0
    with pytest.raises(ImageError, match="no frame 4"):
        view_of(several, 4)


def test_for_processing_images_are_shown_too() -> None:
    stored = np.tile(np.arange(60, dtype=np.uint16), (40, 1))
    raw = image(stored, PresentationIntentType="FOR PROCESSING", PixelIntensityRelationshipSign=1)
    assert view_of(raw).grey[0, 0] > view_of(raw).grey[0, -1]
