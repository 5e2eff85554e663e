"""What the radiographs of a training set look like, and what follows for others.

Two uses: a picture processed for display is mapped to line integrals by matching its histogram with theirs, and
radiographs that do not look like them at all are pointed out. Both need only a few hundred numbers for each view,
which a checkpoint carries.

"Scaled line integrals" are line integrals / :data:`~drr2ct.transforms.attenuation.LINE_INTEGRAL_SCALE`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.data import Dataset

from drr2ct.transforms.validation import InputError

STATISTICS_FORMAT = 1

QUANTILES = 65
"""Number of quantiles that describe a distribution, from the minimum to the maximum."""

FIELDS = (0.5, 0.65, 0.8, 1.0)
"""Parts of the detector's height and width for which the training set's quantiles are kept: an acquired radiograph
mostly covers less than the detector of DRRs, and then holds less of the body's outline."""

BODY_LEVEL = 0.05
"""What attenuates more than this fraction of an image's range (up to its 99.5th percentile) is the body."""

WARNING_DISTANCE = 5.5
"""Standard deviations from the training set's mean at which :func:`distribution_warning` speaks."""

_THUMBNAIL = 32
_SURROUNDINGS = 13  # pixels of a thumbnail, about the width of a lung
_SAMPLES = 2**20  # pixels that a quantile is taken of

FEATURES = {
    "likeness": "the correlation with the mean training image",
    "detail": "the correlation of its detail with the mean training image's",
    "symmetry": "the left-right symmetry",
    "body": "the part of the image that the body fills",
    "mean": "the mean line integral within the body",
    "deviation": "the spread of line integrals within the body",
    "range": "the distance between the 5th and the 95th percentile within the body",
    "roughness": "the amount of fine detail",
}
"""What an image is summarised by; see :func:`image_features`."""

_MORE_IS_BETTER = ("likeness", "detail", "symmetry")

_SMALLEST_DEVIATION = {
    "likeness": 0.04,
    "detail": 0.06,
    "symmetry": 0.05,
    "body": 0.05,
    "mean": 0.05,
    "deviation": 0.03,
    "range": 0.08,
    "roughness": 0.02,
}
"""Added in quadrature to the training set's own deviations: few or very similar patients would make them too small."""


def radiograph_quantiles(images: Iterable[Float[Tensor, "rows columns"]], field: float = 1.0) -> list[float]:
    """:data:`QUANTILES` quantiles of the body's line integrals in one view: the mean over images of each image's own.

    Averaging quantiles, not pooling pixels, gives the distribution of an average patient (it is their barycentre in
    the Wasserstein distance), whose ends are not those of the thinnest and the thickest.

    Args:
        images: scaled line integrals; any number, held one at a time.
        field: only the middle of the images is used, this fraction of their height and width.
    """
    total, count = np.zeros(QUANTILES), 0
    for image in images:
        total += _body_quantiles(_thinned(_middle(image, field)))
        count += 1
    return (total / max(count, 1)).tolist()


def quantiles_for_field(stored: Mapping[str, Any], part: float) -> list[float]:
    """A view's quantiles for an image that covers only the middle of the detector, interpolated between :data:`FIELDS`.

    Args:
        stored: one of the views of :func:`radiograph_statistics`.
        part: of the detector's area that the image covers.
    """
    table = np.asarray(stored["quantiles"])
    field = float(np.clip(part**0.5, FIELDS[0], FIELDS[-1]))
    return [float(np.interp(field, FIELDS, column)) for column in table.T]


