"""Download models from the Hugging Face hub, complete and checked, with errors that say what to do.

Files are stored in the cache of ``huggingface_hub`` (``HF_HOME``), shared with other programs; ``HF_HUB_OFFLINE`` and
``HF_ENDPOINT`` work as usual. Only safetensors weights are downloaded, and never code.
"""

import contextlib
import errno
import json
from dataclasses import dataclass
from pathlib import Path

from ..support import machine
from ..support.errors import reason
from ..support.progress import NotebookBar, in_notebook

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
    "chat_template.jinja",
]
VOCABULARIES = {"tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt"}
CLOSED = (errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EPERM)
VERIFIED = ".lft_edu-verified"  # a file in a snapshot whose files match their hashes
INSTEAD = 'use load_teacher("bundled"), which needs no network'


@dataclass(frozen=True)
class Download:
    """What :func:`fetch` would download: ``size`` bytes in all, of which ``missing`` are not in the cache yet."""

    commit: str
    size: int
    missing: int


def fetch(name: str, revision: str | None = None) -> Path:
    """Download a model, unless it is in the cache; an interrupted download is resumed.

    Args:
        name: ``"owner/name"``.
        revision: branch, tag or commit; the main branch if None.

    Returns:
        The model's folder in the cache, named after the commit.

    Raises:
        FileNotFoundError: the model, the revision or safetensors weights do not exist.
        PermissionError: the model's terms must be accepted first.
        ConnectionError: the hub cannot be reached, or the download was interrupted.
        OSError: not enough disk space.
        ValueError: a downloaded file does not match its checksum. It has been removed from the cache.
    """
    plan = None
    try:
        plan = look_up(name, revision)
        require_room(plan.missing, name)
    except ConnectionError:
        pass  # the cache may be complete
    with explained(name, revision):
        folder = Path(_snapshot(name, plan.commit if plan else revision))
    if plan is None:
        require_complete(folder, name)
    if not (folder / "config.json").exists():
        raise FileNotFoundError(f"{name!r} has no config.json, so it is not a transformers model. Check the name.")
    if not list(folder.glob("*.safetensors")):
        raise FileNotFoundError(
            f"{name!r} has no safetensors weights at {revision or 'main'}. Pickled weights can run code and are "
            "never loaded: choose a revision with a model.safetensors, or convert them yourself and give the folder."
        )
    if (plan and plan.missing) or not (folder / VERIFIED).exists():
        verify(folder)
    if not any((folder / file).exists() for file in VOCABULARIES):
        raise FileNotFoundError(f"{name!r} has no tokenizer, which is needed to read text. Choose another model.")
    return folder


def dataset_commit(name: str) -> str | None:
    """Return the newest commit of a dataset on the hub; None if the hub cannot be reached."""
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(name).sha
    except Exception:  # the hub's clients share no error class; loading the dataset will say what is wrong
        return None


def require_complete(folder: Path, name: str) -> None:
    """Raise ConnectionError unless the cache has config, vocabulary and all weights. Without the hub, this is the only
    way to notice an interrupted download."""
    index = folder / "model.safetensors.index.json"
    weights = {"model.safetensors"}
    if index.exists():
        weights = set(json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values())
    found = {path.name for path in folder.iterdir()}
    missing = sorted(({"config.json"} | weights) - found) + ([] if found & VOCABULARIES else ["tokenizer.json"])
    if missing:
        raise ConnectionError(
            f"{name!r} is incomplete in {cache_folder()} ({', '.join(missing)} missing) and the hub cannot be reached. "
            f"Connect and run this again, or {INSTEAD}."
        )


def look_up(name: str, revision: str | None = None) -> Download:
    """Return what :func:`fetch` would download, without downloading it. Raises the same errors."""
    with explained(name, revision):
        files = _snapshot(name, revision, dry_run=True)
    if not files:
        raise FileNotFoundError(f"{name!r} has no model files. Check the name.")
    sizes = [(file.file_size or 0, file.will_download) for file in files]
    return Download(files[0].commit_hash, sum(s for s, _ in sizes), sum(s for s, missing in sizes if missing))


def _snapshot(name: str, revision: str | None, **options):
    from huggingface_hub import snapshot_download

    if in_notebook():
        options["tqdm_class"] = NotebookBar  # a large download says how far it is, and leaves no widget
    return snapshot_download(name, revision=revision, allow_patterns=FILES, **options)


