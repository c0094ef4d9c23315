"""Save and resume a run: one safetensors file per checkpoint, written atomically.

A checkpoint holds weights, optimizer state and, as JSON metadata, the step, the history, the settings and the position
in a text stream. No pickle is written or read.
"""

import hashlib
import json
import warnings
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from ..support.files import atomic_write, file_to_write, make_folder


class Checkpoints:
    """Save checkpoints to one file, or to a folder that keeps the newest ones.

    Args:
        place: a path ending in ``.safetensors``, which is replaced, or a folder; None saves nothing.
        keep: number of checkpoints to keep in a folder, at least 1.
    """

    def __init__(self, place: str | Path | None, keep: int = 2):
        if keep < 1:
            raise ValueError(f"keep={keep}: keep at least 1 checkpoint, or give no checkpoint path to save none.")
        if place is not None and not str(place):
            raise ValueError("checkpoint is an empty name: give a file or a folder, or None to save nothing.")
        self.place, self.keep = None if place is None else Path(place), keep
        self.single = self.place is not None and self.place.suffix == ".safetensors"

    def files(self) -> list[Path]:
        """Return the existing checkpoints, newest first."""
        if self.place is None:
            return []
        if self.single:
            return [self.place] if self.place.exists() else []
        return sorted(self.place.glob(f"step-{'[0-9]' * 9}.safetensors"), reverse=True)

    def newest_step(self) -> int:
        """Return the step of the newest checkpoint in a folder, from its name; 0 if there is none."""
        return int(self.files()[0].stem.removeprefix("step-")) if self.files() else 0

    def make_place(self) -> None:
        """Make the folder to save to, so that a place that can't be written to is found before the first step.

        Raises:
            OSError: it can't; see :mod:`lft_edu.support.files`.
        """
        if self.place is not None:
            (file_to_write if self.single else make_folder)(self.place)

    def save(self, module: nn.Module, optimizers: list, notes: dict) -> None:
        """Write one checkpoint atomically, then delete the oldest ones, and damaged ones with a later step.

        Args:
            notes: JSON, with ``step``, ``history``, ``settings`` and ``stream``.
        """
        if self.place is None:
            return
        path = self.place if self.single else self.place / f"step-{notes['step']:09d}.safetensors"
        save_checkpoint(path, module, optimizers, notes)
        if not self.single:
            files = self.files()  # newest first: damaged ones with a later step come before this one
            here = files.index(path)
            for old in files[:here] + files[here + self.keep :]:
                old.unlink()

    def read(self, settings: dict) -> tuple[dict, dict]:
        """Return notes and tensors of the newest readable checkpoint, for :func:`restore`.

        Raises:
            FileNotFoundError: there is no checkpoint.
            ValueError: no checkpoint is readable, or the settings differ.
        """
        files = self.files()
        for path, older in zip(files, [*files[1:], None], strict=True):
            try:
                notes, tensors = read_checkpoint(path)
            except ValueError as error:
                if older is None:
                    raise
                warnings.warn(f"{error} Resuming from {older.name} instead.", stacklevel=2)
                continue
            check_settings(path, notes["settings"], settings)
            return notes, tensors
        raise FileNotFoundError(f"No checkpoint in {self.place}.")


def save_checkpoint(path: Path, module: nn.Module, optimizers: list, notes: dict) -> None:
    """Write weights, optimizer state and notes (JSON) atomically as one safetensors file."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {f"module.{name}": tensor for name, tensor in module.state_dict().items()}
    for i, optimizer in enumerate(optimizers):
        for j, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{j}.{key}": torch.as_tensor(value) for key, value in state.items()}
    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(notes | {"history": asdict(notes["history"])})
    metadata = {"lft_edu": text, "sha256": digest(tensors, text)}
    try:
        with atomic_write(path) as partial:
            save_file(tensors, partial, metadata=metadata)
    except (OSError, SafetensorError) as error:
        size = sum(tensor.nbytes for tensor in tensors.values())
        raise OSError(
            f"The checkpoint ({size / 1e6:.0f} MB) could not be written to {path.parent} ({error}); the previous one "
            "is unchanged. Free disk space, then resume with resume=True (--resume)."
        ) from error


def digest(tensors: dict, notes: str = "") -> str:
    """Return the SHA-256 of notes, tensors and their names in hexadecimal, to detect damaged files."""
    found = hashlib.sha256(notes.encode())
    for name, tensor in sorted(tensors.items()):
        found.update(name.encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def read_checkpoint(path: Path) -> tuple[dict, dict]:
    """Return notes and tensors of a checkpoint.

    Raises:
        ValueError: the file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        notes = json.loads(text := metadata["lft_edu"])
        if "sha256" in metadata:
            right = metadata["sha256"] == digest(tensors, text)
        else:  # before 1.0 the notes were not part of it
            right = notes["sha256"] == digest(tensors)
        if not right:
            raise ValueError("checksum mismatch")
        if type(notes["step"]) is not int or notes["step"] < 0:
            raise ValueError(f"step {notes['step']!r}")
        if not isinstance(notes["settings"], dict) or not isinstance(notes["history"], dict):
            raise ValueError("settings or history are no JSON objects")
    except (SafetensorError, KeyError, TypeError, ValueError, OSError, RecursionError) as error:
        raise ValueError(f"{path} is not a readable checkpoint ({error}). Delete it to start over.") from error
    return notes, tensors


def check_settings(path: Path, then: dict, now: dict) -> None:
    """Raise ValueError, naming every setting that changed since the checkpoint was written."""
    if changed := differences(then, now):
        hint = " Latents are identified by teacher, span and text." if "latents" in changed else ""
        if "sequences_a_step" in changed:
            hint += " A step takes batch × accumulate × processes sequences: with more processes, a smaller batch."
        lines = "; ".join(changed.values())
        raise ValueError(
            f"{path} comes from a run with other settings ({lines}).{hint} Use the old settings, or another path."
        )


def differences(then: dict, now: dict) -> dict[str, str]:
    """Return setting → message with the old and the new value, for each setting that changed."""
    return {k: f"{k}: {then.get(k)!r} then, {v!r} now" for k, v in now.items() if then.get(k) != v}


def restore(tensors: dict, module: nn.Module, optimizers: list) -> None:
    """Load tensors of :func:`read_checkpoint` into the module and the optimizers.

    Raises:
        ValueError: they are of another module.
    """
    weights = {k.removeprefix("module."): v for k, v in tensors.items() if k.startswith("module.")}
    expected = module.state_dict()
    if different := sorted(
        name
        for name in weights.keys() | expected.keys()
        if name not in weights or name not in expected or weights[name].shape != expected[name].shape
    ):
        raise ValueError(
            f"The checkpoint has weights of another operator ({len(different)} differ, such as {different[0]}). Delete "
            "it to start over, or use another path."
        )
    module.load_state_dict(weights)
    for i, optimizer in enumerate(optimizers):
        state: dict[int, dict] = {}
        for name, tensor in tensors.items():
            if name.startswith(f"optimizer.{i}."):
                _, _, j, key = name.split(".", 3)
                state.setdefault(int(j), {})[key] = tensor
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
