"""docs/reference/settings.md says what the commented default file says, of every setting there is."""

from __future__ import annotations

from config.settings import Settings
from tests.docs.settings import FILE, SOURCE, page, settings


def test_the_page_is_that_of_the_default_file() -> None:
    assert FILE.read_text(encoding="utf-8") == page(), "write it anew: python -m tests.docs.settings"


def test_every_setting_is_there_once() -> None:
    found = [(setting.section, setting.name) for setting in settings(SOURCE.read_text(encoding="utf-8"))]
    fields = Settings.model_fields
    expected = {(name, key) for name, field in fields.items() for key in getattr(field.annotation, "model_fields", {})}
    assert sorted(found) == sorted(expected)


def test_comments_defaults_and_examples_belong_to_the_setting_below_them() -> None:
    text = '[a]\n# What x\n# is.\nx = 1\n# Who y is.\n#   y = ["z"]\n# y = 2\nlist = [\n  "n = 3",\n]\n'
    assert [(one.name, one.default, one.text) for one in settings(text)] == [
        ("x", "`1`", "What x is."),
        ("y", None, 'Who y is. `y = ["z"]`'),
        ("list", "a list: see the file", ""),
    ]
