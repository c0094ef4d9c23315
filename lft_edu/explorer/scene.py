"""Prepare the data that the trajectory explorer's page draws: two projected trajectories of one text, with annotations.

Arrays are sent as bytes (see :func:`packed`), all else as JSON.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..plots.base import visible
from ..plots.trajectories import axis_names
from ..projections import Projection, distortion
from ..trajectories import Lens, Trajectory, divergence, shared_depths

if TYPE_CHECKING:
    from ..splicing import SplicedForCausalLM

TOP = 5  # predictions that the logit lens shows


def describe(model: "SplicedForCausalLM", solver: dict | None) -> str:
    """Describe a spliced model's operator, such as ``layers 6–18 → flow, midpoint × 3``."""
    m, n = model.config.span
    return f"layers {m}–{n} → {model.operator.kind}" + (
        f", {solver['solver']} × {solver['num_steps']}" if solver else ""
    )


def scene(
    captured: tuple[tuple[Trajectory, Lens], tuple[Trajectory, Lens]],
    views: dict[str, tuple[Projection, float]],
    student_name: str,
    about: str,
) -> dict:
    """Collect everything that the page needs to draw one text.

    Args:
        captured: trajectory and logit lens of the teacher, and of the student.
        views: name → fitted projection and its trustworthiness.
        student_name: heading of the student.
        about: description of its operator, see :func:`describe`.
    """
    (teacher, student), lenses = zip(*captured, strict=True)
    depths = shared_depths(teacher, student)
    indices = [[path.depth_index(depth) for depth in depths.tolist()] for path in (teacher, student)]
    pair = [path.states[rows] for path, rows in zip((teacher, student), indices, strict=True)]
    points = {name: [view.transform(path) for path in (teacher, student)] for name, (view, _) in views.items()}
    words = {i: word for lens in lenses for i, word in lens.words.items()}
    headings = ("teacher", f"{teacher.times[-1]:.0f} layers"), (student_name, about)
    return {
        "text": teacher.text,
        "tokens": [visible(token) for token in teacher.tokens],
        "words": {str(i): visible(word) for i, word in sorted(words.items())},
        "models": [
            {"name": name, "about": said, **model_data(path, lens, {view: both[m] for view, both in points.items()})}
            for m, ((name, said), path, lens) in enumerate(zip(headings, (teacher, student), lenses, strict=True))
        ],
        "kl": packed(divergence(teacher, student).clamp_min(0)),
        "shared": packed(depths),
        "apart": packed((pair[0] - pair[1]).norm(dim=-1)),
        "views": {
            name: view_data(*views[name], pair, [place[rows] for place, rows in zip(both, indices, strict=True)])
            for name, both in points.items()
        },
    }


def model_data(path: Trajectory, lens: Lens, points: dict[str, np.ndarray]) -> dict:
    """Pack one trajectory and its logit lens; ``points`` are view → projected states ``(S, T, d)``."""
    return {
        "span": path.span,
        "times": packed(path.times),
        "norms": packed(path.norms()),
        "lens_shape": list(lens.ids.shape),
        "lens_ids": packed(lens.ids, "int32"),
        "lens_shares": packed(lens.probabilities),
        "lens_kl": packed(lens.kl.clamp_min(0)),
        "points": {view: packed(places) for view, places in points.items()},
    }


def view_data(projection: Projection, trust: float, pair: list[Tensor], places: list[np.ndarray]) -> dict:
    """Describe a view: its axes, and its distortion of pairs of states ``(K, T, D)`` projected to ``places``
    ``(K, T, d)``. Position 0 is excluded if there are others."""
    kept = slice(1, None) if pair[0].shape[1] > 1 else slice(None)
    states, drawn = ([x[:, kept] for x in both] for both in (pair, places))
    found = distortion(projection, *states, places=drawn)
    return {
        "axes": axis_names(projection),
        "hidden": found.hidden,
        "agreement": None if np.isnan(found.agreement) else found.agreement,
        "trust": trust,
        "kind": projection.kind,
    }


def packed(array, dtype: str = "float32") -> dict:
    """Serialize an array as ``{"shape", "dtype", "data": bytes}``, little-endian."""
    array = array.numpy() if isinstance(array, torch.Tensor) else np.asarray(array)
    array = np.ascontiguousarray(array, dtype=np.dtype(dtype).newbyteorder("<"))
    return {"shape": list(array.shape), "dtype": dtype, "data": array.tobytes()}


def unpacked(data: dict) -> np.ndarray:
    """Deserialize an array that :func:`packed` serialized."""
    return np.frombuffer(data["data"], dtype=np.dtype(data["dtype"]).newbyteorder("<")).reshape(data["shape"])
