"""Draw the moving picture of README: two crossing beams, carried by flow matching and by Flow Walking.

    python -m lft_edu.recipes.pictures    # → assets/figures/beams.gif; two minutes on a CPU

The networks, losses and points are those of lessons 02 and 03.
"""

import argparse
import io
from functools import partial
from pathlib import Path

import torch

from .. import plane, shapes
from ..couplings import Coupling
from ..loading.assets import ASSETS
from ..objectives import flow_matching_loss, flow_walking_loss
from ..plots import SERIES
from ..support.files import atomic_write

LOSSES = {"Flow matching": flow_matching_loss, "Flow Walking": partial(flow_walking_loss, k=3)}


def paths(pairs: Coupling, steps: int = 1500, frames: int = 32) -> dict[str, torch.Tensor]:
    """Train a small network by each loss on two crossing beams, as lessons 02 and 03 do, and carry other points.

    Args:
        pairs: points to carry, such as ``shapes.beams(60)``.
        steps: of the optimizer.
        frames: midpoint steps of the walk.

    Returns:
        Name of the loss → positions of every point, ``(frames + 1, N, 2)``.
    """
    beams = shapes.beams(2000, torch.Generator().manual_seed(0))
    trained = {name: plane.train(beams, loss, steps, progress=False).velocity for name, loss in LOSSES.items()}
    return {name: plane.carry(one, pairs.x0, frames, return_path=True) for name, one in trained.items()}


def animate(found: dict[str, torch.Tensor], pairs: Coupling, width: int = 660, height: int = 300) -> bytes:
    """Draw paths side by side as an endless GIF that rests on its last picture.

    Args:
        found: title → positions, ``(K + 1, N, 2)``.
        pairs: where the points come from and belong; ``group`` gives their color.
        width: of the picture in pixels. height: the same.
    """
    import matplotlib.figure
    import PIL.Image

    colors = [SERIES[0], SERIES[1]]
    corners = torch.cat([pairs.x0, pairs.x1, *(path.flatten(0, 1) for path in found.values())])
    (left, bottom), (right, top) = corners.amin(0).tolist(), corners.amax(0).tolist()
    pictures = []
    for frame in range(len(next(iter(found.values())))):
        page = matplotlib.figure.Figure(figsize=(width / 100, height / 100), dpi=100, layout="constrained")
        for axes, (title, path) in zip(page.subplots(1, len(found)), found.items(), strict=True):
            kept = plane.pairs_kept(path[-1], pairs).item()
            axes.set_title(f"{title}: {kept:.0%} end with their own group", fontsize=9)
            for group, color in enumerate(colors):
                mine = pairs.group == group
                axes.plot(*path[: frame + 1, mine].unbind(-1), color=color, linewidth=0.6, alpha=0.35)
                axes.scatter(*pairs.x1[mine].T, s=14, facecolors="none", edgecolors=color, linewidths=0.8)
                axes.scatter(*path[frame, mine].T, s=14, color=color)
            axes.set(xlim=(left - 0.2, right + 0.2), ylim=(bottom - 0.2, top + 0.2), xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        buffer = io.BytesIO()
        page.savefig(buffer, format="png", facecolor="white")
        pictures.append(PIL.Image.open(buffer).convert("RGB"))
    palette = pictures[-1].quantize(32)
    pictures = [picture.quantize(palette=palette, dither=PIL.Image.Dither.NONE) for picture in pictures]
    buffer = io.BytesIO()
    durations = [600, *[70] * (len(pictures) - 2), 2500]  # milliseconds
    pictures[0].save(
        buffer, "GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0, optimize=True
    )
    return buffer.getvalue()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1500, help="of the optimizer, per network")
    parser.add_argument("--out", type=Path, default=ASSETS / "figures" / "beams.gif")
    a = parser.parse_args(arguments)
    pairs = shapes.beams(60, torch.Generator().manual_seed(1))
    picture = animate(paths(pairs, a.steps), pairs)
    a.out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(a.out) as partial_file:
        partial_file.write_bytes(picture)
    print(f"{a.out}: {len(picture) / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
