"""List the names that the library knows, from the tables it looks them up in."""

from collections.abc import Callable


def _teachers() -> dict[str, str]:
    from .families import FAMILIES
    from .loading.gguf import PUBLISHED, is_ready
    from .loading.teachers import known_teachers

    names = dict.fromkeys(known_teachers(), "on the hub")
    names["bundled"] = "ships with the course"
    for name in PUBLISHED:
        names[name] = "on this computer" if is_ready(name) else f"get it once: lft-edu fetch {name}"
    return names | {"OWNER/NAME, a folder or a .gguf file": f"any model of these types: {', '.join(FAMILIES)}"}


def _students() -> dict[str, str]:
    from .loading.assets import operator_notes
    from .loading.teachers import operator_file, shipped_students
    from .operators import operator_title

    names = {}
    for name in shipped_students():
        notes = operator_notes(operator_file(name))
        m, n = notes["span"]
        names[name] = f"{operator_title(notes)} for layers {m}–{n}"
    return names | {"OWNER/NAME or a folder": "what student.save_pretrained or `lft-edu train` wrote"}


def _corpora() -> dict[str, str]:
    from .loading.corpora import HUB, NAMES

    names = {name: f"{HUB[name].repository} on the hub" if name in HUB else "on this computer" for name in NAMES}
    return names | {"a file or folder": "your own text"}


def _objectives() -> dict[str, str]:
    from .objectives import OBJECTIVES

    return dict.fromkeys(OBJECTIVES, "")


def _operators() -> dict[str, str]:
    from .operators import OPERATORS

    return {kind: operator.__doc__.splitlines()[0].replace("`", "") for kind, operator in OPERATORS.items()}


KINDS: dict[str, Callable[[], dict[str, str]]] = {
    "teachers": _teachers,
    "students": _students,
    "corpora": _corpora,
    "objectives": _objectives,
    "operators": _operators,
}


def listing(kind: str | None = None) -> str:
    """Return the known names as text, one per line with what it means.

    Args:
        kind: one of ``KINDS``; all of them if None.
    """
    blocks = []
    for title in [kind] if kind else KINDS:
        names = KINDS[title]()
        width = max(map(len, names))
        blocks.append("\n".join([title, *(f"  {name:<{width}}  {note}".rstrip() for name, note in names.items())]))
    return "\n\n".join(blocks)
