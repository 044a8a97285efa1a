"""DIMSE status values and SOP classes against pynetdicom's tables, which follow PS3.7 annex C and PS3.4."""

from __future__ import annotations

import pytest
from pynetdicom import AllStoragePresentationContexts
from pynetdicom import status as pynetdicom_status
from pynetdicom.sop_class import StorageCommitmentPushModel, Verification

from daemon.dicom import sop_classes, status

GENERAL = pynetdicom_status.GENERAL_STATUS
STORE = pynetdicom_status.STORAGE_SERVICE_CLASS_STATUS
PROCEDURE = pynetdicom_status.PROCEDURE_STEP_STATUS
QUERY = pynetdicom_status.QR_FIND_SERVICE_CLASS_STATUS
RETRIEVE = pynetdicom_status.QR_MOVE_SERVICE_CLASS_STATUS


@pytest.mark.parametrize(
    ("value", "table", "category", "words"),
    [
        (status.SUCCESS, GENERAL, "Success", ""),
        (status.OPTIONAL_ATTRIBUTES_NOT_SUPPORTED, PROCEDURE, "Warning", "optional attributes"),
        (status.ATTRIBUTE_LIST_ERROR, GENERAL, "Warning", "attribute list"),
        (status.PROCESSING_FAILURE, GENERAL, "Failure", "processing failure"),
        (status.DUPLICATE_SOP_INSTANCE, GENERAL, "Failure", "duplication sop instance"),
        (status.INVALID_ARGUMENT_VALUE, GENERAL, "Failure", "invalid argument value"),
        (status.ATTRIBUTE_VALUE_OUT_OF_RANGE, GENERAL, "Warning", "value out of range"),
        (status.INVALID_OBJECT_INSTANCE, GENERAL, "Failure", "invalid object instance"),
        (status.SOP_CLASS_NOT_SUPPORTED, GENERAL, "Failure", "sop class not supported"),
        (status.NOT_AUTHORIZED, GENERAL, "Failure", "not authorised"),
        (status.RESOURCE_LIMITATION, GENERAL, "Failure", "resource limitation"),
        (status.OUT_OF_RESOURCES, STORE, "Failure", "out of resources"),
        (status.DATA_SET_DOES_NOT_MATCH_SOP_CLASS, STORE, "Failure", "data set does not match sop class"),
        (status.CANNOT_UNDERSTAND, STORE, "Failure", "cannot understand"),
        (status.UNABLE_TO_CALCULATE_MATCHES, RETRIEVE, "Failure", "number of matches"),
        (status.UNABLE_TO_PERFORM_SUBOPERATIONS, RETRIEVE, "Failure", "perform sub-operations"),
        (status.MOVE_DESTINATION_UNKNOWN, RETRIEVE, "Failure", "move destination unknown"),
        (status.SUBOPERATIONS_COMPLETE_WITH_FAILURES, RETRIEVE, "Warning", "one or more failures"),
        (status.CANCEL, RETRIEVE, "Cancel", ""),
        (status.PENDING, QUERY, "Pending", ""),
        (status.PENDING_WITHOUT_OPTIONAL_KEYS, QUERY, "Pending", "warning"),
    ],
)
def test_a_status_is_the_standards(value: int, table: dict[int, tuple[str, str]], category: str, words: str) -> None:
    assert table[value][0] == category and words in table[value][1].lower()


def test_every_status_is_named_once() -> None:
    values = [value for name, value in vars(status).items() if name.isupper()]
    assert len(values) == len(set(values)) == 21


def test_predicates_agree_with_the_categories() -> None:
    for value, (category, _) in {**GENERAL, **STORE}.items():
        if category == "Warning":
            assert status.is_warning(value), hex(value)
        elif category == "Success" or (value in STORE and value not in GENERAL):
            assert not status.is_warning(value), hex(value)
        assert status.is_out_of_resources(value) == (0xA700 <= value <= 0xA7FF)
    assert [value for value in QUERY if status.is_pending(value)] == [0xFF00, 0xFF01]


def test_storage_classes_include_all_that_pynetdicom_knows() -> None:
    known = {str(context.abstract_syntax) for context in AllStoragePresentationContexts}
    assert known <= set(sop_classes.storage_classes()) and len(sop_classes.storage_classes()) == 208
    assert (Verification, StorageCommitmentPushModel) == (sop_classes.VERIFICATION, sop_classes.STORAGE_COMMITMENT)
