"""Studies that the whole way is measured with: each sending is another study, complete in itself, in every
transfer syntax.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from benchmarks.studies import TINY, VIEWS, Study, breast
from daemon.lesions.reader import lesion_references, read_lesions


@pytest.mark.peers
def test_a_renewed_study_is_another_one_with_the_same_pixels_and_lesions(tmp_path: Path) -> None:
    seen: set[str] = set()
    syntaxes = set()
    for number in range(3):  # SEG, SR, SEG
        study = Study(tmp_path / str(number), number, TINY)
        for sent in (100 + 2 * number, 101 + 2 * number):
            study.renew(sent)
            read = [dcmread(path) for path in sorted(study.folder.iterdir())]
            images = {str(one.SOPInstanceUID): one for one in read if one.Modality == "MG"}
            assert len(images) == len(VIEWS) and {one.StudyInstanceUID for one in read} == {read[0].StudyInstanceUID}
            uids = {str(one.SOPInstanceUID) for one in read}
            assert len(uids) == len(read) and not uids & seen
            seen |= uids
            for place, image in enumerate(images.values()):
                assert np.array_equal(image.pixel_array, breast(*TINY, 4 * number + place))
                assert image.PatientID == f"P{1_000_000 + sent}"
                syntaxes.add(image.file_meta.TransferSyntaxUID.name)
            for path in study.lesion_objects:
                references = lesion_references(dcmread(path))
                assert references is not None and set(references.image_uids) <= set(images)
                (lesion,) = read_lesions(dcmread(path), images, {}, (), 9).lesions
                assert lesion.image_uid in images
    assert len(syntaxes) == 4, "uncompressed, JPEG lossless, JPEG-LS, JPEG 2000"
