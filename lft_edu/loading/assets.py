"""Files bundled with the course, checked against their checksums."""

import hashlib
import json
from pathlib import Path

ASSETS = Path(__file__).resolve().parents[2] / "assets"


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
    remedy = "Restore it with `git checkout -- assets`, or download the course again."
    try:
        provenance = json.loads((folder / "PROVENANCE.json").read_text())
        checksums = dict(provenance["sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedAssetError(f"{folder.name}/PROVENANCE.json is missing or unreadable ({error}). {remedy}") from None
    for name, expected in checksums.items():
        path = folder / name
        if not path.is_file():
            raise DamagedAssetError(f"{folder.name}/{name} is missing. {remedy}")
        found = sha256(path)
        if found != expected:
            raise DamagedAssetError(
                f"{folder.name}/{name} is damaged ({path.stat().st_size} bytes; SHA-256 {found[:12]}…, "
                f"should be {expected[:12]}…). {remedy}"
            )
    return provenance
