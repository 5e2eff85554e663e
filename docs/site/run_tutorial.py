"""Run docs/tutorial.ipynb and write the page that it becomes, with all its pictures: ``make tutorial``.

python docs/site/run_tutorial.py [build/tutorial.html]

The environment variables that the notebook's first cell reads make it shorter. Its own file stays as it is: without
outputs.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbconvert import HTMLExporter

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"


def executed(folder: Path, seconds_per_cell: int = 600) -> nbformat.NotebookNode:
    """The notebook with its outputs.

    Args:
        folder: that it runs in.
        seconds_per_cell: after which a cell has failed.

    Raises:
        nbclient.exceptions.CellExecutionError: if a cell raises.
    """
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(notebook, timeout=seconds_per_cell, resources={"metadata": {"path": str(folder)}})
    return client.execute()


def main() -> None:
    """Write the page."""
    page = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build" / "tutorial.html")
    page.parent.mkdir(parents=True, exist_ok=True)
    # the viewer is a widget, which lives in a notebook only
    exporter = HTMLExporter(template_name="lab", mathjax_url="", require_js_url="", jquery_url="", embed_images=True)
    html, _ = exporter.from_notebook_node(executed(ROOT))
    page.write_text(html, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
