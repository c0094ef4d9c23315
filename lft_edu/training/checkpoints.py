"""Where a run is kept, so that it can go on after anything: one safetensors file a checkpoint, replaced in one motion.

A checkpoint holds weights, optimiser state, and as JSON beside them the step, the history, the settings, and where each
lane of a stream of text stood. No pickle is written or read.
"""

import hashlib
import json
import warnings
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from ..support.files import atomic_write


class Checkpoints:
    """A place for checkpoints: a file that is replaced, or a folder that keeps the newest ``keep``.

    Args:
        place: a path ending in ``.safetensors``, or a folder; None keeps nothing.
        keep: files to keep in a folder, at least 1.
    """

    def __init__(self, place: str | Path | None, keep: int = 2):
        if keep < 1:
            raise ValueError(f"keep={keep}: keep at least 1 checkpoint.")
        self.place, self.keep = Path(place) if place else None, keep
        self.single = self.place is not None and self.place.suffix == ".safetensors"

    def files(self) -> list[Path]:
        """The checkpoints that are there, newest first."""
        if self.place is None:
            return []
        if self.single:
            return [self.place] if self.place.exists() else []
        return sorted(self.place.glob(f"step-{'[0-9]' * 9}.safetensors"), reverse=True)

    def newest_step(self) -> int:
        """Steps done in the newest checkpoint of a folder, by its name; 0 if there is none."""
        return int(self.files()[0].stem.removeprefix("step-")) if self.files() else 0

    def save(self, module: nn.Module, optimizers: list, notes: dict) -> None:
        """Write one checkpoint, whole or not at all; then let go of the oldest, and of damaged ones that claim more
        steps than have been done."""
        path = self.place if self.single else self.place / f"step-{notes['step']:09d}.safetensors"
        save_checkpoint(path, module, optimizers, notes)
        if not self.single:
            files = self.files()  # newest first: damaged ones that claim more come before this one
            here = files.index(path)
            for old in files[:here] + files[here + self.keep :]:
                old.unlink()

    def read(self, settings: dict) -> tuple[dict, dict]:
        """Notes and tensors of the newest checkpoint that can be read, for :func:`restore`.

        Raises:
            ValueError: none can be read, or the settings differ.
        """
        files = self.files()
        for path, older in zip(files, [*files[1:], None], strict=True):
            try:
                notes, tensors = read_checkpoint(path)
            except ValueError as error:
                if older is None:
                    raise
                warnings.warn(f"{error} Going on from {older.name} instead.", stacklevel=2)
                continue
            check_settings(path, notes["settings"], settings)
            return notes, tensors
        raise FileNotFoundError(f"No checkpoint in {self.place}.")


def save_checkpoint(path: Path, module: nn.Module, optimizers: list, notes: dict) -> None:
    """Write weights, optimiser state and notes (JSON) as one safetensors file, all or nothing."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {f"module.{name}": tensor for name, tensor in module.state_dict().items()}
    for i, optimizer in enumerate(optimizers):
        for j, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{j}.{key}": torch.as_tensor(value) for key, value in state.items()}
    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    notes = notes | {"history": asdict(notes["history"]), "sha256": digest(tensors)}
    metadata = {"lft_edu": json.dumps(notes)}
    try:
        with atomic_write(path) as partial:
            save_file(tensors, partial, metadata=metadata)
    except (OSError, SafetensorError) as error:
        size = sum(tensor.nbytes for tensor in tensors.values())
        raise OSError(
            f"The checkpoint ({size / 1e6:.0f} MB) could not be written to {path.parent} ({error}); the last one is as "
            "it was. Make room and resume."
        ) from error


def digest(tensors: dict) -> str:
    """SHA-256 of tensors and their names, in hexadecimal: a disk that forgets a bit is found out."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(name.encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def read_checkpoint(path: Path) -> tuple[dict, dict]:
    """Notes and tensors of a checkpoint.

    Raises:
        ValueError: the file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            notes = json.loads(file.metadata()["lft_edu"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        notes["step"], notes["history"], notes["settings"]
        if notes["sha256"] != digest(tensors):
            raise ValueError("its numbers are not those that were written")
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise ValueError(f"{path} is not a readable checkpoint ({error}). Delete it to start again.") from error
    return notes, tensors


def check_settings(path: Path, then: dict, now: dict) -> None:
    """ValueError that names every setting which is not what it was."""
    if changed := differences(then, now):
        hint = " Latents are told apart by teacher, span and text." if "latents" in changed else ""
        if "sequences_a_step" in changed:
            hint += " A step takes batch × accumulate × processes sequences: with more processes, a smaller batch."
        lines = "; ".join(changed.values())
        raise ValueError(f"{path} comes from a run with other settings ({lines}).{hint} Use them, or another place.")


def differences(then: dict, now: dict) -> dict[str, str]:
    """Of each setting that is not what it was, by name: what it was and is, in words."""
    return {k: f"{k}: {then.get(k)!r} then, {v!r} now" for k, v in now.items() if then.get(k) != v}


def restore(tensors: dict, module: nn.Module, optimizers: list) -> None:
    """Put tensors of :func:`read_checkpoint` back where they came from."""
    module.load_state_dict({k.removeprefix("module."): v for k, v in tensors.items() if k.startswith("module.")})
    for i, optimizer in enumerate(optimizers):
        state: dict[int, dict] = {}
        for name, tensor in tensors.items():
            if name.startswith(f"optimizer.{i}."):
                _, _, j, key = name.split(".", 3)
                state.setdefault(int(j), {})[key] = tensor
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