def match_quantiles(
    image: Float[Tensor, "rows columns"],
    quantiles: Sequence[float],
    mask: Bool[Tensor, "rows columns"] | None = None,
    body: Bool[Tensor, "rows columns"] | None = None,
) -> Float[Tensor, "rows columns"]:
    """Map a picture monotonically so that its body's distribution becomes the given one, and its minimum 0.

    Where a clipped picture holds one value for many quantiles, that value becomes their mean.

    Args:
        image: dense is high; the unit does not matter.
        quantiles: of the target; see :func:`radiograph_quantiles`.
        mask: what the picture covers; elsewhere the result is 0.
        body: the patient, with what is clipped; by default what exceeds :data:`BODY_LEVEL`.

    Returns:
        Scaled line integrals.
    """
    values = _thinned(image) if mask is None else image[mask].double().cpu().numpy()
    if not values.size:
        return torch.zeros_like(image)
    if body is None or not body.any():
        inside = _body_quantiles(values)
    else:
        inside = np.quantile(image[body].double().cpu().numpy(), np.linspace(0, 1, QUANTILES))
    own = np.concatenate([[values.min()], inside])
    target = np.concatenate([[0.0], np.maximum.accumulate(np.asarray(quantiles, dtype=np.float64))])
    # where a clipped picture holds one value for many quantiles, it stands for their mean
    knots, place = np.unique(own, return_inverse=True)
    heights = np.bincount(place, weights=target) / np.bincount(place)
    heights[0] = 0.0
    matched = torch.from_numpy(np.interp(image.double().numpy(), knots, heights)).float()
    if body is not None and (clipped := own[1:] <= knots[0]).any():
        # beside the body the lowest value is air; within it, it stands for what was cut off
        matched[body & (image <= knots[0])] = float(target[1:][clipped].mean())
    return matched if mask is None else matched * mask


