"""What becomes of an object, by the same steps and in the same order as in the service, without its network.

Images are decoded in a process of their own, as in the service: a codec may end it.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.uid import UID
from pynetdicom.dsutils import create_file_meta, encode_file_meta

from daemon.dicom.dataset_scan import scan_data_set
from daemon.errors import LesionError, RefusedInstance
from daemon.lesions.reader import read_lesions
from daemon.receiving.spooling import _read_header
from daemon.workers.decoder_pool import DecoderPool
from model.errors import ImageError
from model.roi_extraction import Cut
from tests.support import hostile_objects
from tests.support.hostile_objects import Object

MIDDLE = np.array([[20.0, 20.0]])


def received(tested: Object, path: Path) -> str | None:
    """As the listener and intake do; the refusal, or None with the object as a Part 10 file at `path`."""
    try:
        facts = scan_data_set(io.BytesIO(tested.content), tested.transfer_syntax)
    except RefusedInstance as refused:
        return f"{refused.status:04X} {refused.reason}"
    meta = create_file_meta(
        sop_class_uid=UID(facts.sop_class_uid),
        sop_instance_uid=UID(facts.sop_instance_uid),
        transfer_syntax=UID(tested.transfer_syntax),
    )
    path.write_bytes(bytes(128) + b"DICM" + encode_file_meta(meta) + tested.content)
    return None


def lesions(tested: Object, path: Path) -> str | None:
    """The fate of a lesion object; None where `path` holds something else (an image)."""
    try:
        header = _read_header(path)
    except RefusedInstance as refused:
        return f"{refused.status:04X} {refused.reason}"
    if header.is_own_report:
        return "own report"
    if header.unusable:
        return f"quarantined: {header.unusable}"
    if header.references is None:
        return None
    here = {str(image.SOPInstanceUID): image for image in (hostile_objects.image(), hostile_objects.tomosynthesis())}
    if header.references.segmentation_uids or not set(header.references.image_uids) <= set(here):
        return "waits"
    try:
        reading = read_lesions(dcmread(path), here, {}, ())
    except LesionError as error:
        return f"quarantined: {error}"
    for lesion in reading.lesions:
        assert np.isfinite(lesion.outline).all()
        assert np.isfinite(lesion.region.points).all()
        image = here[lesion.image_uid]
        assert 1 <= lesion.frame <= int(image.get("NumberOfFrames") or 1)
        assert (lesion.outline >= 0).all()
        assert (lesion.outline <= [image.Columns, image.Rows]).all()
    return f"{len(reading.lesions)} lesions"


def pixels(path: Path, pool: DecoderPool) -> str:
    """The fate of an image on which a lesion is marked."""
    try:
        (roi,) = pool.cut(path, [Cut(1, MIDDLE)])
    except ImageError as error:
        return f"quarantined: {error}"
    assert roi.pixels.shape == (299, 299)
    assert ((roi.pixels >= 0) & (roi.pixels <= 1)).all()
    return "cut"


def fate(tested: Object, path: Path, pool: DecoderPool) -> str:
    """Return "C000 ...", "quarantined: ...", "waits", "N lesions" or "cut"; anything raised is a defect."""
    return received(tested, path) or lesions(tested, path) or pixels(path, pool)
