"""The tutorial runs from its first cell to its last, on a small scale."""

from __future__ import annotations

from pathlib import Path

import pytest

from docs.site.run_tutorial import executed


@pytest.mark.slow
def test_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"SECONDS": "4", "SIZE": "32", "MODEL": "cascade64", "FOLDER": str(tmp_path / "work")}
    for name, value in small.items():
        monkeypatch.setenv(f"DRR2CT_TUTORIAL_{name}", value)
    monkeypatch.delenv("PYTEST_XDIST_WORKER_COUNT", raising=False)
    cells = [cell for cell in executed(tmp_path).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    shown = [output.data for cell in cells for output in cell.outputs if "data" in output]
    assert sum("image/png" in data for data in shown) == 6
    assert any("application/vnd.jupyter.widget-view+json" in data for data in shown), "the viewer"
    printed = "".join(output.text for cell in cells for output in cell.outputs if output.get("name") == "stdout")
    assert printed.count("dB PSNR") == 2 and "parameters" in printed
    for name in ("reconstruction.nii.gz", "reconstruction.html", "from-films.nii.gz"):
        assert (tmp_path / "work" / name).stat().st_size > 0
