"""Fit the reference maps that ship: UMAPs of the bundled teacher's states, so that you need not wait for one.

    python -m lft_edu.recipes.atlas             # a few minutes on a CPU; needs umap-learn
    python -m lft_edu.recipes.atlas --picture   # only the picture in docs/explorer.md; needs Chromium and playwright

The states are those of random tokens at every depth; the first token of a text is left out. The maps are fitted on the
states as they are stored, in half precision, so that a map can be checked against the states that ship with it.
"""

import argparse
import importlib.metadata
from pathlib import Path

import torch
from safetensors.numpy import save_file

import lft_edu as lft

from .. import projections
from ..latents import depth_states
from ..loading import corpora
from ..loading.assets import ASSETS, sha256
from ..support.files import atomic_write, write_json
from ..support.progress import progress_bar
from .common import weights_of


def draw(states: torch.Tensor, preparations=projections.PREPARATIONS) -> tuple[dict, dict]:
    """Fit every map.

    Args:
        states: ``(N, D)``, float16.
        preparations: what is done to states before a map is fitted.

    Returns:
        Name → array, and name → trustworthiness in [0, 1].
    """
    arrays, trust = {"states": states.numpy()}, {}
    sizes = [(dimensions, preparation, 0) for preparation in preparations for dimensions in (2, 3)]
    sizes.append((2, "raw", 1))  # the same states with another seed, for lesson 04: what is stable?
    for dimensions, preparation, seed in progress_bar(sizes, desc="maps", unit="map"):
        projection = projections.UMAP(dimensions, preparation, seed=seed).fit(states.float())
        key = projections.atlas_key(dimensions, preparation, seed)
        arrays[key] = projection.places
        trust[key] = round(projections.trustworthiness(projection, states.float()), 4)
    return arrays, trust


def picture(teacher, tokenizer, out: Path) -> None:
    """Draw the explorer at depth 13 with three tokens selected, as a PNG with a small palette."""
    import PIL.Image

    students = {name: lft.load_student(f"bundled/{name}-6-18", teacher) for name in ("flow-walking", "ridge")}
    explorer = lft.TrajectoryExplorer(teacher, students, tokenizer)
    explorer.selected, explorer.depth = [3, 8, 10], 13.0
    explorer.export_png(out, width=1150, height=870)
    shown = PIL.Image.open(out).convert("RGB")
    shown = shown.resize((shown.width * 3 // 4, shown.height * 3 // 4)).quantize(96)
    with atomic_write(out) as partial:
        shown.save(partial, format="png", optimize=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=120, help="number of tokens, each taken at every depth")
    parser.add_argument("--out", type=Path, default=ASSETS / "atlas")
    parser.add_argument("--picture", action="store_true", help="only draw README's picture of the explorer")
    a = parser.parse_args(arguments)
    teacher, tokenizer = lft.load_teacher("bundled")
    if a.picture:
        picture(teacher, tokenizer, ASSETS / "figures" / "explorer.png")
        return
    sequences = corpora.token_sequences("python-stdlib", tokenizer, "test", 128, max_tokens=4 * a.tokens * 128)
    states = depth_states(teacher, sequences, a.tokens, torch.Generator().manual_seed(0)).flatten(0, 1).half().cpu()
    arrays, trust = draw(states)
    a.out.mkdir(parents=True, exist_ok=True)
    path = a.out / "atlas.safetensors"
    with atomic_write(path) as partial:
        save_file(arrays, partial)
    provenance = {
        "recipe": "python -m lft_edu.recipes.atlas",
        "corpus": "python-stdlib, test split by path hash",
        "teacher_sha256": weights_of("bundled"),
        "states": f"{a.tokens} tokens at {len(states) // a.tokens} depths",
        "settings": projections.UMAP().settings,
        "versions": {name: importlib.metadata.version(name) for name in ("umap-learn", "numba", "scikit-learn")},
        "trustworthiness": trust,
        "sha256": {path.name: sha256(path)},
    }
    write_json(a.out / "PROVENANCE.json", provenance)


if __name__ == "__main__":
    main()
