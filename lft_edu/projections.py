"""Projections: from hidden states to a picture, by one basis that is fitted once, on the teacher, and then frozen.

Whatever else is drawn, another text, a student, a flow between two layers, is *transformed*, never fitted: two pictures
can be compared only if they are the same map. Position 0 is left out of every fit: there a transformer parks attention,
with states so large that they would be all one sees.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .support.errors import unknown_name_error
from .support.statistics import spearman
from .trajectories import Trajectory

PREPARATIONS = ("raw", "layernorm", "unit", "drop outliers")
MOST = 3000  # states a UMAP is fitted on, and that carry it from then on


class Projection:
    """Base of both projections: D dimensions to 2 or 3.

    Args:
        dimensions: 2 or 3.
        preparation: what is done to each state first: nothing (``"raw"``, the space the losses see), ``"layernorm"``
            (each state minus its mean, over its standard deviation), ``"unit"`` (each over its norm), or ``"drop
            outliers"`` (without the ``drop`` dimensions in which the fitted states are largest).
        drop: dimensions left out by ``"drop outliers"``; none otherwise.

    Attributes:
        fingerprint: tells this frozen projection from any other; empty until it is fitted, and the same ever after.
    """

    kind = ""

    def __init__(self, dimensions: int = 2, preparation: str = "raw", drop: int = 3):
        if dimensions not in (2, 3):
            raise ValueError(f"dimensions={dimensions!r}: a picture has 2 or 3.")
        if preparation not in PREPARATIONS:
            raise unknown_name_error("preparation", preparation, PREPARATIONS)
        if isinstance(drop, bool) or not isinstance(drop, int) or drop < 0:
            raise ValueError(f"drop={drop!r}: give a number of dimensions, 0 or more.")
        self.dimensions, self.preparation = dimensions, preparation
        self.drop = drop if preparation == "drop outliers" else 0
        self.outliers = np.empty(0, dtype=int)  # the dimensions dropped
        self.fingerprint = ""

    def fit(self, states, position0: bool = False) -> "Projection":
        """Choose the basis, once.

        Args:
            states: a :class:`Trajectory` of the teacher, or several; or states ``(N, D)``, which are taken as they are.
            position0: keep the first token of each trajectory in, to see what it does.

        Raises:
            ValueError: fitted already; a student's trajectory; too few states; NaN or infinity.
        """
        if self.fingerprint:
            raise ValueError("This projection is fitted and frozen: transform with it, or make a new one.")
        states = _gather(states, position0)
        if len(states) < 5:
            raise ValueError(f"{len(states)} states are too few for a picture: give a longer text.")
        if self.drop > states.shape[1] - self.dimensions:
            raise ValueError(f"drop={self.drop} leaves too few of {states.shape[1]} dimensions: drop fewer.")
        self.outliers = np.argsort(-np.square(states).mean(0), kind="stable")[: self.drop]
        self._fit(states, self.prepare(states))
        self.fingerprint = self._fingerprint()
        return self

    def prepare(self, states) -> np.ndarray:
        """States ``(..., D)`` as this projection looks at them, ``(..., D')`` float64."""
        x = _numbers(states)
        if self.preparation == "layernorm":
            x = x - x.mean(-1, keepdims=True)
            return x / np.maximum(x.std(-1, keepdims=True), 1e-12)
        if self.preparation == "unit":
            return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
        return np.delete(x, self.outliers, axis=-1) if self.drop else x

    def transform(self, states) -> np.ndarray:
        """Points ``(..., d)`` of states ``(..., D)`` or of a :class:`Trajectory`; each is placed by itself, so that
        neither order nor company changes where it falls.

        Raises:
            ValueError: not fitted yet, states of another width, NaN or infinity.
        """
        if not self.fingerprint:
            raise ValueError("This projection has no basis yet: call .fit(trajectory of the teacher) first.")
        x = _numbers(states.states if isinstance(states, Trajectory) else states)
        if x.shape[-1] != self.width:
            raise ValueError(f"This projection was fitted in {self.width} dimensions; these have {x.shape[-1]}.")
        return self._place(self.prepare(x).reshape(-1, self.width - self.drop)).reshape(*x.shape[:-1], -1)

    def _fingerprint(self) -> str:
        found = hashlib.sha256(f"{self.kind} {self.dimensions} {self.preparation} {self.outliers.tolist()}".encode())
        for part in self._frozen():
            found.update(np.ascontiguousarray(part).tobytes())
        return found.hexdigest()[:16]


class PCA(Projection):
    """The plane (or space) in which the fitted states vary most: a linear map, distances shrink but never lie.

    Attributes:
        explained: ``(d,)``, share of the variance that each axis shows.
    """

    kind = "PCA"

    def _fit(self, states, prepared) -> None:
        from sklearn.decomposition import PCA as Fitted

        self.width = states.shape[1]
        basis = Fitted(self.dimensions, svd_solver="full").fit(prepared)
        self.mean, self.components, self.explained = basis.mean_, basis.components_, basis.explained_variance_ratio_

    def _place(self, prepared) -> np.ndarray:
        # einsum, not @: a matrix product may add up in another order for another number of rows
        return np.einsum("nd,kd->nk", prepared - self.mean, self.components)

    def _frozen(self) -> tuple:
        return self.mean, self.components

    def lift(self, moves) -> np.ndarray:
        """Moves in the picture ``(..., d)`` as moves of the states ``(..., D)``; for states that are drawn as they are.

        Raises:
            ValueError: a preparation that no move in the picture can be traced back through.
        """
        if self.preparation in ("layernorm", "unit"):
            raise ValueError(f"After {self.preparation!r} a point no longer says which state it was: use 'raw'.")
        full = np.zeros((self.dimensions, self.width))
        full[:, np.setdiff1d(np.arange(self.width), self.outliers)] = self.components
        return np.asarray(moves) @ full


class UMAP(Projection):
    """Neighbours stay neighbours (McInnes, Healy, Melville 2018); distances between groups mean nothing.

    umap-learn draws the map of at most 3000 states. From then on those are landmarks: any other state is placed among
    its nearest ones, at their mean with weights that fall with distance (modified Shepard, Franke and Nielson 1980), so
    that a landmark falls on itself. umap-learn's own ``transform`` moves a point when it comes in other company.

    Args:
        neighbours, min_dist, seed: of umap-learn.

    Attributes:
        landmarks: ``(N, D)`` float32, states as they were given; ``places`` ``(N, d)``, where they are drawn.
    """

    kind = "UMAP"

    def __init__(
        self,
        dimensions: int = 2,
        preparation: str = "raw",
        drop: int = 3,
        neighbours: int = 15,
        min_dist: float = 0.1,
        seed: int = 0,
    ):
        super().__init__(dimensions, preparation, drop)
        self.settings = {"n_neighbors": neighbours, "min_dist": min_dist, "random_state": seed}
        self.places = None

    def _fit(self, states, prepared) -> None:
        self.width = states.shape[1]
        if len(states) > MOST:
            chosen = np.random.default_rng(self.settings["random_state"]).choice(len(states), MOST, replace=False)
            states, prepared = states[chosen], prepared[chosen]
        self.landmarks = states.astype(np.float32)
        if self.places is None:
            self.places = _draw_map(prepared, self.dimensions, self.settings).astype(np.float32)
        self._index(prepared)

    def _index(self, prepared) -> None:
        from sklearn.neighbors import NearestNeighbors

        wanted = min(9, len(prepared))
        self.nearest = NearestNeighbors(n_neighbors=wanted, algorithm="brute").fit(prepared)
        self.prepared = prepared

    def _place(self, prepared) -> np.ndarray:
        index = self.nearest.kneighbors(prepared, return_distance=False)
        # Distances anew: those of the search depend, in their last bits, on how many states were searched at once.
        distance = np.linalg.norm(prepared[:, None] - self.prepared[index], axis=-1)
        reach = distance.max(1, keepdims=True)  # the farthest's weight is 0: nothing jumps when another takes its place
        distance = np.maximum(distance, 1e-9 * reach + 1e-300)
        weight = np.square((reach - distance) / (reach * distance))
        flat = weight.sum(1) == 0  # all neighbours equally far
        weight[flat] = 1.0
        weight /= weight.sum(1, keepdims=True)
        return np.einsum("nk,nkd->nd", weight, self.places[index].astype(np.float64))

    def _frozen(self) -> tuple:
        return self.landmarks, self.places


def _draw_map(prepared: np.ndarray, dimensions: int, settings: dict) -> np.ndarray:
    """umap-learn's map of these states. Its first use compiles for half a minute or more."""
    import warnings

    try:
        import umap
    except ImportError:
        raise ValueError("UMAP takes umap-learn: pip install umap-learn, or choose PCA.") from None
    neighbours = min(settings["n_neighbors"], len(prepared) - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return umap.UMAP(**{**settings, "n_neighbors": neighbours}, n_components=dimensions, n_jobs=1).fit_transform(
            prepared.astype(np.float32)
        )


@dataclass(frozen=True)
class Distortion:
    """What a picture of pairs of states (teacher and student at one depth) hides.

    Attributes:
        hidden: share of the squared distances that lies outside the picture, in [0, 1]; None for a UMAP, whose
            distances have no unit.
        agreement: Spearman's rank correlation between distances in the picture and true ones, over the pairs that
            differ, in [−1, 1]; NaN where there is nothing to rank.
    """

    hidden: float | None
    agreement: float


def distortion(projection: Projection, a, b, places: Sequence[np.ndarray] | None = None) -> Distortion:
    """How well the picture shows the distance of a[i] from b[i], states ``(..., D)`` each.

    Both are measured in the space that the projection prepares (raw, normalised, …).

    Args:
        places: where a and b are drawn, if that is known already.

    Raises:
        ValueError: shapes differ.
    """
    a, b = _numbers(a), _numbers(b)
    if a.shape != b.shape:
        raise ValueError(f"{a.shape} and {b.shape} are not pairs: their shapes must agree.")
    true = np.square(projection.prepare(a) - projection.prepare(b)).sum(-1).ravel()
    drawn = [projection.transform(x) for x in (a, b)] if places is None else places
    shown = np.square(drawn[0] - drawn[1]).sum(-1).ravel()
    hidden = None
    if isinstance(projection, PCA):
        hidden = float(np.clip(1 - shown.sum() / true.sum(), 0, 1)) if true.sum() > 0 else 0.0
    apart = true > 1e-12 * true.max()  # before the span both are the same state: agreeing on that is no merit
    return Distortion(hidden, float(spearman(true[apart], shown[apart])))


def trustworthiness(projection: Projection, states, neighbours: int = 12, most: int = 1000, seed: int = 0) -> float:
    """Are neighbours in the picture neighbours in truth? In [0, 1], 1 is always (Venna and Kaski 2001; scikit-learn).

    Args:
        states: ``(N, D)`` or a :class:`Trajectory`.
        most: that many states, drawn at random, are looked at.
    """
    from sklearn.manifold import trustworthiness as measure

    x = _gather(states, False)
    if len(x) > most:
        x = x[np.random.default_rng(seed).choice(len(x), most, replace=False)]
    return float(measure(projection.prepare(x), projection.transform(x), n_neighbors=min(neighbours, len(x) // 2 - 1)))


def bundled_states() -> Tensor:
    """States ``(N, D)`` of the bundled teacher, a sample from all depths of held-out text: what its bases are fitted
    on, so that every text of the course is drawn on one map."""
    return torch.from_numpy(_atlas()["states"]).float()


def bundled(kind: str = "PCA", dimensions: int = 2, preparation: str = "raw", seed: int = 0) -> Projection:
    """A frozen projection of the bundled teacher's states. UMAPs come drawn: nobody waits for numba.

    Args:
        kind: ``"PCA"`` or ``"UMAP"``.
        seed: of a UMAP: 0, or 1 for a second drawing of the raw states in the plane.

    Raises:
        ValueError: no such kind, or no such map among those that ship.
    """
    if kind not in ("PCA", "UMAP"):
        raise unknown_name_error("projection", kind, ("PCA", "UMAP"))
    if kind == "PCA":
        return PCA(dimensions, preparation).fit(bundled_states())
    projection, maps = UMAP(dimensions, preparation, seed=seed), _atlas()
    key = atlas_key(dimensions, preparation, seed)
    if key not in maps:
        raise ValueError(f"No map with seed={seed} ships for {dimensions} dimensions, {preparation!r}: take seed=0.")
    projection.places = maps[key]
    return projection.fit(bundled_states())


def atlas_key(dimensions: int, preparation: str, seed: int = 0) -> str:
    """The name of a UMAP in the file that ships."""
    return f"{preparation.replace(' ', '-')}-{dimensions}" + (f"-seed-{seed}" if seed else "")


def _atlas() -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    from .loading.assets import ASSETS, verify

    verify(ASSETS / "atlas")
    return load_file(ASSETS / "atlas" / "atlas.safetensors")


def provenance() -> dict:
    """Where the bundled projections come from."""
    from .loading.assets import ASSETS

    return json.loads((Path(ASSETS) / "atlas" / "PROVENANCE.json").read_text())


def _numbers(states) -> np.ndarray:
    """States as float64, or a ValueError."""
    x = states.detach().cpu().double().numpy() if isinstance(states, Tensor) else np.asarray(states, dtype=np.float64)
    if not np.isfinite(x).all():
        raise ValueError("The states hold NaN or infinity: load the model in float32 or bfloat16 and capture again.")
    return x


def _gather(states, position0: bool) -> np.ndarray:
    """States ``(N, D)`` of trajectories, without position 0; a table of states as it is."""
    if isinstance(states, Trajectory):
        states = [states]
    if isinstance(states, Sequence) and states and all(isinstance(path, Trajectory) for path in states):
        if any(path.span is not None for path in states):
            raise ValueError("Fit on the teacher's trajectory, not a student's: then transform both.")
        return np.concatenate(
            [_numbers(p.states[:, int(not position0) :]).reshape(-1, p.states.shape[2]) for p in states]
        )
    x = _numbers(states)
    if x.ndim != 2:
        raise ValueError(f"States of shape {x.shape}: give trajectories, or a table (N, D).")
    return x
