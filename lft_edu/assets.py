"""Find what ships beside the code: models and results (``assets/``), lessons and exercises (``notebooks/``).

In a clone of the course they are folders beside ``lft_edu/``; a wheel carries them inside the package, as
``lft_edu/_assets`` and ``lft_edu/_notebooks`` (``pyproject.toml`` maps them, nothing is copied in the repository).
"""

from importlib import resources
from pathlib import Path

_PACKAGE = Path(str(resources.files("lft_edu"))).resolve()
# A clone's _assets would be a stale copy: it has none. So what lies in the package is the installed wheel's.
INSTALLED = (_PACKAGE / "_assets").is_dir()


def _folder(name: str) -> Path:
    return _PACKAGE / f"_{name}" if INSTALLED else _PACKAGE.parent / name


ASSETS = _folder("assets")
NOTEBOOKS = _folder("notebooks")
INSTALL = "pip install --force-reinstall lft_edu-….whl" if INSTALLED else "pip install -e . in the folder of the course"
RESTORE = (
    f"Install the course again: `{INSTALL}`."
    if INSTALLED
    else "Restore it with `git checkout -- assets notebooks`, or download the course again."
)
