from __future__ import annotations

from drr2ct.pipeline.running.provenance import versions


def test_versions_name_the_revision() -> None:
    assert len(versions()["git"].split("-")[0]) == 40
