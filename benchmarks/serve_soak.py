"""Ten minutes of what a server has to bear: many uploads at once, too large ones, clients that stall, killed workers.

::

    python benchmarks/serve_soak.py [--minutes 1] [--checkpoint best_psnr.pt]

starts ``drr2ct serve`` with the network that is shipped, or another, and until the time is over gives it, one round
after the other: twenty pairs at once, two gigabytes that are announced and 210 MB that are not, files that are no
pictures, clients that stop in the middle, the same work twice, a cancelled reconstruction and one whose process is
killed. After each round everything is removed, and the server's memory (its own, and of all its processes), open
files, processes and disk are noted. It ends with a table, and with status 1 if an answer was wrong, the server died,
or memory, files or disk did not come back to where they were after the first round.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from drr2ct.pipeline.data.sample.cts import sample_ct
from drr2ct.transforms.drr import RenderDRR
from drr2ct.transforms.geometry import BiplanarGeometry
from drr2ct.transforms.radiographs.write import write_radiograph
from drr2ct.transforms.volume import LoadCT

SLACK_MIB = 40
"""By so much memory may differ between the first round and the last: allocators keep some."""
PAIRS = 20


class Client:
    """Requests to one server."""

    def __init__(self, address: str) -> None:
        self.host, port = address.removeprefix("http://").rstrip("/").split(":")
        self.port = int(port)

    def ask(self, method: str, path: str, body: bytes | None = None, kind: str = "application/json") -> tuple[int, Any]:
        """Status and content of an answer."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=300)
        try:
            connection.request(method, path, body, {"content-type": kind} if body else {})
            answer = connection.getresponse()
            content = answer.read()
            is_json = answer.getheader("content-type") == "application/json"
            return answer.status, json.loads(content) if is_json and content else content
        finally:
            connection.close()

    def give(self, *files: tuple[str, bytes]) -> tuple[int, Any]:
        """Upload files as a case."""
        head = '--b\r\ncontent-disposition: form-data; name="files"; filename="{}"\r\n\r\n'
        body = b"".join(head.format(name).encode() + content + b"\r\n" for name, content in files) + b"--b--\r\n"
        return self.ask("POST", "/api/cases", body, "multipart/form-data; boundary=b")

    def wait(self, case: str, *states: str) -> dict[str, Any]:
        """The case once nothing goes on with it, or it is in one of these states."""
        while True:
            found = self.ask("GET", f"/api/cases/{case}")[1]
            if found["state"] in states or found["state"] not in ("reading", "waiting", "running"):
                return dict(found)
            time.sleep(0.1)

    def stall(self, body: bytes) -> socket.socket:
        """A client that begins an upload and says no more."""
        connection = socket.create_connection((self.host, self.port), timeout=300)
        head = f"POST /api/cases HTTP/1.1\r\nHost: {self.host}\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        connection.sendall(f"{head}Content-Length: 100000\r\n\r\n".encode() + body)
        return connection


def radiographs(folder: Path) -> list[tuple[str, bytes]]:
    """The sample patient's."""
    geometry = BiplanarGeometry.from_angles(detector_size=128)
    for view, image in zip(geometry.views, RenderDRR(geometry)(LoadCT()(sample_ct())).as_tensor(), strict=True):
        write_radiograph(folder / f"{view.name}.nii.gz", image, pitch_mm=view.pixel_pitch_mm)
    return [(path.name, path.read_bytes()) for path in (folder / "pa.nii.gz", folder / "lat.nii.gz")]


