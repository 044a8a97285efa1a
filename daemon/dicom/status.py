"""DIMSE status values by their names in PS3.7 annex C and PS3.4 (tables B.2-1, C.4-1 to C.4-3)."""

from __future__ import annotations

# Of every DIMSE service (PS3.7 annex C).
SUCCESS = 0x0000
OPTIONAL_ATTRIBUTES_NOT_SUPPORTED = 0x0001  # warning
ATTRIBUTE_LIST_ERROR = 0x0107  # warning
PROCESSING_FAILURE = 0x0110
DUPLICATE_SOP_INSTANCE = 0x0111
INVALID_ARGUMENT_VALUE = 0x0115
ATTRIBUTE_VALUE_OUT_OF_RANGE = 0x0116  # warning
INVALID_OBJECT_INSTANCE = 0x0117
SOP_CLASS_NOT_SUPPORTED = 0x0122
NOT_AUTHORIZED = 0x0124
RESOURCE_LIMITATION = 0x0213

# Of C-STORE (PS3.4 table B.2-1).
OUT_OF_RESOURCES = 0xA700
DATA_SET_DOES_NOT_MATCH_SOP_CLASS = 0xA900  # also of C-FIND, C-GET and C-MOVE, about their identifier
CANNOT_UNDERSTAND = 0xC000

# Of C-FIND, C-GET and C-MOVE (PS3.4 tables C.4-1 to C.4-3).
UNABLE_TO_CALCULATE_MATCHES = 0xA701
UNABLE_TO_PERFORM_SUBOPERATIONS = 0xA702
MOVE_DESTINATION_UNKNOWN = 0xA801
SUBOPERATIONS_COMPLETE_WITH_FAILURES = 0xB000  # warning
CANCEL = 0xFE00
PENDING = 0xFF00
PENDING_WITHOUT_OPTIONAL_KEYS = 0xFF01


def is_out_of_resources(status: int) -> bool:
    """Return whether the performer lacked resources (A7xx): the same request may succeed later."""
    return status >> 8 == 0xA7


def is_warning(status: int) -> bool:
    """Return whether the operation succeeded with a warning (Bxxx and three values of PS3.7 C.4)."""
    return status >> 12 == 0xB or status in (
        OPTIONAL_ATTRIBUTES_NOT_SUPPORTED,
        ATTRIBUTE_LIST_ERROR,
        ATTRIBUTE_VALUE_OUT_OF_RANGE,
    )


def is_pending(status: int) -> bool:
    """Return whether a C-FIND response carries a match and more responses follow (PS3.4 table C.4-1)."""
    return status in (PENDING, PENDING_WITHOUT_OPTIONAL_KEYS)
