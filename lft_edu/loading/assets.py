"""Find what ships beside the code: models and results (``assets/``), lessons and exercises (``notebooks/``).

In a clone of the course they are folders beside ``lft_edu/``; a wheel carries them inside the package, as
``lft_edu/_assets`` and ``lft_edu/_notebooks`` (``pyproject.toml`` maps them, nothing is copied in the repository).
"""

import hashlib
import json
from importlib import resources
from pathlib import Path

_PACKAGE = Path(str(resources.files("lft_edu"))).resolve()
INSTALLED = (_PACKAGE / "_assets").is_dir()


def _folder(name: str) -> Path:
    return _PACKAGE / f"_{name}" if INSTALLED else _PACKAGE.parent / name


ASSETS = _folder("assets")
NOTEBOOKS = _folder("notebooks")
if INSTALLED:
    INSTALL = "pip install lft_edu-….whl"
    RESTORE = "Install the course again: `pip install --force-reinstall --no-deps lft_edu-….whl`."
else:
    INSTALL = "pip install -e . in the folder of the course"
    RESTORE = "Restore it with `git checkout -- assets notebooks`, or download the course again."


class DamagedAssetError(ValueError):
    """A bundled file is missing, truncated or altered."""


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def operator_notes(path: Path) -> dict:
    """Return the metadata of a trained operator's safetensors file: span, operator, teacher, training."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["lft_edu"])


def verify(folder: Path) -> dict:
    """Check a folder of assets against the checksums in its ``PROVENANCE.json``, and return that file's content.

    Raises:
        DamagedAssetError: a file is missing or differs.
    """
    try:
        provenance = json.loads((folder / "PROVENANCE.json").read_text(encoding="utf-8"))
        checksums = dict(provenance["sha256"])
        if not checksums:
            raise ValueError("no checksums")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedAssetError(
            f"{folder.name}/PROVENANCE.json is missing or unreadable ({error}). {RESTORE}"
        ) from None
    for name, expected in checksums.items():
        path = folder / name
        if not path.is_file():
            raise DamagedAssetError(f"{folder.name}/{name} is missing. {RESTORE}")
        found = sha256(path)
        if found != expected:
            raise DamagedAssetError(
                f"{folder.name}/{name} is damaged ({path.stat().st_size} bytes; SHA-256 {found[:12]}…, "
                f"should be {expected[:12]}…). {RESTORE}"
            )
    return provenance
