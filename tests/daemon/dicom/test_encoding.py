"""What is encoded by hand, read and written by pydicom and pynetdicom."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.uid import UID
from pynetdicom.dimse_messages import C_STORE_RQ, C_STORE_RSP
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import create_file_meta, encode_file_meta
from pynetdicom.pdu_primitives import P_DATA

from daemon.dicom.encoding import store_request, store_response
from daemon.dicom.equipment import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from daemon.dicom.part10 import part_10_start

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


def request(uid: str = "1.2.34", **values: object) -> bytes:
    """The command set as pynetdicom writes it."""
    primitive = C_STORE()
    primitive.MessageID = 77
    primitive.AffectedSOPClassUID = MAMMOGRAM
    primitive.AffectedSOPInstanceUID = uid
    primitive.Priority = 2
    primitive.DataSet = io.BytesIO(b"a data set")
    for keyword, value in values.items():
        setattr(primitive, keyword, value)
    message = C_STORE_RQ()
    message.primitive_to_message(primitive)
    fragments = [
        fragment for data in message.encode_msg(1, 16_384) for _, fragment in data.presentation_data_value_list
    ]
    return bytes(fragments[0][1:])


@pytest.mark.parametrize("uid", ["1.2.3", "1.2.34", "1." + "2" * 62])
def test_request_is_read_as_pynetdicom_writes_it(uid: str) -> None:
    moved = {"MoveOriginatorApplicationEntityTitle": "SOMEBODY", "MoveOriginatorMessageID": 3}
    assert store_request(request(uid)) == store_request(request(uid, **moved)) == (77, MAMMOGRAM, uid)


@pytest.mark.parametrize(
    ("was", "becomes"),
    [
        (b"1.2.34", b"1.2.x4"),
        (b"1.2.34", b"1..234"),
        (b"\0\1\2\0\0\0\1\0", b"\0\1\2\0\0\0\x30\0"),  # C-ECHO-RQ
        (b"\0\1\2\0\0\0\1\0", b"\0\1\2\0\0\0\1\x80"),  # a response
        (b"\x10\1\2\0\0\0", b"\x10\1\3\0\0\0"),  # a length that leads astray
        (b"\0\7\2\0\0\0", b"\1\7\2\0\0\0"),  # an element that a request has not
    ],
)
def test_a_request_that_is_not_quite_right_is_left_to_pynetdicom(was: bytes, becomes: bytes) -> None:
    command = request()
    assert command.count(was) == 1
    assert store_request(command.replace(was, becomes)) is None


def test_a_request_without_a_data_set_or_with_bytes_behind_it_is_left_to_pynetdicom() -> None:
    command = request()
    at = command.index(b"\0\0\0\x08\2\0\0\0") + 8
    assert store_request(command[:at] + b"\1\1" + command[at + 2 :]) is None
    assert store_request(command + b"\0") is None
    assert store_request(command[:-1]) is None
    assert store_request(command + command[-20:]) is None


@given(st.binary(max_size=200), st.integers(0, 150), st.integers(0, 20))
def test_damaged_requests_are_read_as_pydicom_reads_them_or_not_at_all(noise: bytes, at: int, over: int) -> None:
    command = request()
    damaged = command[:at] + noise + command[at + over :]
    read = store_request(damaged)
    if read is not None:
        message = C_STORE_RQ()
        assert message.decode_msg(_one_fragment(b"\3" + damaged)) is False  # a data set is to follow
        by_pydicom = message.command_set
        assert read == (by_pydicom.MessageID, by_pydicom.AffectedSOPClassUID, by_pydicom.AffectedSOPInstanceUID)


def _one_fragment(fragment: bytes) -> P_DATA:
    primitive = P_DATA()
    primitive.presentation_data_value_list = [[1, fragment]]
    return primitive
