"""What the trajectory explorer draws, as plain data: two trajectories of one text, projected, with all that is said of
them. The page draws it; nothing here knows how. Arrays travel as bytes (:func:`packed`), words as words.
"""

import numpy as np
import torch
from torch import Tensor

from ..plots.base import visible
from ..projections import PCA, Projection, distortion
from ..trajectories import Trajectory, divergence, shared_depths

TOP = 5  # tokens that the logit lens shows


def describe(model, walk: dict | None) -> str:
    """What stands in a spliced model's span: ``layers 6–18 → flow, midpoint × 3``."""
    m, n = model.config.span
    return f"layers {m}–{n} → {model.operator.kind}" + (f", {walk['solver']} × {walk['steps']}" if walk else "")


def scene(
    teacher: Trajectory, student: Trajectory, views: dict[str, tuple[Projection, float]], student_name: str, about: str
) -> dict:
    """Everything the page needs to draw one text in these views.

    Args:
        views: name → frozen projection and its trustworthiness; the picture's axes are the projection's.
        student_name: heading of the student; ``about`` says what stands in its span.
    """
    depths = shared_depths(teacher, student)
    pair = teacher.at(depths), student.at(depths)
    kl = divergence(teacher, student)
    maps = {name: projection for name, (projection, _) in views.items()}
    models = [model_data(path, maps) for path in (teacher, student)]
    words = sorted({word for _, found in models for word in found})
    place = {word: i for i, word in enumerate(words)}
    for data, found in models:
        data["lens_words"] = packed(np.array([place[word] for word in found]).reshape(data["lens_shape"]), "int32")
    return {
        "text": teacher.text,
        "tokens": [visible(token) for token in teacher.tokens],
        "words": words,
        "models": [
            {"name": "teacher", "about": f"{teacher.times[-1]:.0f} layers", **models[0][0]},
            {"name": student_name, "about": about, **models[1][0]},
        ],
        "kl": packed(kl.clamp_min(0)),
        "shared": packed(depths),
        "apart": packed((pair[0] - pair[1]).norm(dim=-1)),
        "views": {name: view_data(*view, *pair) for name, view in views.items()},
    }


def model_data(path: Trajectory, views: dict[str, Projection]) -> tuple[dict, list[str]]:
    """One trajectory as arrays, and the words its logit lens shows, station by station."""
    lens = path.logit_lens(TOP)
    words = [visible(lens.words[i]) for i in lens.ids.flatten().tolist()]
    data = {
        "span": path.span,
        "times": packed(path.times),
        "norms": packed(path.norms()),
        "lens_shape": list(lens.ids.shape),
        "lens_shares": packed(lens.probabilities),
        "lens_kl": packed(lens.kl.clamp_min(0)),
        "points": {name: packed(projection.transform(path)) for name, projection in views.items()},
    }
    return data, words


def view_data(projection: Projection, trust: float, a: Tensor, b: Tensor) -> dict:
    """What a view hides of the pairs a[i]–b[i], ``(K, T, D)``, position 0 left out if there are others."""
    kept = slice(1, None) if a.shape[1] > 1 else slice(None)
    found = distortion(projection, a[:, kept], b[:, kept])
    if isinstance(projection, PCA):
        axes = [f"PC {i + 1} ({share:.0%} of the variance)" for i, share in enumerate(projection.explained)]
        unit = {"raw": "", "drop outliers": ""}.get(projection.preparation, f", {projection.preparation}")
        axes = [axis + unit for axis in axes]
    else:
        axes = [f"UMAP {i + 1} (no unit)" for i in range(projection.dimensions)]
    return {
        "axes": axes,
        "hidden": found.hidden,
        "agreement": None if np.isnan(found.agreement) else found.agreement,
        "trust": trust,
        "fingerprint": projection.fingerprint,
        "kind": projection.kind,
    }


def packed(array, dtype: str = "float32") -> dict:
    """An array as ``{"shape", "dtype", "data": bytes}``, little-endian."""
    array = array.numpy() if isinstance(array, torch.Tensor) else np.asarray(array)
    array = np.ascontiguousarray(array, dtype=np.dtype(dtype).newbyteorder("<"))
    return {"shape": list(array.shape), "dtype": dtype, "data": array.tobytes()}


def unpacked(data: dict) -> np.ndarray:
    """The array that :func:`packed` packed."""
    return np.frombuffer(data["data"], dtype=np.dtype(data["dtype"]).newbyteorder("<")).reshape(data["shape"])
