"""The hub: what is fetched from it, whole and checked, and what is said when that fails.

Files come through ``huggingface_hub`` into its cache (``HF_HOME``), so what other programs have fetched is found, and
``HF_HUB_OFFLINE`` and ``HF_ENDPOINT`` mean what they mean there. Only safetensors weights are asked for, and no code.
"""

import errno
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from ..support.errors import reason
from ..support.machine import free_space

# Matched against the whole path in the repository: folders with other formats of the same weights are left out.
FILES = [
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
]
VOCABULARIES = {"tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt"}
CLOSED = (errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EPERM)
INSTEAD = 'use load_teacher("bundled"), which needs no network'


@dataclass(frozen=True)
class Download:
    """What :func:`fetch` would do: the commit, the bytes of all files, and of those that are not in the cache."""

    commit: str
    size: int
    missing: int


def fetch(name: str, revision: str | None = None) -> Path:
    """A model of the hub as a folder on this disk, downloaded if need be; an interrupted download goes on.

    Args:
        name: ``"owner/name"``.
        revision: branch, tag or commit; the main branch, if None.

    Returns:
        A folder whose name is the commit.

    Raises:
        FileNotFoundError: no such model, revision, or weights that can be loaded safely.
        PermissionError: a model whose terms must be accepted first.
        ConnectionError: the hub is out of reach, or the download broke off.
        OSError: no room on the disk.
        ValueError: a file is not what the hub says it is. It has been removed from the cache.
    """
    plan = None
    try:
        plan = look_up(name, revision)
        require_room(plan.missing, name)
    except ConnectionError:
        pass  # the cache may hold it all
    with explained(name, revision):
        folder = Path(_snapshot(name, plan.commit if plan else revision))
    if plan is None:
        require_complete(folder, name)
    if not (folder / "config.json").exists():
        raise FileNotFoundError(f"{name!r} holds no config.json: it is no transformers model. Check the name.")
    if not list(folder.glob("*.safetensors")):
        raise FileNotFoundError(
            f"{name!r} offers no safetensors weights at {revision or 'main'}. Pickled weights can run code and are "
            "never loaded: choose a revision with a model.safetensors, or convert them yourself and give the folder."
        )
    verify(folder)
    if not any((folder / file).exists() for file in VOCABULARIES):
        raise FileNotFoundError(f"{name!r} holds no tokenizer: without one no text can be read. Choose another model.")
    return folder


def dataset_commit(name: str) -> str | None:
    """The newest commit of a data set on the hub; None where nobody can be asked."""
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(name).sha
    except Exception:  # of the hub's clients, which share no class; who loads it will say what is wrong
        return None


def require_complete(folder: Path, name: str) -> None:
    """ConnectionError unless the cache holds config, vocabulary and every part of the weights. Without the hub nobody
    else would say that a download had broken off."""
    index = folder / "model.safetensors.index.json"
    weights = {"model.safetensors"}
    if index.exists():
        weights = set(json.loads(index.read_text()).get("weight_map", {}).values())
    found = {path.name for path in folder.iterdir()}
    missing = sorted(({"config.json"} | weights) - found) + ([] if found & VOCABULARIES else ["tokenizer.json"])
    if missing:
        raise ConnectionError(
            f"{name!r} is not whole in {cache_folder()} ({', '.join(missing)} missing), and the hub is out of reach. "
            f"Fetch it once with the hub, or {INSTEAD}."
        )


def look_up(name: str, revision: str | None = None) -> Download:
    """What :func:`fetch` would download, without downloading it. Raises as it does."""
    with explained(name, revision):
        files = _snapshot(name, revision, dry_run=True)
    if not files:
        raise FileNotFoundError(f"{name!r} holds no file of a model. Check the name.")
    sizes = [(file.file_size or 0, file.will_download) for file in files]
    return Download(files[0].commit_hash, sum(s for s, _ in sizes), sum(s for s, missing in sizes if missing))


def _snapshot(name: str, revision: str | None, **options):
    from huggingface_hub import snapshot_download

    return snapshot_download(name, revision=revision, allow_patterns=FILES, **options)