def verify(folder: Path) -> None:
    """Compare every file of a snapshot with its hash, and mark the snapshot as verified.

    In the hub's cache, a file's name is its hash: SHA-256 of a large file, git's SHA-1 of a small one. The clients
    compare lengths only. Hashing takes seconds per gigabyte, so :func:`fetch` does it once, after the download;
    ``lft-edu doctor`` does it again for everything in the cache.

    Raises:
        ValueError: files differ. They have been removed, so the next :func:`fetch` downloads it again.
    """
    damaged = []
    for link in sorted(folder.rglob("*")):
        blob = link.resolve()
        if link.is_symlink() and len(blob.name) in (40, 64) and (found := _hash_like(blob)) != blob.name:
            size = blob.stat().st_size
            damaged.append(f"{link.name} ({size:,} bytes, hash {found[:12]}…, should be {blob.name[:12]}…)")
            for path in (folder / VERIFIED, link, blob):
                path.unlink(missing_ok=True)
    if damaged:
        raise ValueError(
            f"Checksum mismatch in {folder.name[:12]}: {', '.join(damaged)}. It has been removed: load the model "
            "again to download a new copy."
        )
    with contextlib.suppress(OSError):  # a cache that others share, and that cannot be written
        (folder / VERIFIED).touch()


def _hash_like(blob: Path) -> str:
    """Return a file's hash, of the same kind as its name: git's if that has 40 digits, else SHA-256."""
    from huggingface_hub.utils.sha import git_hash, sha_fileobj

    if len(blob.name) == 40:
        return git_hash(blob.read_bytes())
    with blob.open("rb") as file:
        return sha_fileobj(file).hex()


def downloaded() -> list[Path]:
    """Return the folders of all models in the cache that :func:`fetch` has downloaded and verified."""
    return sorted(path.parent for path in cache_folder().glob(f"models--*/snapshots/*/{VERIFIED}"))


def cache_folder() -> Path:
    """Return the folder of the hub's cache."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser()


def require_room(needed: int, what: str, folder: Path | None = None) -> None:
    """Raise OSError (``ENOSPC``) unless 1.1 × ``needed`` bytes are free on the disk of ``folder`` (or the cache)."""
    folder = folder or cache_folder()
    free = machine.free_space(folder)
    if 1.1 * needed > free:
        raise OSError(
            errno.ENOSPC,
            f"{what} needs {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are free in {folder}. Make room, or set HF_HOME "
            "to a folder on another disk",
        )


def is_reachable() -> bool:
    """Return whether the hub, or the proxy in front of it, accepts a connection, and offline mode is off."""
    import socket
    import urllib.request
    from urllib.parse import urlsplit

    from huggingface_hub import constants

    address = urlsplit(constants.ENDPOINT)
    proxy = urllib.request.getproxies().get(address.scheme)
    if proxy and not urllib.request.proxy_bypass(address.hostname or ""):
        address = urlsplit(proxy)  # only it can be reached directly
    try:
        if constants.HF_HUB_OFFLINE:
            return False
        socket.create_connection((address.hostname, address.port or 443), timeout=3).close()
    except OSError:
        return False
    return True


in_reach = is_reachable


class explained:
    """Context manager: replace any error of the hub's clients by one of those that :func:`fetch` documents."""

    def __init__(self, name: str, revision: str | None = None, instead: str = INSTEAD):
        self.name, self.revision, self.instead = name, revision, instead

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if isinstance(error, Exception):
            raise explain(error, self.name, self.revision, self.instead) from error


def explain(error: Exception, name: str, revision: str | None = None, instead: str = INSTEAD) -> Exception:
    """Return the error to raise instead of one that the hub's clients raised: what happened, and what to do.

    Args:
        error: what a client raised.
        name: the model or dataset that was asked for.
        revision: the revision that was asked for, if any.
        instead: an alternative that works without the hub.
    """
    from huggingface_hub import constants, errors

    chain: list[BaseException] = [error]  # with its causes and contexts, transitively
    for e in chain:
        chain += [e for e in (e.__cause__, e.__context__) if e is not None and e not in chain]
    found = lambda *kinds: next((e for e in chain if isinstance(e, kinds)), None)  # noqa: E731
    full = next((e for e in chain if isinstance(e, OSError) and e.errno == errno.ENOSPC), None)
    barred = next((e for e in chain if isinstance(e, OSError) and e.errno in CLOSED), None)
    if barred:
        what = f"{cache_folder()} is not writable ({barred.strerror}): set HF_HOME to another folder"
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
        return ValueError(f"{name!r} is not a valid hub name: write owner/name.")
    if found(errors.OfflineModeIsEnabled) or constants.HF_HUB_OFFLINE:
        return ConnectionError(
            f"{name!r} is incomplete in {cache_folder()}, and HF_HUB_OFFLINE is set. Unset it, or {instead}."
        )
    return ConnectionError(
        f"{name!r} could not be downloaded ({reason(error)}). Check the network and run this "
        f"again: the download resumes where it stopped. Or {instead}."
    )
