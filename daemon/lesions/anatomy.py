"""Decide from the author's type code, label and category whether a mark is a lesion."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cache

from config.lesion_terms import LYMPH_NODE_CODES, LYMPH_NODE_WORDS
from config.settings import Lesions
from daemon.lesions.lesion import Code
from daemon.lesions.references import listed_code


@dataclass(frozen=True)
class Naming:
    """What an author calls a mark: codes of its type, free labels, codes of its category."""

    types: tuple[Code, ...] = ()
    labels: tuple[str, ...] = ()
    categories: tuple[Code, ...] = ()


def why_no_lesion(naming: Naming, settings: Lesions) -> str | None:
    """Return why a mark with this naming is no lesion, None if it is a lesion.

    A listed type code decides; else the words of the code's meaning, of the labels, or the category. A
    category alone proves little: MONAI Label writes "Anatomical Structure" for every label.
    """
    if listed := listed_code(naming.types, settings.not_lesions):
        return f"its code {listed.scheme}:{listed.value} is listed as not a lesion"
    if (listed := listed_code(naming.types, LYMPH_NODE_CODES)) and not settings.lymph_nodes:
        return f"its code {listed.scheme}:{listed.value} is that of a lymph node (lesions.lymph_nodes)"
    if listed or listed_code(naming.types, settings.lesion_codes):
        return None
    for text in (*(code.meaning for code in naming.types), *naming.labels):
        if not settings.lymph_nodes and (word := word_in(text, LYMPH_NODE_WORDS)):
            return f"it is labelled as a lymph node ({word!r}; lesions.lymph_nodes)"
        if word_in(text, settings.lesion_words, anywhere=True):
            return None
        if word := word_in(text, settings.not_lesion_words):
            return f"its label holds the word {word!r}, which is listed as not a lesion"
    if listed := listed_code(naming.categories, settings.not_lesions):
        return (
            f"its code {listed.scheme}:{listed.value} is listed as not a lesion, and neither type nor label names one"
        )
    return None


def word_in(text: str, words: Iterable[str], *, anywhere: bool = False) -> str | None:
    """Return the first of `words` that begins a word of `text`, or with `anywhere` is contained in it.

    Case, accents, underscores and hyphens are ignored. Words of other scripts are found anywhere, since they
    are not always separated.
    """
    plain = _plain(text)
    return next((word for word in words if _pattern(word, anywhere).search(plain)), None)


def says_lesion(texts: Collection[str], settings: Lesions) -> bool:
    """Return whether one of the labels names a lesion."""
    return any(word_in(text, settings.lesion_words, anywhere=True) for text in texts)


@cache
def _pattern(word: str, anywhere: bool) -> re.Pattern[str]:
    plain = _plain(word)
    return re.compile(re.escape(plain) if anywhere or not plain.isascii() else rf"(?<![a-z]){re.escape(plain)}")


def _plain(text: str) -> str:
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    letters = "".join(letter for letter in decomposed if not unicodedata.combining(letter))
    return re.sub(r"[\s_\-]+", " ", letters)
