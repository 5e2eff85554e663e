"""What other processes do for the server: tasks that work in a case's folder, take and return plain types."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import torch
from matplotlib import colormaps
from monai.bundle import ConfigParser
from monai.transforms import Orientation
from PIL import Image

from drr2ct.pipeline.checkpoints.files import NO_WEIGHTS, read_checkpoint
from drr2ct.pipeline.checkpoints.inspection import checkpoint_facts
from drr2ct.pipeline.checkpoints.shipped import shipped_networks
from drr2ct.pipeline.data.identity import trained_on
from drr2ct.pipeline.data.sample.cts import sample_ct
from drr2ct.pipeline.evaluation.reprojection import reprojection_verdict
from drr2ct.pipeline.pictures.scales import DOUBT_COLOURS, DOUBT_RANGE, ERROR_COLOURS, grey
from drr2ct.pipeline.reconstruction import reconstruct as run_reconstruct
from drr2ct.pipeline.running.bundle import bundle_file, find_input_error, merged_config
from drr2ct.pipeline.running.faults import causes, disk_is_full, explain_fault
from drr2ct.pipeline.running.plain import as_data
from drr2ct.pipeline.volumes.dicom_output import write_dicom_series
from drr2ct.pipeline.volumes.files import read_volume, write_volume
from drr2ct.pipeline.web.decisions import refusal, sorted_sentences
from drr2ct.pipeline.web.views import find_order
from drr2ct.transforms.attenuation import LINE_INTEGRAL_SCALE
from drr2ct.transforms.drr import RenderDRR, render_drr
from drr2ct.transforms.files import replacing
from drr2ct.transforms.geometry import BiplanarGeometry
from drr2ct.transforms.quiet import quiet_libraries
from drr2ct.transforms.radiographs.files import decode
from drr2ct.transforms.radiographs.pixels import Pixels, Reading
from drr2ct.transforms.radiographs.write import write_radiograph
from drr2ct.transforms.validation import InputError, existing_file
from drr2ct.transforms.volume import LoadCT

Tell = Callable[..., None]
VOLUME = "ct.nii.gz"
_THUMBNAIL = 512
_DIFFERENCE = 0.25  # of the line integral that is white: full colour, as in the preview


def is_full(error: BaseException) -> bool:
    """Whether something could not be written for want of space."""
    return any(isinstance(cause, OSError) and disk_is_full(cause) for cause in causes(error))


def explained(error: BaseException) -> str:
    """One sentence for whatever went wrong."""
    if is_full(error):
        return "the disk is full; free space, or remove results of this session, and try again."
    mistake = find_input_error(error) or explain_fault(error)
    if mistake is not None:
        return str(mistake)
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return "there is not enough memory for this; choose a smaller network, or close other programs."
    text = " ".join(str(error).split())[:300]
    return f"this failed by a mistake of the program ({type(error).__name__}: {text}); please report it."


def networks(tell: Tell, checkpoints: Sequence[str], names: Sequence[str]) -> list[dict[str, Any]]:
    """Facts of each checkpoint, then of those that are shipped, for the page to choose from.

    Raises:
        InputError: if there is none, or one that cannot be used.
    """
    found = []
    shipped = {name: str(path) for name, path in shipped_networks().items()}
    offered = [*zip(names, checkpoints, strict=True), *((n, p) for n, p in shipped.items() if n not in names)]
    if not offered:
        raise InputError(NO_WEIGHTS)
    for name, path in offered:
        facts = checkpoint_facts(path)
        geometry = BiplanarGeometry.from_dict(facts["config"]["geometry"])
        found.append(
            {
                "id": name,
                "path": path,
                "name": facts["name"],
                "size": geometry.grid.size,
                "voxel_mm": geometry.grid.spacing_mm,
                "fov_mm": geometry.grid.fov_mm,
                "views": [view.name for view in geometry.views],
                "patients": len(facts["patients"].get("training", [])),
                "seen_sample": _has_seen(facts, sample_ct()),
            }
        )
    return found


def _has_seen(facts: Mapping[str, Any], ct: Path) -> bool:
    """Whether a network was trained on a CT, or on variations of it."""
    item = {"patient": ct.parent.name, "label": str(ct)}
    variations = [name for name in facts["patients"].get("training", []) if ct.parent.name in str(name)]
    return bool(variations or trained_on(facts, [item]))


def read(
    tell: Tell,
    films: Sequence[Mapping[str, str]],
    checkpoint: str,
    order: list[int] | None,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Read films as ``reconstruct`` would, and draw each as it will be used.

    Returns:
        ``state`` (``ready``, ``incomplete``, ``refused``), ``sentence``, ``order``, ``found_by``, ``films`` (of each as
        given: ``error``, ``facts``, ``said`` by subject, ``remedies``), ``pair`` and ``warnings`` (sentences).
    """
    stored = [film["stored"] for film in films]
    shown = [film["shown"] for film in films]
    description = read_checkpoint(checkpoint)["description"]
    geometry = BiplanarGeometry.from_dict(description["config"]["geometry"])
    found: list[dict[str, Any]] = []
    decoded: list[Pixels | None] = []
    for index, name in enumerate(stored):
        try:
            pixels = decode(existing_file(name, "radiograph"), _reading(settings, order, index))
            _draw_as_given(pixels, Path(f"given-{index}.png"))
            found.append({"error": "", "facts": _facts(pixels), "said": {}, "remedies": []})
            decoded.append(pixels)
        except InputError as error:
            sentence, _, remedies = refusal(str(error), stored, shown)
            found.append({"error": sentence, "facts": {}, "said": {}, "remedies": remedies})
            decoded.append(None)
    answer: dict[str, Any] = {
        "state": "refused",
        "sentence": "",
        "order": order,
        "found_by": "" if order is None else "stated",
        "films": found,
        "pair": [],
        "warnings": [],
        "remedies": [],
    }
    if any(pixels is None for pixels in decoded):
        return answer
    views = [view.name for view in geometry.views]
    stack = len(films) == 1 and len(views) > 1 and decoded[0] is not None and decoded[0].values.ndim == 3
    if not stack and len(films) != len(views):
        missing = len(views) - len(films)
        sentence = (
            f"{missing} more X-ray is needed."
            if missing == 1
            else f"{len(views)} X-rays are needed, one for each view."
        )
        return answer | {"state": "incomplete", "sentence": sentence}
    if stack:
        order, how = [0], "given"
    elif order is None or sorted(order) != list(range(len(films))):
        order, how = find_order([p for p in decoded if p is not None], shown, geometry, description.get("radiographs"))
    else:
        how = "stated"
    answer |= {"order": order, "found_by": how}
    try:
        sample = _preprocessing(checkpoint, settings)({"patient": "patient", "image": [stored[i] for i in order]})
    except Exception as error:
        mistake = find_input_error(error)
        if mistake is None:
            raise
        sentence, about, remedies = refusal(str(mistake), stored, shown)
        if len(about) == 1:
            found[about[0]] |= {"error": sentence, "remedies": remedies}
            return answer
        return answer | {"sentence": sentence, "remedies": remedies}
    names = [stored[i] for i in order], [shown[i] for i in order]
    said, pair = sorted_sentences(sample["assumptions"].splitlines(), *names)
    for index, sentences in zip(order, said, strict=True):
        found[index]["said"] = sentences
    warned, doubts = sorted_sentences(sample["warnings"].splitlines(), *names)
    for index, sentences in zip(order, warned, strict=True):
        found[index]["warnings"] = [text for texts in sentences.values() for text in texts]
    images = (sample["image"] * LINE_INTEGRAL_SCALE).numpy()
    for number, image in enumerate(images):
        _save_png(grey(image, 0.0, _white(image)), Path(f"used-{number}.png"))
    np.save("used.npy", images)
    return answer | {"state": "ready", "pair": pair, "warnings": doubts, "views": views}


