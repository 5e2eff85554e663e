from __future__ import annotations

import pytest

from drr2ct.pipeline.running import provenance
from drr2ct.pipeline.running.provenance import versions


def test_versions_name_the_revision() -> None:
    assert len(versions()["git"].split("-")[0]) == 40


def test_a_package_that_is_missing_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "_PACKAGES", ("torch", "nobody-wrote-this"))
    found = versions.__wrapped__()
    assert found["nobody-wrote-this"] == "not installed" and found["torch"][0].isdigit()
