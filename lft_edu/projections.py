"""Project hidden states to 2 or 3 dimensions with a basis that is fitted once, on the teacher, and then frozen.

Other texts, students and flows are only *transformed*: figures are comparable only if they share one map. Position 0 is
excluded from every fit: it is the attention sink, whose massive activations would dominate the map.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .support.errors import reload_hint, unknown_name_error
from .support.statistics import spearman
from .trajectories import Trajectory

PREPARATIONS = ("raw", "layernorm", "unit", "drop outliers")
LANDMARKS = 3000  # states that a UMAP is fitted on and interpolated from


class Projection:
    """Base class of the projections from D dimensions to 2 or 3.

    Args:
        dimensions: 2 or 3.
        preparation: applied to each state first: ``"raw"`` (nothing, the space of the losses), ``"layernorm"``
            (subtract its mean, divide by its standard deviation), ``"unit"`` (divide by its norm), or
            ``"drop outliers"`` (remove the ``drop`` dimensions with the largest mean square).
        drop: number of dimensions that ``"drop outliers"`` removes.

    Attributes:
        fingerprint: hash of the frozen projection; empty until it is fitted.
    """

    kind = ""
    width: int  # D, once it is fitted

    def __init__(self, dimensions: int = 2, preparation: str = "raw", drop: int = 3):
        if dimensions not in (2, 3):
            raise ValueError(f"dimensions={dimensions!r}: give 2 or 3.")
        if preparation not in PREPARATIONS:
            raise unknown_name_error("preparation", preparation, PREPARATIONS)
        if isinstance(drop, bool) or not isinstance(drop, int) or drop < 0:
            raise ValueError(f"drop={drop!r}: give a number of dimensions, 0 or more.")
        self.dimensions, self.preparation = dimensions, preparation
        self.drop = drop if preparation == "drop outliers" else 0
        self.outliers = np.empty(0, dtype=int)  # indices of the dimensions removed
        self.fingerprint = ""

    def fit(self, states: Trajectory | Sequence[Trajectory] | Tensor, position0: bool = False) -> "Projection":
        """Fit the basis and return self. A projection can be fitted only once.

        Args:
            states: trajectories of the teacher, or states ``(N, D)``.
            position0: include the first token of each trajectory, the attention sink.

        Raises:
            ValueError: already fitted, a student's trajectory, too few states, NaN or infinity.
        """
        if self.fingerprint:
            raise ValueError("This projection is fitted and frozen: call .transform(states), or create a new one.")
        x = _gather(states, position0)
        if len(x) < 5:
            raise ValueError(f"{len(x)} states are too few to fit a projection: give at least 5.")
        if self.drop > x.shape[1] - self.dimensions:
            raise ValueError(f"drop={self.drop} leaves too few of {x.shape[1]} dimensions: drop fewer.")
        self.outliers = np.argsort(-np.square(x).mean(0), kind="stable")[: self.drop]
        self._fit(x, self.prepare(x))
        self.fingerprint = self._fingerprint()
        return self

    def prepare(self, states) -> np.ndarray:
        """Apply the preparation to states ``(..., D)``; returns ``(..., D')`` float64."""
        x = _as_float64(states)
        if self.preparation == "layernorm":
            x = x - x.mean(-1, keepdims=True)
            return x / np.maximum(x.std(-1, keepdims=True), 1e-12)
        if self.preparation == "unit":
            return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
        return np.delete(x, self.outliers, axis=-1) if self.drop else x

    def transform(self, states) -> np.ndarray:
        """Project states ``(..., D)``, or those of a :class:`Trajectory`, to points ``(..., d)``.

        Each state is projected independently of the others.

        Raises:
            ValueError: not fitted, states of another width, NaN or infinity.
        """
        if not self.fingerprint:
            raise ValueError("This projection is not fitted: call .fit(trajectory of the teacher) first.")
        x = _as_float64(states.states if isinstance(states, Trajectory) else states)
        if x.shape[-1] != self.width:
            raise ValueError(f"The states have {x.shape[-1]} dimensions: this projection takes {self.width}.")
        return self._place(self.prepare(x).reshape(-1, self.width - self.drop)).reshape(*x.shape[:-1], -1)

    def _fit(self, states: np.ndarray, prepared: np.ndarray) -> None:
        """Fit to states ``(N, D)`` and set ``width``."""
        raise NotImplementedError

    def _place(self, prepared: np.ndarray) -> np.ndarray:
        """Project prepared states ``(N, D')`` to ``(N, d)``."""
        raise NotImplementedError

    def _frozen(self) -> tuple:
        """Return the arrays that define the fitted projection."""
        raise NotImplementedError

    def _fingerprint(self) -> str:
        found = hashlib.sha256(f"{self.kind} {self.dimensions} {self.preparation} {self.outliers.tolist()}".encode())
        for part in self._frozen():
            found.update(np.ascontiguousarray(part).tobytes())
        return found.hexdigest()[:16]


class PCA(Projection):
    """Principal component analysis: the linear projection of largest variance. Distances can only shrink.

    Attributes:
        explained: ``(d,)``, fraction of the variance explained by each axis.
    """

    kind = "PCA"

    def _fit(self, states, prepared) -> None:
        from sklearn.decomposition import PCA as Fitted

        self.width = states.shape[1]
        basis = Fitted(self.dimensions, svd_solver="covariance_eigh").fit(prepared)  # exact, and fast for many states
        self.mean, self.components, self.explained = basis.mean_, basis.components_, basis.explained_variance_ratio_

    def _place(self, prepared) -> np.ndarray:
        # einsum, not @: a matrix product may sum in a different order for a different number of rows
        return np.einsum("nd,kd->nk", prepared - self.mean, self.components)

    def _frozen(self) -> tuple:
        return self.mean, self.components

    def lift(self, moves) -> np.ndarray:
        """Map displacements of projected points ``(..., d)`` to displacements of states ``(..., D)``.

        Raises:
            ValueError: a nonlinear preparation (``"layernorm"`` or ``"unit"``), which cannot be inverted.
        """
        if self.preparation in ("layernorm", "unit"):
            raise ValueError(f"preparation={self.preparation!r} cannot be inverted: use 'raw' or 'drop outliers'.")
        full = np.zeros((self.dimensions, self.width))
        full[:, np.setdiff1d(np.arange(self.width), self.outliers)] = self.components
        return np.asarray(moves) @ full


class UMAP(Projection):
    """UMAP (McInnes, Healy, Melville 2018): preserves neighborhoods; distances between groups have no meaning.

    umap-learn embeds at most 3000 states, the landmarks. Every other state is interpolated from its nearest landmarks
    with weights that fall with distance (modified Shepard, Franke and Nielson 1980), so a landmark maps to itself.
    umap-learn's own ``transform`` is not used: it depends on the other states in the batch.

    Args:
        n_neighbors, min_dist, seed: umap-learn's ``n_neighbors``, ``min_dist`` and ``random_state``.

    Attributes:
        landmarks: ``(N, D)`` float32; ``places`` ``(N, d)``, their embedding.
    """

    kind = "UMAP"

    def __init__(
        self,
        dimensions: int = 2,
        preparation: str = "raw",
        drop: int = 3,
        n_neighbors: int = 15,
        min_dist: float = 0.1,
        seed: int = 0,
    ):
        super().__init__(dimensions, preparation, drop)
        self.settings: dict = {"n_neighbors": n_neighbors, "min_dist": min_dist, "random_state": seed}
        self.places = np.empty((0, dimensions), np.float32)  # until it is fitted

    def _fit(self, states, prepared) -> None:
        self.width = states.shape[1]
        if len(states) > LANDMARKS:
            chosen = np.random.default_rng(self.settings["random_state"]).choice(len(states), LANDMARKS, replace=False)
            states, prepared = states[chosen], prepared[chosen]
        self.landmarks = states.astype(np.float32)
        if not len(self.places):
            self.places = _draw_map(prepared, self.dimensions, self.settings).astype(np.float32)
        self._index(prepared)

    def _index(self, prepared) -> None:
        from sklearn.neighbors import NearestNeighbors

        wanted = min(9, len(prepared))
        self.nearest = NearestNeighbors(n_neighbors=wanted, algorithm="brute").fit(prepared)
        self.prepared = prepared

    def _place(self, prepared) -> np.ndarray:
        index = self.nearest.kneighbors(prepared, return_distance=False)
        # recompute distances: the last bits of those of the search depend on the batch size
        distance = np.linalg.norm(prepared[:, None] - self.prepared[index], axis=-1)
        reach = distance.max(1, keepdims=True)  # weight 0 for the farthest, so that the map is continuous
        distance = np.maximum(distance, 1e-9 * reach + 1e-300)
        weight = np.square((reach - distance) / (reach * distance))
        flat = weight.sum(1) == 0  # all neighbors equally distant
        weight[flat] = 1.0
        weight /= weight.sum(1, keepdims=True)
        return np.einsum("nk,nkd->nd", weight, self.places[index].astype(np.float64))

    def _frozen(self) -> tuple:
        return self.landmarks, self.places


def _draw_map(prepared: np.ndarray, dimensions: int, settings: dict) -> np.ndarray:
    """Embed states with umap-learn. The first call compiles for half a minute or more."""
    import warnings

    try:
        import umap
    except ImportError:
        raise ValueError("UMAP needs umap-learn: pip install umap-learn, or choose PCA.") from None
    n_neighbors = min(settings["n_neighbors"], len(prepared) - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return umap.UMAP(**(settings | {"n_neighbors": n_neighbors}), n_components=dimensions, n_jobs=1).fit_transform(
            prepared.astype(np.float32)
        )


@dataclass(frozen=True)
class Distortion:
    """How much a projection distorts the distances of pairs of states.

    Attributes:
        hidden: fraction of the squared distances outside the projection, in [0, 1]; None for a UMAP, whose distances
            have no unit.
        agreement: Spearman's rank correlation of projected and true distances over the pairs that differ, in [−1, 1];
            NaN if there is nothing to rank.
    """

    hidden: float | None
    agreement: float


def distortion(projection: Projection, a, b, places: Sequence[np.ndarray] | None = None) -> Distortion:
    """Measure how well a projection shows the distances between a[i] and b[i], in the prepared space.

    Args:
        a, b: states ``(..., D)``, such as teacher's and student's at the same depths.
        places: the projected a and b, if already computed.

    Raises:
        ValueError: shapes differ.
    """
    a, b = _as_float64(a), _as_float64(b)
    if a.shape != b.shape:
        raise ValueError(f"a has shape {a.shape}, b {b.shape}: give pairs of states, of equal shape.")
    true = np.square(projection.prepare(a) - projection.prepare(b)).sum(-1).ravel()
    drawn = [projection.transform(x) for x in (a, b)] if places is None else places
    shown = np.square(drawn[0] - drawn[1]).sum(-1).ravel()
    hidden = None
    if isinstance(projection, PCA):
        hidden = float(np.clip(1 - shown.sum() / true.sum(), 0, 1)) if true.sum() > 0 else 0.0
    apart = true > 1e-12 * true.max()  # before the span both states are equal: trivial agreement
    return Distortion(hidden, float(spearman(true[apart], shown[apart])))


def trustworthiness(
    projection: Projection, states: Tensor | Trajectory, n_neighbors: int = 12, most: int = 1000, seed: int = 0
) -> float:
    """Return the trustworthiness of a projection (Venna and Kaski 2001; scikit-learn), in [0, 1].

    It is 1 if all neighbors in the projection are neighbors in the prepared space.

    Args:
        states: ``(N, D)`` or a :class:`Trajectory`.
        n_neighbors: size of the neighborhoods.
        most: largest number of states to use, sampled with ``seed``.
    """
    from sklearn.manifold import trustworthiness as measure

    x = _gather(states, False)
    if len(x) > most:
        x = x[np.random.default_rng(seed).choice(len(x), most, replace=False)]
    return float(measure(projection.prepare(x), projection.transform(x), n_neighbors=min(n_neighbors, len(x) // 2 - 1)))


def bundled_states() -> Tensor:
    """Load states ``(N, D)`` of the bundled teacher, sampled from all depths of evaluation text.

    All bundled projections are fitted on them, so that all texts share one map.
    """
    return torch.from_numpy(_reference_maps()["states"]).float()


def bundled(kind: str = "PCA", dimensions: int = 2, preparation: str = "raw", seed: int = 0) -> Projection:
    """Load a fitted projection of the bundled teacher's states. UMAPs are precomputed.

    Args:
        kind: ``"PCA"`` or ``"UMAP"``.
        dimensions, preparation: as for :class:`Projection`.
        seed: of a UMAP: 0, or 1 for a second embedding of the raw states in 2 dimensions.

    Raises:
        ValueError: unknown kind, or a map that is not bundled.
    """
    if kind not in ("PCA", "UMAP"):
        raise unknown_name_error("projection", kind, ("PCA", "UMAP"))
    if kind == "PCA":
        return PCA(dimensions, preparation).fit(bundled_states())
    projection, maps = UMAP(dimensions, preparation, seed=seed), _reference_maps()
    key = atlas_key(dimensions, preparation, seed)
    if key not in maps:
        raise ValueError(f"seed={seed}: for {dimensions} dimensions and {preparation!r} only seed=0 is bundled.")
    projection.places = maps[key]
    return projection.fit(bundled_states())


def atlas_key(dimensions: int, preparation: str, seed: int = 0) -> str:
    """Return the name of a UMAP in the bundled file."""
    return f"{preparation.replace(' ', '-')}-{dimensions}" + (f"-seed-{seed}" if seed else "")


def _reference_maps() -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    from .loading.assets import ASSETS, verify

    verify(ASSETS / "atlas")
    return load_file(ASSETS / "atlas" / "atlas.safetensors")


def provenance() -> dict:
    """Return how the bundled projections were made: the content of PROVENANCE.json."""
    from .loading.assets import ASSETS

    return json.loads((Path(ASSETS) / "atlas" / "PROVENANCE.json").read_text(encoding="utf-8"))


def _as_float64(states) -> np.ndarray:
    """Convert states to float64; raise ValueError for NaN or infinity."""
    try:
        x = states.detach().cpu().double().numpy() if isinstance(states, Tensor) else np.asarray(states, np.float64)
    except (TypeError, ValueError, NotImplementedError):  # the last: a tensor on the meta device
        given = states[0] if isinstance(states, list | tuple) and states else states
        raise ValueError(
            f"states of type {type(given).__name__}: give what lft.capture returns, or numbers of one shape, (N, D)."
            + reload_hint(given, Trajectory)
        ) from None
    if not x.ndim:
        raise ValueError(f"states={x}: give what lft.capture returns, or numbers (N, D).")
    if not np.isfinite(x).all():
        raise ValueError("The states contain NaN or infinity: load the model in float32 or bfloat16 and capture again.")
    return x


def _gather(states, position0: bool) -> np.ndarray:
    """Stack trajectories to states ``(N, D)``, without position 0; pass a tensor ``(N, D)`` through."""
    if isinstance(states, Trajectory):
        states = [states]
    if isinstance(states, Sequence) and states and all(isinstance(path, Trajectory) for path in states):
        if any(path.span is not None for path in states):
            raise ValueError("This is a student's trajectory: fit on the teacher's, then transform both.")
        return np.concatenate(
            [_as_float64(p.states[:, int(not position0) :]).reshape(-1, p.states.shape[2]) for p in states]
        )
    x = _as_float64(states)
    if x.ndim != 2:
        raise ValueError(f"The states have shape {x.shape}: give trajectories, or states (N, D).")
    return x
