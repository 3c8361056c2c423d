"""docs/benchmarks/vae-work.md says what benchmarks/vae_work.py computes."""

from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks" / "vae-work.md"


@pytest.mark.slow
def test_the_page_holds_the_tables_of_today(monkeypatch):
    monkeypatch.syspath_prepend(PAGE.parents[2] / "benchmarks")
    script, text = pytest.importorskip("vae_work"), PAGE.read_text(encoding="utf-8")
    for table in script.tables():
        assert "\n".join(table) in text
