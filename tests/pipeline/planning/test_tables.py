"""What a plan prints and writes."""

from __future__ import annotations

import json

from rich.console import Console

from drr2ct.pipeline.planning.plan import Settings, plan_network
from drr2ct.pipeline.planning.tables import run_plan

SMALL = Settings("cascade64", size=32, detector=64)


def test_files(tmp_path):
    markdown, figures = tmp_path / "a/plan.md", tmp_path / "a/plan.json"
    with (tmp_path / "out").open("w") as file:
        run_plan([SMALL], Console(file=file, width=200), "1 GiB", 100, "1 TFLOP/s", markdown=markdown, json=figures)
    content = json.loads(figures.read_text())
    assert {"parameters", "forward_flops", "forward_peak_bytes", "step_peak_bytes", "stages"} <= set(content)
    assert content["parameters"] == plan_network(SMALL).parameters
    assert content["stages"][0]["name"] == "encoder"
    printed = (tmp_path / "out").read_text()
    assert "largest batch that fits" in printed
    assert "per epoch of 100 samples" in printed
    assert markdown.read_text().count("|") > 50

    with (tmp_path / "out").open("w") as file:
        other = Settings("cascade128", size=32, detector=64)
        run_plan([SMALL, other], Console(file=file, width=250), json=figures, compare=True)
    assert set(json.loads(figures.read_text())) == {"cascade64", "cascade128"}
