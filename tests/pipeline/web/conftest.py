"""A server as ``drr2ct serve`` starts it, with a small network that has seen one patient, and its films."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import torch
from PIL import Image
from torch import Tensor

from drr2ct.networks import create_network
from drr2ct.networks.config import StageConfig
from drr2ct.networks.interval import estimate_of
from drr2ct.pipeline.checkpoints.description import describe
from drr2ct.pipeline.checkpoints.files import write_checkpoint
from drr2ct.pipeline.data.sample.cts import sample_ct
from drr2ct.transforms.preprocessing import files_to_samples
from drr2ct.transforms.radiographs.write import write_radiograph
from tests.transforms.drawn_films import FIELD, GEOMETRY, PITCH, line_integrals, statistics, toned

SMALL = GEOMETRY.resized(size=16)


@dataclass
class Server:
    """A running server."""

    process: subprocess.Popen[str]
    address: str
    folder: Path
    """In which its session's folder lies."""

    def ask(
        self, path: str, content: Any = None, method: str | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Any, Mapping[str, str]]:
        """Status, content (parsed if it is JSON) and headers of an answer; ``content`` is sent as JSON, bytes as is."""
        data = content if isinstance(content, bytes) or content is None else json.dumps(content).encode()
        request = urllib.request.Request(self.address + path, data, dict(headers or {}), method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                status, body, found = answer.status, answer.read(), answer.headers
        except urllib.error.HTTPError as error:
            status, body, found = error.code, error.read(), error.headers
        if found.get("content-type") == "application/json" and "content-disposition" not in found:
            return status, json.loads(body), found
        return status, body, found

    def send(
        self,
        path: str,
        files: list[tuple[str, str, bytes]],
        fields: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, Any]:
        """Post a form: (field, file name, content) of each file."""
        boundary = uuid4().hex
        parts = [
            f'--{boundary}\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
            for name, value in (fields or {}).items()
        ]
        for name, file, content in files:
            head = f'--{boundary}\r\ncontent-disposition: form-data; name="{name}"; filename="{file}"\r\n\r\n'
            parts.append(head.encode() + content + b"\r\n")
        body = b"".join([*parts, f"--{boundary}--\r\n".encode()])
        kind = {"content-type": f"multipart/form-data; boundary={boundary}"}
        return self.ask(path, body, headers=kind | dict(headers or {}))[:2]

    def wait(self, case: Mapping[str, Any], *states: str, seconds: float = 90.0) -> dict[str, Any]:
        """The case once it is in one of these states; by default in any in which nothing goes on."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            _, found, _ = self.ask(f"/api/cases/{case['id']}")
            if found["state"] in states or (not states and found["state"] not in ("reading", "waiting", "running")):
                return dict(found)
            time.sleep(0.05)
        raise AssertionError(f"still {found['state']} after {seconds} s: {found}")

    def stop(self, number: signal.Signals) -> str:
        """End it by a signal; returns what it still said."""
        self.process.send_signal(number)
        said, _ = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, said
        return said


@contextmanager
def serving(checkpoint: Path, folder: Path, *options: str) -> Iterator[Server]:
    """``drr2ct serve`` in a process, with ``folder`` for temporary files."""
    command = [str(Path(sys.executable).with_name("drr2ct")), "serve", "--checkpoint", str(checkpoint), "--port", "0"]
    environment = os.environ | {"TMPDIR": str(folder), "COLUMNS": "200"}
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen([*command, *options], env=environment, **pipes)
    try:
        said = ""
        while "open " not in said:
            line = process.stdout.readline()
            assert line, said
            said += line
        yield Server(process, said.split("open ")[1].split()[0].split("?")[0].rstrip("/"), folder)
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def drrs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The sample patient's radiographs, PA and lateral, in line integrals."""
    folder = tmp_path_factory.mktemp("drrs")
    for name, image in zip(("pa", "lat"), line_integrals(), strict=True):
        write_radiograph(folder / f"{name}.nii.gz", image, pitch_mm=PITCH)
    return [folder / "pa.nii.gz", folder / "lat.nii.gz"]


@pytest.fixture(scope="session")
def checkpoint(drrs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of 16³ voxels that knows one patient by heart, so that left and right can be told in what it makes.

    It gives bounds, which nobody has calibrated.
    """
    torch.manual_seed(0)
    sample: Any = files_to_samples(SMALL)({"patient": "p", "label": str(sample_ct()), "image": [*map(str, drrs)]})
    stages = tuple(StageConfig(channels=8, scale=s, growth=4, layers=2, lift_channels=4) for s in (1, 2))
    network = create_network(
        "cascade64", geometry=SMALL, stages=stages, encoder_channels=(4, 8), encoder_norm_groups=(2,), interval=True
    ).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    image, label = (torch.as_tensor(sample[key])[None] for key in ("image", "label"))
    for _ in range(60):
        loss = (estimate_of(network(image)) - label).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    description = describe(network.eval(), "cascade64", "cube", {"training": [], "validation": []})
    content = {"network": network.state_dict(), "description": description | {"radiographs": statistics()}}
    return write_checkpoint(tmp_path_factory.mktemp("network") / "small.pt", content)


@pytest.fixture(scope="session")
def server(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Shared by the tests that leave it as it was."""
    with serving(checkpoint, tmp_path_factory.mktemp("temporary")) as running:
        yield running


@pytest.fixture
def film(tmp_path: Path) -> Callable[..., Path]:
    """Write a view of the sample patient as a picture for the eye."""

    def write(name: str, view: int, change: Callable[[Tensor], Tensor] = lambda picture: picture) -> Path:
        picture = change(toned(line_integrals()[view][FIELD]))
        path = tmp_path / name
        Image.fromarray((picture * 255).round().byte().numpy()).save(path)
        return path

    return write


def as_files(*paths: Path, field: str = "files") -> list[tuple[str, str, bytes]]:
    """For :meth:`Server.send`."""
    return [(field, path.name, path.read_bytes()) for path in paths]
