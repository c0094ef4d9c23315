"""Import arrows point down: no circle, and no wing knows a floor above it."""

import ast
import graphlib
from pathlib import Path

import lft_edu

ROOT = Path(lft_edu.__file__).parent
APPS = {"plots", "explorer", "exercises", "lessons", "recipes", "runs", "cli", "doctor", "export", "site", "course"}
APPS |= {"listing", "__main__"}
# What a floor may import besides itself; the core is everything that stands flat in lft_edu/ and is no app.
MAY_IMPORT = {
    "support": set(),
    "training": {"support"},
    "core": {"support", "training", "loading.assets"},
    "loading": {"support", "core"},
    "runs": {"support", "core", "training", "loading"},
}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in ROOT.rglob("*.py")}


def imports(name: str) -> set[str]:
    """Every module of the package that this one imports, at its top or inside a function."""
    found, package = set(), MODULES[name].parent.relative_to(ROOT).parts
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []  # seen by type checkers alone
        if isinstance(node, ast.ImportFrom) and node.level:
            base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])
            inside = {f"{base}.{alias.name}".strip(".") for alias in node.names}
            found |= {m if m in MODULES else base for m in inside} - {"", name}
    return {m for m in found if m in MODULES}


def floor(name: str) -> str:
    top = name.split(".")[0]
    return top if top in APPS | {"support", "training", "loading"} else "core"


def test_no_import_points_up():
    up = []
    for name in MODULES:
        if (here := floor(name)) in MAY_IMPORT:
            allowed = MAY_IMPORT[here] | {here}
            up += [f"{name} → {other}" for other in imports(name) if not {floor(other), other} & allowed]
    assert not up, "; ".join(sorted(up))


def test_no_circle():
    graph = {name: imports(name) for name in MODULES}
    assert len([arrow for arrows in graph.values() for arrow in arrows]) > 100  # the reader reads
    graphlib.TopologicalSorter(graph).prepare()  # CycleError names the circle


def test_no_file_is_too_long_to_read():
    long = {name: lines for name, path in MODULES.items() if (lines := len(path.read_text("utf-8").splitlines())) > 400}
    assert not long