def reconstruct(
    tell: Tell,
    films: Sequence[Mapping[str, str]],
    checkpoint: str,
    order: Sequence[int],
    settings: Mapping[str, Any],
    patient: str,
) -> dict[str, Any]:
    """Reconstruct, with record and page, and draw the volume's own radiographs beside the given ones.

    Tells ``stage`` and ``share`` on its way.
    """
    for path in (VOLUME, "ct_interval.nii.gz", "ct_doubt.nii.gz", "ct.nrrd", "ct_dicom.zip"):
        Path(path).unlink(missing_ok=True)
    run_reconstruct(
        checkpoint,
        radiographs=[films[i]["stored"] for i in order],
        output=VOLUME,
        patient=patient,
        preview=True,
        overwrite=True,
        progress=lambda stage, share: tell(stage=stage, share=share),
        **settings,
    )
    tell(stage="drawing", share=0.0)
    record = json.loads(Path("ct.json").read_text(encoding="utf-8"))
    geometry = BiplanarGeometry.from_dict(record["geometry"])
    _draw_beside(geometry)
    verdict = reprojection_verdict(
        record["reprojection_relative"], read_checkpoint(checkpoint)["description"].get("reprojection")
    )
    said = {verdict.sentence}
    names = [[films[i][kind] for i in order] for kind in ("stored", "shown")]

    def plain(sentences: Sequence[str]) -> list[str]:
        by_film, pair = sorted_sentences([s for s in sentences if s not in said], *names)
        return [*(text for film in by_film for texts in film.values() for text in texts), *pair]

    doubt = {"range": DOUBT_RANGE, "colours": DOUBT_COLOURS}
    return {
        "verdict": verdict.sentence,
        "doubtful": verdict.doubtful,
        "warnings": plain(record["warnings"]),
        "assumptions": plain(record["assumptions"]),
        "shape": record["shape"],
        "spacing_mm": record["spacing_mm"],
        "fov_mm": geometry.grid.fov_mm,
        "views": [view.name for view in geometry.views],
        "doubt": doubt if Path("ct_doubt.nii.gz").is_file() else None,
    }