def one_round(client: Client, server: psutil.Process, pair: list[tuple[str, bytes]]) -> list[str]:
    """Everything once; returns what was not as it should be."""
    wrong = []

    def expect(what: str, found: Any, *wanted: Any) -> None:
        if found not in wanted:
            wrong.append(f"{what}: {found}, not {' or '.join(map(str, wanted))}")

    with concurrent.futures.ThreadPoolExecutor(PAIRS) as pool:
        given = list(pool.map(lambda _: client.give(*pair), range(PAIRS)))
    for status, _ in given:
        expect("one of 20 uploads at once", status, 201)
    cases = [case["id"] for status, case in given if status == 201]
    for case in cases:
        expect("reading one of 20", client.wait(case)["state"], "ready")

    with contextlib.suppress(OSError):  # it may hang up before it has read everything
        client.stall(b"").close()
        announced = socket.create_connection((client.host, client.port), timeout=60)
        head = f"POST /api/cases HTTP/1.1\r\nHost: {client.host}\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        announced.sendall(f"{head}Content-Length: {2 * 2**30}\r\n\r\n".encode())
        expect("two gigabytes", announced.recv(12), b"HTTP/1.1 413")
        announced.close()
    with contextlib.suppress(OSError, http.client.HTTPException):
        expect("210 MB", client.give(("a.png", bytes(210 * 10**6)))[0], 413)
    status, case = client.give(pair[0], ("notes.png", b"no picture"))
    expect("a file that is no picture", client.wait(case["id"])["state"], "refused")
    cases.append(case["id"])
    stalled = [client.stall(b"--b\r\ncontent-disp") for _ in range(3)]

    running = cases[0]
    expect("a job", client.ask("POST", f"/api/cases/{running}/reconstruct")[0], 202)
    expect("the same twice", client.ask("POST", f"/api/cases/{running}/reconstruct")[0], 202)
    same = client.ask("POST", f"/api/cases/{cases[1]}/reconstruct")[1]
    expect("the same films again", same.get("same_as"), running)
    expect("its end", client.wait(running)["state"], "done")
    for kind in ("volume.nii.gz", "volume.nrrd", "dicom.zip", "page.html"):
        expect(kind, client.ask("GET", f"/api/cases/{running}/{kind}")[0], 200)

    for case, end in ((cases[2], "cancelled"), (cases[3], "failed")):
        options = json.dumps({"patient": end}).encode()
        client.ask("POST", f"/api/cases/{case}/options", options)
        expect("reading again", client.wait(case)["state"], "ready")
        expect("a job", client.ask("POST", f"/api/cases/{case}/reconstruct")[0], 202)
        client.wait(case, "running")
        if end == "cancelled":
            client.ask("POST", f"/api/cases/{case}/cancel")
        else:
            killed = False
            while not killed and client.ask("GET", f"/api/cases/{case}")[1]["state"] == "running":
                for process in server.children(recursive=True):
                    with contextlib.suppress(psutil.Error, OSError):
                        if Path(process.cwd()).name == case:
                            process.kill()
                            killed = True
        expect(end, client.wait(case)["state"], end)
    for connection in stalled:
        connection.close()
    for case in cases:
        expect("removing", client.ask("DELETE", f"/api/cases/{case}")[0], 204)
    return wrong


def measured(server: psutil.Process, folder: Path) -> dict[str, float]:
    """What the server holds, once it is at rest."""
    time.sleep(2)
    children = server.children(recursive=True)
    mib = [process.memory_info().rss / 2**20 for process in (server, *children)]
    disk = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20
    return {
        "server MiB": mib[0],
        "all MiB": sum(mib),
        "processes": 1 + len(children),
        "open files": server.num_fds(),
        "disk MiB": disk,
    }


def main() -> None:
    """Run rounds until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="in place of the shipped network")
    parser.add_argument("--minutes", type=float, default=10.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "server")
        folder.mkdir()
        pair = radiographs(Path(place))
        command = [str(Path(sys.executable).with_name("drr2ct")), "serve", "--port", "0"]
        if arguments.checkpoint is not None:
            command += ["--checkpoint", str(arguments.checkpoint)]
        process = subprocess.Popen(
            command,
            env=os.environ | {"TMPDIR": str(folder)},
            stdout=subprocess.PIPE,
            text=True,
        )
        said = ""
        while "open " not in said:
            said = process.stdout.readline()  # type: ignore[union-attr]
            if not said:
                raise SystemExit("the server did not start")
        client, server = Client(said.split()[1]), psutil.Process(process.pid)
        end, rounds, wrong = time.monotonic() + 60 * arguments.minutes, 0, []
        first: dict[str, float] = {}
        print("round  seconds  " + "  ".join(name.rjust(10) for name in measured(server, folder)))
        while time.monotonic() < end or rounds < 2:
            began = time.monotonic()
            wrong += one_round(client, server, pair)
            rounds += 1
            last = measured(server, folder)
            first = first or last
            print(f"{rounds:5d}  {time.monotonic() - began:7.1f}  " + "  ".join(f"{v:10.1f}" for v in last.values()))
        for name, slack in (("server MiB", SLACK_MIB), ("all MiB", SLACK_MIB), ("open files", 4), ("disk MiB", 1)):
            if last[name] > first[name] + slack:
                wrong.append(f"{name} went from {first[name]:.1f} to {last[name]:.1f}")
        if process.poll() is not None:
            wrong.append("the server died")
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        print("\n".join(wrong) or f"{rounds} rounds, {rounds * (PAIRS + 6)} uploads: nothing wrong")
        raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
