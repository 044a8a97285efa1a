"""Text and codes from elsewhere, made fit for the character set and value representations of a report."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from highdicom.sr import CodedConcept
from pydicom.charset import convert_encodings
from pydicom.dataset import Dataset

from daemon.lesions.lesion import Code


@dataclass(frozen=True)
class CharacterSet:
    """The Specific Character Set of the image, which the report keeps so that names stay byte for byte.

    A character of a lesion object that this set cannot encode becomes a question mark.
    """

    encodings: tuple[str, ...]

    @classmethod
    def encodable_with(cls, header: Dataset) -> CharacterSet:
        """Return the character set for a data set with the Specific Character Set of `header`."""
        declared = header.get("SpecificCharacterSet")
        encodings = convert_encodings(declared) if declared else ["ascii"]
        # An empty first value of several means the default repertoire, which is ASCII (PS3.5 6.1.2.1).
        return cls(tuple("ascii" if encoding == "iso8859" else encoding for encoding in encodings))

    def __call__(self, value: str) -> str:
        """Return `value` without control characters (line breaks stay) and with only encodable characters."""
        return "".join(c if self._encodable(c) else "?" for c in value if c.isprintable() or c in "\r\n").strip()

    def concept(self, code: Code | None) -> CodedConcept | None:
        """Return `code` as a code sequence item (PS3.3 section 8), or None if a part of it is missing."""
        if code is None:
            return None
        value, scheme, meaning = (self._short(part) for part in (code.value, code.scheme, code.meaning))
        return CodedConcept(value, scheme[:16], meaning[:64]) if value and scheme and meaning else None

    def concepts(self, codes: Iterable[Code]) -> list[CodedConcept]:
        """Return those of `codes` that are complete, as code sequence items."""
        return [concept for concept in map(self.concept, codes) if concept is not None]

    def _short(self, value: str) -> str:
        # A backslash would split the value in two (PS3.5 6.2).
        return " ".join(self(value).replace("\\", "/").split())

    def _encodable(self, character: str) -> bool:
        return any(_can_encode(character, encoding) for encoding in self.encodings)


def _can_encode(character: str, encoding: str) -> bool:
    try:
        character.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True
