"""What a library's error says, within a sentence of ours."""

import pytest

from tudsr.errors import cause


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no network", "no network"),
        ("Cannot load it.\nHere is\na page.", "Cannot load it"),
        (
            "Error(s) in loading:\n\tsize mismatch for  conv0.\n\tsize mismatch for conv1.",
            "Error(s) in loading: size mismatch for conv0",
        ),
        ("", "OSError"),
    ],
)
def test_it_is_one_line(text, said):
    assert cause(OSError(text)) == said
