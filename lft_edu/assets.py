"""Find what ships beside the code: models and results (``assets/``), lessons and exercises (``notebooks/``).

In a clone of the course they are folders beside ``lft_edu/``; a wheel carries them inside the package, as
``lft_edu/_assets`` and ``lft_edu/_notebooks`` (``pyproject.toml`` maps them, nothing is copied in the repository).
"""

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