def convert(tell: Tell, kind: str, patient: str, network: str) -> None:
    """``ct.nrrd``, or a DICOM series in ``ct_dicom.zip``, of the volume that lies here."""
    volume = read_volume(VOLUME)
    if kind == "nrrd":
        turned: Any = Orientation("LPS", labels=None)(volume)
        write_volume("ct.nrrd", turned)
        return
    folder = write_dicom_series("ct_dicom", volume, patient, description=f"Network {network}.")
    with (
        replacing("ct_dicom.zip") as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=4) as file,
    ):
        for path in sorted(folder.iterdir()):
            file.write(path, f"ct_dicom/{path.name}")
    shutil.rmtree(folder)


def sample(tell: Tell, checkpoint: str) -> list[dict[str, str]]:
    """Radiographs of the package's sample patient, rendered for the network's geometry."""
    description = read_checkpoint(checkpoint)["description"]
    geometry = BiplanarGeometry.from_dict(description["config"]["geometry"])
    images = RenderDRR(geometry)(LoadCT()(sample_ct()))
    found = []
    for number, (view, image) in enumerate(zip(geometry.views, images, strict=True)):
        name = f"film-{number}.nii.gz"
        write_radiograph(name, torch.as_tensor(np.asarray(image)), pitch_mm=view.pixel_pitch_mm)
        found.append({"stored": name, "shown": f"sample_{view.name}.nii.gz"})
    return found


def header(tell: Tell, stored: str) -> dict[str, str]:
    """What a DICOM header says of the patient: only for who asks for it."""
    try:
        with quiet_libraries():
            dataset = pydicom.dcmread(stored, stop_before_pixels=True)
    except Exception as error:  # pydicom raises a dozen kinds
        raise InputError("this file has no DICOM header.") from error
    names = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyDescription")
    return {name: str(dataset.get(name))[:200] for name in names if dataset.get(name) not in (None, "")}


def _reading(settings: Mapping[str, Any], order: Sequence[int] | None, film: int) -> Reading:
    """What the user says of one film, once it is known which view's it is."""
    said = {}
    if order is not None and film in order:
        said = {name: settings[name][order.index(film)] for name in ("intensity", "window") if name in settings}
    return Reading(**said, colour=settings.get("colour", "refuse"))


def _preprocessing(checkpoint: str, settings: Mapping[str, Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The reading of ``inference.yaml``, so that the page shows what ``reconstruct`` will do."""
    config = [bundle_file("configs/inference.yaml")]
    given = {"checkpoint": checkpoint, **settings}
    parser = ConfigParser(merged_config(config, {key: as_data(value) for key, value in given.items()}))
    return parser.get_parsed_content("preprocessing")


def _facts(pixels: Pixels) -> dict[str, Any]:
    """What is shown of a file: nothing that tells who the patient is."""
    known = pixels.metadata
    names = ("format", "pixel_spacing_mm", "view_position", "modality", "body_part", "source_to_detector_mm")
    return {
        "size": list(pixels.values.shape[-2:]),
        "bits": pixels.bits,
        "intensity": pixels.intensity,
        **{name: list(value) if isinstance(value := known[name], tuple) else value for name in names if name in known},
    }


def _draw_as_given(pixels: Pixels, path: Path) -> None:
    """A thumbnail of what a file shows, neither turned nor inverted."""
    values = pixels.values if pixels.values.ndim == 2 else pixels.values[0]
    step = max(1, max(values.shape) // _THUMBNAIL)
    small = values[::step, ::step].astype(np.float32)
    finite = small[np.isfinite(small)]
    low, high = np.percentile(finite, (0.5, 99.5)) if finite.size else (0.0, 1.0)
    shown = grey(np.nan_to_num(small), float(low), float(max(high, low + 1e-6)))
    _save_png(255 - shown if pixels.dark_is_high else shown, path)


def _draw_beside(geometry: BiplanarGeometry) -> None:
    """Of each view, the given radiograph is there already; the volume's own, and the difference."""
    given = np.load("used.npy")
    own = render_drr(read_volume(VOLUME), geometry).cpu().numpy()
    for number, (seen, made) in enumerate(zip(given, own, strict=True)):
        top = _white(seen)
        limit = _DIFFERENCE * top
        _save_png(grey(made, 0.0, top), Path(f"own-{number}.png"))
        shown = colormaps[ERROR_COLOURS](np.clip((made - seen + limit) / (2 * limit), 0, 1), bytes=True)
        _save_png(shown[..., :3], Path(f"difference-{number}.png"))


def _white(image: np.ndarray) -> float:
    """The line integral that is shown white: above it there is hardly anything but metal."""
    return max(float(np.quantile(image, 0.998)), 1.0)


def _save_png(pixels: np.ndarray, path: Path) -> None:
    with replacing(path) as temporary:
        Image.fromarray(np.ascontiguousarray(pixels)).save(temporary, format="png")


TASKS: dict[str, Callable[..., Any]] = {
    "networks": networks,
    "read": read,
    "reconstruct": reconstruct,
    "convert": convert,
    "sample": sample,
    "header": header,
}