def verify(folder: Path) -> None:
    """Compare every file with its hash, which is its name in the hub's cache: SHA-256 of a large one, git's of others.

    The clients compare lengths only, so a file that was altered on its way, or rotted on the disk, would load as good.

    Raises:
        ValueError: which file differs; it is gone, and the next call downloads it again.
    """
    for link in sorted(folder.rglob("*")):
        blob = link.resolve()
        if not link.is_symlink() or len(blob.name) not in (40, 64):
            continue
        found = _hash_like(blob)
        if found != blob.name:
            size = blob.stat().st_size
            link.unlink()
            blob.unlink()
            raise ValueError(
                f"{link.name} of {folder.name[:12]} was damaged on its way or on the disk ({size:,} bytes, hash "
                f"{found[:12]}…, should be {blob.name[:12]}…). It has been removed: run this again to download it anew."
            )


def _hash_like(blob: Path) -> str:
    """The hash of a file, of the kind that is its name."""
    if len(blob.name) == 40:  # git's, of the content behind a header
        data = blob.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    with blob.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder() -> Path:
    """Where the hub's clients keep what they download."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser()


def require_room(needed: int, what: str, folder: Path | None = None) -> None:
    """OSError (``ENOSPC``) unless ``needed`` bytes, and a tenth more, are free where ``folder`` (the cache) is."""
    folder = folder or cache_folder()
    free = free_space(folder)
    if 1.1 * needed > free:
        raise OSError(
            errno.ENOSPC,
            f"{what} needs {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are free in {folder}. Make room, or set HF_HOME "
            "to a folder on another disk",
        )


def is_reachable() -> bool:
    """Does the hub answer, and may it be asked?"""
    import socket
    import urllib.request
    from urllib.parse import urlsplit

    from huggingface_hub import constants

    address = urlsplit(constants.ENDPOINT)
    proxy = urllib.request.getproxies().get(address.scheme)
    if proxy and not urllib.request.proxy_bypass(address.hostname):
        address = urlsplit(proxy)  # it alone can be reached from here
    try:
        if constants.HF_HUB_OFFLINE:
            return False
        socket.create_connection((address.hostname, address.port or 443), timeout=3).close()
    except OSError:
        return False
    return True


class explained:
    """Turns the many errors of the hub's clients into the few that :func:`fetch` promises."""

    def __init__(self, name: str, revision: str | None = None, instead: str = INSTEAD):
        self.name, self.revision, self.instead = name, revision, instead

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if isinstance(error, Exception):
            raise explain(error, self.name, self.revision, self.instead) from error


def explain(error: Exception, name: str, revision: str | None = None, instead: str = INSTEAD) -> Exception:
    """The error to raise in place of one that a client of the hub raised: what happened, and what to do."""
    from huggingface_hub import constants, errors

    chain = [error]  # it, what caused it, and what was being handled when each of them was raised
    for e in chain:
        chain += [e for e in (e.__cause__, e.__context__) if e is not None and e not in chain]
    found = lambda *kinds: next((e for e in chain if isinstance(e, kinds)), None)  # noqa: E731
    full = next((e for e in chain if isinstance(e, OSError) and e.errno == errno.ENOSPC), None)
    barred = next((e for e in chain if isinstance(e, OSError) and e.errno in CLOSED), None)
    if barred:
        what = f"{cache_folder()} can't be written ({barred.strerror}): set HF_HOME to another folder"
        return OSError(barred.errno, what)
    if full:
        place = cache_folder()
        return OSError(errno.ENOSPC, f"The disk is full ({place}) while fetching {name!r}. Make room and run it again")
    if found(errors.GatedRepoError):
        return PermissionError(
            f"{name!r} is gated: accept its terms at {constants.ENDPOINT}/{name}, then log in with `hf auth login`."
        )
    if found(errors.RevisionNotFoundError):
        return FileNotFoundError(f"{name!r} has no revision {revision!r}. Give a branch, a tag or a commit of it.")
    if found(errors.RepositoryNotFoundError) or type(error).__name__ == "DatasetNotFoundError":  # of datasets
        return FileNotFoundError(
            f"The hub has no {name!r}, or it is private. Check the name; for a private one, `hf auth login`."
        )
    if found(errors.HFValidationError):
        return ValueError(f"{name!r} is no name on the hub: write owner/name.")
    if found(errors.OfflineModeIsEnabled) or constants.HF_HUB_OFFLINE:
        return ConnectionError(
            f"{name!r} is not whole in {cache_folder()}, and HF_HUB_OFFLINE is set. Unset it, or {instead}."
        )
    return ConnectionError(
        f"{name!r} could not be reached on the hub ({reason(error)}). Check the network and "
        f"run it again, a download goes on where it stopped; or {instead}."
    )