def median_difference(
    quantiles: Sequence[float], image: Float[Tensor, "rows columns"], mask: Bool[Tensor, "rows columns"]
) -> float:
    """By how much the median of ``quantiles`` exceeds that of an image's body: what an unknown exposure takes away."""
    values = image[mask].double().cpu().numpy()
    return float(quantiles[QUANTILES // 2] - _body_quantiles(values)[QUANTILES // 2]) if values.size else 0.0


def _middle(image: Float[Tensor, "rows columns"], field: float) -> Float[Tensor, "r c"]:
    rows, columns = (round(n * (1 - field) / 2) for n in image.shape)
    return image[rows : image.shape[0] - rows, columns : image.shape[1] - columns]


def _thinned(image: Float[Tensor, "rows columns"]) -> np.ndarray:
    """Every n-th row and column of a large image: as good for a distribution."""
    step = max(1, int(np.ceil((image.numel() / _SAMPLES) ** 0.5)))
    return image[::step, ::step].double().cpu().numpy()


def _body(values: np.ndarray) -> np.ndarray:
    low, high = values.min(), np.percentile(values, 99.5)
    return values > low + BODY_LEVEL * (max(high, np.nextafter(low, np.inf)) - low)


def _body_quantiles(values: np.ndarray) -> np.ndarray:
    inside = values[_body(values)]
    return np.quantile(inside if inside.size else values, np.linspace(0, 1, QUANTILES))


def thumbnail(image: Float[Tensor, "rows columns"]) -> Float[np.ndarray, "n n"]:
    """The image on 32 × 32 pixels, by area."""
    return F.interpolate(image[None, None].float(), size=(_THUMBNAIL, _THUMBNAIL), mode="area")[0, 0].cpu().numpy()


def correlation(a: Float[np.ndarray, "*shape"], b: Float[np.ndarray, "*shape"]) -> float:
    """Pearson's; 0 if one of them is constant."""
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum() / norm) if norm > 1e-12 else 0.0


def _detail(small: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    """What differs from the surroundings."""
    wide = F.avg_pool2d(
        torch.from_numpy(small)[None, None], _SURROUNDINGS, 1, _SURROUNDINGS // 2, count_include_pad=False
    )
    return small - wide[0, 0].numpy()


def image_features(image: Float[Tensor, "rows columns"], template: Float[np.ndarray, "n n"]) -> dict[str, float]:
    """The :data:`FEATURES` of one image of scaled line integrals.

    Args:
        image: one view.
        template: the mean :func:`thumbnail` of the images it is compared with.
    """
    small = F.interpolate(image[None, None].float(), size=(64, 64), mode="area")[0, 0].cpu().numpy().astype(np.float64)
    body = _body(small)
    inside = small[body] if body.any() else small.ravel()
    low, high = np.quantile(inside, (0.05, 0.95))
    inner = small[1:-1, 1:-1]
    rough = inner - (small[:-2, 1:-1] + small[2:, 1:-1] + small[1:-1, :-2] + small[1:-1, 2:]) / 4
    return {
        "likeness": correlation(thumbnail(image), template),
        "detail": correlation(_detail(thumbnail(image)), _detail(template)),
        "symmetry": correlation(small, small[:, ::-1]),
        "body": float(body.mean()),
        "mean": float(inside.mean()),
        "deviation": float(inside.std()),
        "range": float(high - low),
        "roughness": float(np.abs(rough).mean() / max(float(small.std()), 1e-9)),
    }


def radiograph_statistics(samples: Sequence[Mapping[str, Any]] | Dataset, limit: int = 200) -> dict[str, Any]:
    """Describe a data set's radiographs: quantiles by :data:`FIELDS`, a mean thumbnail, features' means and deviations.

    Each image's features are taken against the mean thumbnail of the others, so that few patients do not look more
    alike than they are.

    Args:
        samples: a data set; ``image`` (V, H, W) of each is read, one sample at a time.
        limit: of a larger set, so many samples at even distances are used.

    Returns:
        Plain types, in the order of the views: what :func:`distribution_warning` and ``LoadRadiographsd`` take.

    Raises:
        InputError: if no sample can be read; single ones are left out.
    """
    count = len(samples)  # type: ignore[arg-type]  # torch does not declare it
    chosen = np.unique(np.linspace(0, count - 1, min(limit, count)).round().astype(int))
    small: list[Tensor] = []
    quantiles: Any = 0.0
    for index in chosen:
        try:
            images = torch.as_tensor(samples[int(index)]["image"]).float()
        except (InputError, RuntimeError, OSError):  # a patient that cannot be read is the training's to report
            continue
        quantiles = quantiles + np.array([[radiograph_quantiles([x], field) for field in FIELDS] for x in images])
        small.append(F.interpolate(images[:, None], size=(64, 64), mode="area")[:, 0])
    if not small:
        raise InputError("none of the training set's radiographs can be read, so they cannot be described.")
    views = []
    for view in range(small[0].shape[0]):
        thumbnails = np.stack([thumbnail(images[view]) for images in small])
        total = thumbnails.sum(axis=0)
        others = len(small) - 1
        features = [
            image_features(images[view], (total - own) / others if others else own)
            for images, own in zip(small, thumbnails, strict=True)
        ]
        values = {name: np.array([feature[name] for feature in features]) for name in FEATURES}
        views.append(
            {
                "quantiles": (quantiles[view] / len(small)).tolist(),
                "thumbnail": (total / len(small)).tolist(),
                "features": {
                    name: {"mean": float(v.mean()), "deviation": float(v.std(ddof=1)) if others else 0.0}
                    for name, v in values.items()
                },
            }
        )
    return {"format": STATISTICS_FORMAT, "samples": len(small), "views": views}


def distribution_warning(
    image: Float[Tensor, "views rows columns"], statistics: Mapping[str, Any] | None
) -> str | None:
    r"""Whether radiographs look like those of the training set.

    A feature :math:`f` is at the distance :math:`|f - m| / \sqrt{s^2 (1 + 1/n) + s_0^2}` from ``n`` training images
    of mean :math:`m` and deviation :math:`s`, with the least deviation :math:`s_0` for that feature; a correlation
    above the mean counts as no distance. From :data:`WARNING_DISTANCE` on there is a warning.

    Args:
        image: scaled line integrals, in the order of the training's views.
        statistics: of :func:`radiograph_statistics`; None is compared with nothing.

    Returns:
        One sentence, or None if nothing is conspicuous.
    """
    if statistics is None:
        return None
    worst = (0.0, "", 0, 0.0, 0.0)
    for index, (view, stored) in enumerate(zip(image, statistics["views"], strict=True)):
        found = image_features(view, np.asarray(stored["thumbnail"], dtype=np.float32))
        for name, value in found.items():
            mean, deviation = stored["features"][name]["mean"], stored["features"][name]["deviation"]
            width = (deviation**2 * (1 + 1 / statistics["samples"]) + _SMALLEST_DEVIATION[name] ** 2) ** 0.5
            apart = mean - value if name in _MORE_IS_BETTER else abs(value - mean)
            worst = max(worst, (apart / width, name, index, value, mean))
    distance, name, index, value, mean = worst
    if distance < WARNING_DISTANCE:
        return None
    return (
        f"Radiograph {index + 1} does not look like the training set's: {FEATURES[name]} is {value:.2f}, in training "
        f"{mean:.2f} on average ({distance:.0f} standard deviations away, {WARNING_DISTANCE:g} are allowed); do not "
        "trust the volume."
    )
