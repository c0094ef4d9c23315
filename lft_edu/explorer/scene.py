"""Prepare the data that the trajectory explorer's page draws: projected trajectories of one text, with annotations.

Arrays are sent as bytes (see :func:`packed`), all else as JSON.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..plots.base import visible
from ..plots.trajectories import axis_names
from ..projections import UMAP, Projection, distortion
from ..trajectories import Lens, Trajectory, divergence, shared_depths
from .naming import TEACHER, color_of, title_of

if TYPE_CHECKING:
    from ..splicing import SplicedForCausalLM

TOP = 5  # predictions that the logit lens shows
NEAR = 4  # neighbors of a state
LANDMARKS = 750  # of a UMAP's 3000 that are drawn


@dataclass(frozen=True)
class Seen:
    """A text in one model, with all that the page shows of it.

    Attributes:
        path, lens: the trajectory and its logit lens.
        tracked: ``(S, T, 2)``, probabilities of two tokens at each depth: the teacher's prediction, and the token that
            follows in the text (NaN at the last position).
        near, distances: ``(S, T, n)``, the positions of the nearest states at each depth in all dimensions, and how far
            they are; n is at most :data:`NEAR`.
    """

    path: Trajectory
    lens: Lens
    tracked: Tensor
    near: Tensor
    distances: Tensor


def describe(model: "SplicedForCausalLM", solver: dict | None) -> str:
    """Describe a spliced model's operator, such as ``layers 6–18 → flow, midpoint × 3``."""
    m, n = model.config.span
    return f"layers {m}–{n} → {model.operator.kind}" + (
        f", {solver['solver']} × {solver['num_steps']}" if solver else ""
    )


def see(path: Trajectory, lens: Lens, expected: Tensor) -> Seen:
    """Measure what the page shows of a trajectory.

    Args:
        expected: ``(T,)``, ids of the tokens that the teacher predicts.
    """
    targets = torch.stack([expected, path.ids.roll(-1)], -1)
    tracked = torch.stack([path.log_probabilities(s).gather(1, targets).exp() for s in range(len(path.times))])
    tracked[:, -1, 1] = float("nan")
    between = torch.stack([torch.cdist(states, states) for states in path.states])
    between.diagonal(dim1=1, dim2=2).fill_(float("inf"))
    found = between.topk(min(NEAR, len(path.ids) - 1), largest=False)
    return Seen(path, lens, tracked, found.indices, found.values)


def scene(teacher: Seen, students: Sequence[tuple[str, str, Seen]], views: dict[str, tuple[Projection, float]]) -> dict:
    """Collect everything that the page needs to draw one text.

    Args:
        teacher: the text in the teacher.
        students: name, description of the operator (see :func:`describe`) and the text, of one student or two.
        views: name → fitted projection and its trustworthiness.
    """
    points = {name: view.transform(teacher.path) for name, (view, _) in views.items()}
    about = f"{teacher.path.times[-1]:.0f} layers"
    lenses = [teacher.lens, *(seen.lens for _, _, seen in students)]
    words = {i: word for lens in lenses for i, word in lens.words.items()}
    first = {"name": "teacher", "title": "teacher", "about": about, "color": TEACHER, **model_data(teacher, points)}
    return {
        "text": teacher.path.text,
        "tokens": [visible(token) for token in teacher.path.tokens],
        "words": {str(i): visible(word) for i, word in sorted(words.items())},
        "targets": [visible(teacher.lens.words[i]) for i in teacher.lens.ids[-1, :, 0].tolist()],
        "models": [first, *(student_data(teacher, *one, views, points, i) for i, one in enumerate(students))],
        "views": {name: view_data(*view) for name, view in views.items()},
    }


def view_data(projection: Projection, trust: float) -> dict:
    """Pack what the page shows of a projection, with some of a UMAP's landmarks: states are placed only near them."""
    data = {"axes": axis_names(projection), "trust": trust, "kind": projection.kind}
    if isinstance(projection, UMAP):
        places = projection.places
        data["landmarks"] = packed(places[:: max(1, len(places) // LANDMARKS)])
    return data


def model_data(seen: Seen, points: dict[str, np.ndarray]) -> dict:
    """Pack what was seen in one model; ``points`` are view → projected states ``(S, T, d)``."""
    path, lens = seen.path, seen.lens
    return {
        "span": path.span,
        "times": packed(path.times),
        "norms": packed(path.norms()),
        "lens_shape": list(lens.ids.shape),
        "lens_ids": packed(lens.ids, "int32"),
        "lens_shares": packed(lens.probabilities),
        "lens_kl": packed(lens.kl.clamp_min(0)),
        "tracked": packed(seen.tracked),
        "near": packed(seen.near, "int32"),
        "distances": packed(seen.distances),
        "points": {view: packed(places) for view, places in points.items()},
    }


def student_data(
    teacher: Seen, name: str, about: str, seen: Seen, views: dict, teacher_points: dict[str, np.ndarray], place: int
) -> dict:
    """Pack what was seen in a student, and how it differs from the teacher."""
    both = teacher.path, seen.path
    depths = shared_depths(*both)
    rows = [[path.depth_index(depth) for depth in depths.tolist()] for path in both]
    pair = [path.states[own] for path, own in zip(both, rows, strict=True)]
    points = {view: projection.transform(seen.path) for view, (projection, _) in views.items()}
    return {
        "name": name,
        "title": title_of(name),
        "about": about,
        "color": color_of(name, place),
        **model_data(seen, points),
        "kl": packed(divergence(*both).clamp_min(0)),
        "shared": packed(depths),
        "apart": packed((pair[0] - pair[1]).norm(dim=-1)),
        "distortion": {
            view: distorted(projection, pair, [teacher_points[view][rows[0]], points[view][rows[1]]])
            for view, (projection, _) in views.items()
        },
    }


def distorted(projection: Projection, pair: list[Tensor], places: list[np.ndarray]) -> dict:
    """Describe the distortion of pairs of states ``(K, T, D)`` projected to ``places`` ``(K, T, d)``. Position 0 is
    excluded if there are others."""
    kept = slice(1, None) if pair[0].shape[1] > 1 else slice(None)
    states, drawn = ([x[:, kept] for x in both] for both in (pair, places))
    found = distortion(projection, *states, places=drawn)
    return {"hidden": found.hidden, "agreement": None if np.isnan(found.agreement) else found.agreement}


def packed(array, dtype: str = "float32") -> dict:
    """Serialize an array as ``{"shape", "dtype", "data": bytes}``, little-endian."""
    array = array.numpy() if isinstance(array, torch.Tensor) else np.asarray(array)
    array = np.ascontiguousarray(array, dtype=np.dtype(dtype).newbyteorder("<"))
    return {"shape": list(array.shape), "dtype": dtype, "data": array.tobytes()}


def unpacked(data: dict) -> np.ndarray:
    """Deserialize an array that :func:`packed` serialized."""
    return np.frombuffer(data["data"], dtype=np.dtype(data["dtype"]).newbyteorder("<")).reshape(data["shape"])
