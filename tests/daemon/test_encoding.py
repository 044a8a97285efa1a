"""What is encoded by hand, read and written by pydicom and pynetdicom."""

from __future__ import annotations

import io

import pytest
from pydicom import dcmread
from pydicom.uid import UID
from pynetdicom.dimse_messages import C_STORE_RSP
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import create_file_meta, encode_file_meta

from daemon.encoding import part_10_start, store_response
from daemon.reports.identity import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

MAMMOGRAM = "1.2.840.10008.5.1.4.1.1.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"


@pytest.mark.parametrize("uid", ["1.2.3", "1.2.34"])  # of odd and of even length
def test_file_meta_information_is_what_pydicom_writes(uid: str) -> None:
    meta = create_file_meta(
        sop_class_uid=UID(MAMMOGRAM),
        sop_instance_uid=UID(uid),
        transfer_syntax=UID(EXPLICIT),
        implementation_uid=IMPLEMENTATION_CLASS_UID,
        implementation_version=IMPLEMENTATION_VERSION_NAME,
    )
    start = part_10_start(MAMMOGRAM, uid, EXPLICIT)
    assert start == bytes(128) + b"DICM" + encode_file_meta(meta)
    assert dcmread(io.BytesIO(start)).file_meta.MediaStorageSOPInstanceUID == uid


@pytest.mark.parametrize("comment", ["", "odd", "even", "x" * 70])
@pytest.mark.parametrize("uid", [None, "1.2.3", "1.2.34"])
def test_response_is_what_pynetdicom_writes(comment: str, uid: str | None) -> None:
    primitive = C_STORE()
    primitive.MessageIDBeingRespondedTo = 7
    primitive.AffectedSOPClassUID = uid and MAMMOGRAM
    primitive.AffectedSOPInstanceUID = uid
    primitive.Status = 0xA700 if comment else 0x0000
    if comment:
        primitive.ErrorComment = comment[:64]
    message = C_STORE_RSP()
    message.primitive_to_message(primitive)
    ((_, fragment),) = next(message.encode_msg(1, 16_384)).presentation_data_value_list
    assert fragment[1:] == store_response(7, uid and MAMMOGRAM, uid, 0xA700 if comment else 0, comment)
