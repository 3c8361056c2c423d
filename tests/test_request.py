"""What a user asks: sizes of memory in words."""

import pytest

from tudsr.errors import InputError
from tudsr.request import parse_memory


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("2GB", 2 * 10**9),
        ("800 MB", 8 * 10**8),
        ("1.5GiB", 3 * 2**29),
        ("64k", 64_000),
        ("123", 123),
        (7, 7),
        ("1t", 10**12),
    ],
)
def test_sizes_in_words(text, count):
    assert parse_memory(text) == count


@pytest.mark.parametrize(
    "text", ["", "much", "-2GB", "2 PB", "0", "GB", "2GB!", "1e9", "9" * 400 + "GB", "9" * 305 + "TB"]
)
def test_what_is_no_size_is_refused(text):
    with pytest.raises(InputError, match="2GB, 800MB or 1.5GiB"):
        parse_memory(text)
