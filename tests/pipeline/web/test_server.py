"""The server over HTTP alone: from two files to a volume, what is refused, and that nothing takes it down."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import psutil
import pydicom
import pytest
import SimpleITK as sitk
from PIL import Image

from drr2ct.pipeline.data.sample.cts import sample_ct
from drr2ct.pipeline.reconstruction import reconstruct
from drr2ct.transforms.preprocessing import files_to_samples
from tests.files import file_system
from tests.pipeline.web.conftest import SMALL, Server, as_files, serving
from tests.transforms.radiographs.test_loading import save_dicom

pytestmark = pytest.mark.slow  # a server takes seconds to start


def read_volume(content: bytes, path: Path) -> Any:
    path.write_bytes(content)
    return nib.load(path)


@pytest.fixture(scope="module")
def done(server: Server, drrs: list[Path]) -> dict[str, Any]:
    """A case that was reconstructed."""
    status, case = server.send("/api/cases", as_files(*drrs[::-1]), {"patient": "Jane Doe"})
    assert status == 201 and case["state"] == "reading"
    ready = server.wait(case)
    assert ready["state"] == "ready", ready
    assert server.ask(f"/api/cases/{case['id']}/reconstruct", {})[0] == 202
    found = server.wait(case)
    assert found["state"] == "done", found
    return found


def test_a_script_gets_what_the_command_makes(server: Server, drrs: list[Path], checkpoint: Path, tmp_path: Path):
    files = [*as_files(drrs[1], field="lateral"), *as_files(drrs[0], field="pa")]
    status, content = server.send("/api/reconstruct", files)
    assert status == 200, content
    found = read_volume(content, tmp_path / "served.nii.gz")
    (made,) = reconstruct(checkpoint, radiographs=drrs, output=tmp_path / "made.nii.gz")
    expected = nib.load(made)
    np.testing.assert_array_equal(found.affine, expected.affine)
    np.testing.assert_array_equal(np.asarray(found.dataobj), np.asarray(expected.dataobj))
    # and that is the patient, not a mirror image
    ct = files_to_samples(SMALL)({"patient": "p", "label": str(sample_ct()), "image": [*map(str, drrs)]})["label"]
    truth = np.asarray(ct)[0, :, :, ::-1]  # the grid's index 0 is the head
    volume = np.asarray(nib.as_closest_canonical(found).dataobj)
    scores = [np.corrcoef(volume.ravel(), other.ravel())[0, 1] for other in (truth, truth[::-1], truth[:, ::-1])]
    assert scores[0] > 0.9 and scores[0] > max(scores[1:]) + 0.01


def test_a_script_is_told_what_is_wrong(server: Server, film: Callable[..., Path], tmp_path: Path):
    header = save_dicom(tmp_path / "lat.dcm", np.arange(256, dtype=np.uint16).reshape(16, 16), 12, ViewPosition="LL")
    dataset = pydicom.dcmread(header)
    dataset.Rows = dataset.Columns = 60000
    dataset.save_as(header)
    side, other_side = film("side.png", 1), film("other_side.png", 1, lambda picture: picture**1.3)
    frontal = as_files(film("frontal.png", 0), field="pa")
    for files, says in (
        ([*frontal, ("lateral", "lat.txt", b"no picture")], "lat.txt is no PNG, JPEG, TIFF, DICOM"),
        ([*frontal, ("lateral", "lat.png", b"")], "lat.png is an empty file"),
        ([*frontal, *as_files(header, field="lateral")], "lat.dcm has 60000×60000 pixels, more than any film"),
        (frontal, "1 more X-ray is needed."),
        (
            [*as_files(side, field="pa"), *as_files(other_side, field="lateral")],
            r"side.png was given for view pa and looks like view lat .* send orientation=as-is with it\.",
        ),
    ):
        status, answer = server.send("/api/reconstruct", files)
        assert status == 422 and re.search(says, answer["error"]), answer


def test_which_is_which_is_found_out_and_every_format_holds_the_same(server: Server, done, tmp_path: Path):
    assert done["reading"]["order"] == [1, 0] and done["reading"]["found_by"] == "name"
    assert "differ from" in done["result"]["verdict"]

    def download(name: str) -> tuple[bytes, str]:
        status, content, headers = server.ask(f"/api/cases/{done['id']}/{name}")
        assert status == 200, content
        return content, headers["content-disposition"]

    content, saved_as = download("volume.nii.gz")
    assert saved_as == 'attachment; filename="Jane_Doe_ct.nii.gz"'
    volume = nib.as_closest_canonical(read_volume(content, tmp_path / "ct.nii.gz"))
    values = np.asarray(volume.dataobj)
    (tmp_path / "ct.nrrd").write_bytes(download("volume.nrrd")[0])
    nrrd = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "ct.nrrd"))).transpose(2, 1, 0)
    np.testing.assert_array_equal(nrrd[::-1, ::-1], values)  # LPS
    with zipfile.ZipFile(io.BytesIO(download("dicom.zip")[0])) as archive:
        slices = [pydicom.dcmread(io.BytesIO(archive.read(name))) for name in archive.namelist()]
    slices.sort(key=lambda image: float(image.ImagePositionPatient[2]))
    stack = np.stack([image.pixel_array.T for image in slices], axis=2)
    np.testing.assert_array_equal(stack[::-1, ::-1], values)
    assert {str(image.PatientName) for image in slices} == {"Jane Doe"}
    record = json.loads(download("record.json")[0])
    assert record["radiographs"] == ["film-1.nii.gz", "film-0.nii.gz"]  # no path of this machine
    page, saved_as = download("page.html")
    assert b"<!doctype html>" in page and saved_as.startswith("attachment")
    bounds: Any = read_volume(download("interval.nii.gz")[0], tmp_path / "interval.nii.gz")
    assert bounds.shape == (*values.shape, 2)
    assert server.ask(f"/api/cases/{done['id']}/film-0.nii.gz")[0] == 404, "what was given is not given away"
    for kind in ("given", "used", "own", "difference"):
        content = server.ask(f"/api/cases/{done['id']}/{kind}-1.png")[1]
        assert Image.open(io.BytesIO(content)).size == (128, 128)


def test_the_same_is_not_done_twice_and_another_reading_is_another_case(server: Server, done, drrs: list[Path]):
    again = server.send("/api/cases", as_files(*drrs), {"patient": "Jane Doe"})[1]
    assert server.wait(again)["state"] == "ready"
    status, found, _ = server.ask(f"/api/cases/{again['id']}/reconstruct", {})
    assert status == 202 and found["id"] == found["same_as"] == done["id"]
    address = f"/api/cases/{done['id']}/options"
    status, other, _ = server.ask(address, {"options": {"orientation": ["auto", "mirrored"]}})
    assert status == 201 and other["id"] != done["id"] and other["patient"] == "Jane Doe"
    other = server.wait(other)
    assert other["state"] == "ready" and other["options"] == {"orientation": ["auto", "mirrored"]}
    assert server.wait(done)["state"] == "done", "the result stays"
    for case in (again, other):
        assert server.ask(f"/api/cases/{case['id']}", method="DELETE")[0] == 204
        assert server.ask(f"/api/cases/{case['id']}")[0] == 404


def test_an_overruled_turn_is_shown_as_it_will_be_used(server: Server, film: Callable[..., Path]):
    def used(case: dict[str, Any]) -> np.ndarray:
        content = server.ask(f"/api/cases/{case['id']}/used-1.png")[1]
        return np.asarray(Image.open(io.BytesIO(content)).convert("L")).astype(float)

    files = as_files(film("frontal.png", 0), film("side.png", 1, lambda picture: picture.flip(1)))
    case = server.wait(server.send("/api/cases", files)[1])
    assert case["state"] == "ready", case
    assert "side.png faced right: mirrored" in " ".join(case["reading"]["films"][1]["said"]["turn"])
    turned = used(case)
    wanted = {"options": {"orientation": ["auto", "as-is"], "check_order": False}}
    case = server.wait(server.ask(f"/api/cases/{case['id']}/options", wanted)[1])
    assert case["reading"]["films"][1]["said"]["turn"] == ["side.png is upright as it is stored, as stated."]
    stored = used(case)
    likeness = [np.corrcoef(stored.ravel(), other.ravel())[0, 1] for other in (turned, turned[:, ::-1])]
    assert likeness[1] > 0.9 > likeness[0]


def test_a_wrong_file_has_its_sentence_and_a_missing_one_can_follow(server: Server, film: Callable[..., Path]):
    pa = film("pa.png", 0)
    wrong = ("files", "../../notes.png", b"not a picture")
    case = server.wait(server.send("/api/cases", [*as_files(pa), wrong])[1])
    assert case["state"] == "refused"
    first, second = case["reading"]["films"]
    assert first["error"] == ""
    none = "radiograph notes.png is no PNG, JPEG, TIFF, DICOM, NIfTI, NRRD or MetaImage file; export it as one."
    assert second["error"] == none
    assert server.ask(f"/api/cases/{case['id']}/reconstruct", {})[0] == 422
    case = server.wait(server.send("/api/cases", as_files(pa))[1])
    assert case["state"] == "incomplete" and case["sentence"].startswith("1 more X-ray is needed")
    lateral = film("lat.png", 1)
    assert server.send(f"/api/cases/{case['id']}/films", as_files(lateral))[0] == 200
    assert server.wait(case)["state"] == "ready"
    assert server.send(f"/api/cases/{case['id']}/films", as_files(lateral))[0] == 422


def test_films_lie_under_names_of_ours_for_their_owner_alone(server: Server, done):
    (session,) = server.folder.glob("drr2ct-serve-*")
    folder = session / done["id"]
    for place in (session, folder):
        assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert {path.name for path in folder.glob("film-*")} == {"film-0.nii.gz", "film-1.nii.gz"}
    assert not [path for path in folder.iterdir() if stat.S_IMODE(path.stat().st_mode) & 0o077]


def test_a_name_in_a_header_is_shown_to_who_asks_only(server: Server, tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 4095, (32, 32))
    path = save_dicom(tmp_path / "pa.dcm", pixels, 12, PatientName="Secret^Jane", PatientID="4711")
    case = server.wait(server.send("/api/cases", as_files(path))[1])
    assert "Secret" not in json.dumps(case) and "4711" not in json.dumps(case)
    assert server.ask(f"/api/cases/{case['id']}/header/0")[1]["PatientName"] == "Secret^Jane"
    assert server.ask(f"/api/cases/{case['id']}/header/1")[0] == 422


def test_too_much_is_refused_before_and_while_it_streams(server: Server, film: Callable[..., Path]):
    host, port = server.address.removeprefix("http://").split(":")
    head = f"POST /api/cases HTTP/1.1\r\nHost: {host}\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    with socket.create_connection((host, int(port)), timeout=30) as client:  # two gigabytes, announced
        client.sendall(f"{head}Content-Length: {2**31}\r\n\r\n".encode())
        assert b" 413 " in client.recv(64)
    part = b'--b\r\ncontent-disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    block = b"1000000\r\n" + bytes(2**24) + b"\r\n"
    answer = b""
    with socket.create_connection((host, int(port)), timeout=60) as client:  # not announced
        client.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n{len(part):x}\r\n".encode() + part + b"\r\n")
        try:
            for _ in range(20):
                client.sendall(block)
            answer = client.recv(64)
        except OSError:
            pass  # it hung up, as it may
        else:
            assert b" 413 " in answer
    five = as_files(*[film("a.png", 0)] * 5)
    assert server.send("/api/cases", five) == (
        422,
        {"error": "there are more than 4 files; give the radiographs of one patient."},
    )
    assert server.send("/api/cases", [])[0] == 422
    assert server.ask("/api/cases", b"{}")[0] == 422
    (session,) = server.folder.glob("drr2ct-serve-*")
    assert not list(session.glob("tmp*")), "nothing of it is left"


def test_one_runs_and_the_others_wait_and_are_cancelled_or_survive_a_kill(server: Server, drrs: list[Path]):
    def given(patient: str) -> dict[str, Any]:
        case = server.wait(server.send("/api/cases", as_files(*drrs), {"patient": patient})[1])
        assert server.ask(f"/api/cases/{case['id']}/reconstruct", {})[0] == 202
        return case

    cases = [given(name) for name in ("killed", "cancelled", "third")]
    server.wait(cases[0], "running")
    status, sentence, _ = server.ask(f"/api/cases/{cases[0]['id']}/options", {"patient": "other"})
    assert status == 429 and "cancel that first" in sentence["error"]
    working = psutil.Process(server.process.pid).children(recursive=True)
    for process in working:
        if Path(process.cwd()).name == cases[0]["id"]:
            process.kill()
    killed = server.wait(cases[0])
    assert killed["state"] == "failed" and "memory was short" in killed["sentence"]
    server.wait(cases[1], "running")
    assert server.ask(f"/api/cases/{cases[1]['id']}/cancel", {})[1]["state"] == "cancelled"
    assert cases[1]["id"] not in {Path(p.cwd()).name for p in psutil.Process(server.process.pid).children(True)}
    assert server.wait(cases[2])["state"] == "done"
    assert server.ask(f"/api/cases/{cases[0]['id']}/reconstruct", {})[0] == 202  # tried again
    assert server.wait(cases[0])["state"] == "done"


def test_a_full_disk_is_said_and_nothing_is_left_at_the_end(checkpoint: Path, drrs: list[Path]):
    token = {"authorization": "Bearer 0123456789abcdef"}
    with (
        tempfile.TemporaryDirectory() as short,  # Unix sockets in it may have 107 characters
        file_system(Path(short) / "small", 6) as folder,
        serving(checkpoint, folder, "--token", token["authorization"][7:]) as own,
    ):
        assert own.ask("/api/state")[0] == 401
        status, _, headers = own.ask("/", headers=token)
        assert status == 200 and "default-src 'none'" in headers["content-security-policy"]
        status, said = own.send("/api/reconstruct", [("pa", "pa.png", bytes(8 * 2**20))], headers=token)
        assert status == 507 and "disk is full" in said["error"]
        films = [*as_files(drrs[0], field="pa"), *as_files(drrs[1], field="lateral")]
        (folder / "filler").write_bytes(bytes(shutil.disk_usage(folder).free - 150_000))  # enough for the films alone
        status, said = own.send("/api/reconstruct", films, headers=token)
        assert status == 507 and "disk is full" in said["error"]
        (folder / "filler").unlink()
        assert own.send("/api/reconstruct", films, headers=token)[0] == 200
        said = own.stop(signal.SIGTERM)
        assert "lost: 1 result" in said and not list(folder.iterdir())


def test_the_first_interrupt_says_what_would_be_lost(checkpoint: Path, drrs: list[Path], tmp_path: Path):
    with serving(checkpoint, tmp_path, "--keep", str(tmp_path / "kept")) as own:
        case = own.wait(own.send("/api/cases", as_files(*drrs))[1])
        own.ask(f"/api/cases/{case['id']}/reconstruct", {})
        own.wait(case, "running")
        own.process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert own.process.poll() is None and own.wait(case)["state"] == "done", "it goes on"
        said = own.stop(signal.SIGINT)  # what is done is kept: nothing would be lost
        assert "stopping now loses 1 reconstruction that runs; press Ctrl-C again" in said
        assert "Warning" not in said and "Traceback" not in said
    (kept,) = (tmp_path / "kept").glob("*/*/ct.nii.gz")
    assert nib.load(kept).shape == (16, 16, 16)


def test_a_temporary_folder_with_a_long_path_serves_as_well(checkpoint: Path, drrs: list[Path], tmp_path: Path):
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    with serving(checkpoint, deep) as own:
        assert own.send("/api/reconstruct", as_files(*drrs))[0] == 200
        own.stop(signal.SIGTERM)
    assert not list(deep.iterdir())


@pytest.mark.parametrize("kept", [False, True])
def test_a_server_that_is_stopped_while_it_loads_leaves_no_folder(checkpoint: Path, tmp_path: Path, kept: bool):
    options = ["--keep", str(tmp_path / "kept")] if kept else []
    (tmp_path / "temporary").mkdir()
    process = subprocess.Popen(
        [
            str(Path(sys.executable).with_name("drr2ct")),
            "serve",
            "--checkpoint",
            str(checkpoint),
            "--port",
            "0",
            *options,
        ],
        env={**os.environ, "TMPDIR": str(tmp_path / "temporary")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    assert "loading" in process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM and "Traceback" not in said, said
    assert not [path for path in tmp_path.rglob("*") if path.name not in ("temporary", "kept")]
