"""Change one thing in the code, thousands of times, and see whether a test fails: the mutation score of the core.

    make mutation                                  # installs mutmut, runs it (half an hour to an hour), then this
    python -m benchmarks.mutation_score mutants    # reads what mutmut left in its folder

mutmut is set up in pyproject.toml: which files are changed, and which tests may notice. A *mutant* is one change, such
as ``<`` to ``<=`` or an argument that is left out. Changes of the words of a message are counted apart: tests look for
what a message says, not for every letter. Writes ``benchmarks/results/mutation.json``, with every mutant that no test
noticed, and ``mutation.md``.
"""

import argparse
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
KILLED, NOT_REACHED = {1, 3, 24, 36, -24, 152, 255}, {5, 33}  # mutmut's exit codes; too slow counts as noticed
ABOUT_WORDS = "words of a message"


def verdicts(folder: Path) -> dict[str, dict[str, int | None]]:
    """Module → mutant → exit code of the tests on it."""
    found = {}
    for meta in sorted(folder.glob("lft_edu/**/*.py.meta")):
        name = meta.relative_to(folder).as_posix().removesuffix(".meta")
        found[name] = json.loads(meta.read_text(encoding="utf-8"))["exit_code_by_key"]
    if not found:
        raise SystemExit(f"{folder} has no mutants: run `make mutation`, or give the folder that mutmut wrote.")
    return found


def change(mutant: str, folder: Path) -> str:
    """What a mutant changes: the lines before and after, from mutmut."""
    command = [sys.executable, "-m", "mutmut", "show", mutant]
    shown = subprocess.run(command, cwd=folder.parent, capture_output=True, text=True, check=True).stdout
    return "\n".join(line for line in shown.splitlines() if re.match(r"[-+](?![-+])", line))


def only_words(changed: str) -> bool:
    """Whether a mutant changed nothing but letters in strings: mutmut puts XX around them, or changes their case."""
    before, after = (re.findall(rf"^[{sign}](.*)", changed, re.M) for sign in ("-", "+"))
    bare = lambda lines: [re.sub(r"XX", "", line).lower() for line in lines]  # noqa: E731
    return bool(before) and bare(before) == bare(after)


def count(folder: Path) -> dict:
    """Count verdicts per module, and list what no test noticed."""
    modules, unnoticed = {}, {}
    for module, codes in verdicts(folder).items():
        kinds: Counter = Counter()
        for mutant, code in codes.items():
            kind = "noticed" if code in KILLED else "not reached" if code in NOT_REACHED else "unnoticed"
            if code is None:
                kind = "not run"
            elif kind != "noticed":
                changed = change(mutant, folder)
                kind = ABOUT_WORDS if only_words(changed) else kind
                if kind != ABOUT_WORDS:
                    unnoticed[mutant] = changed
            kinds[kind] += 1
        judged = kinds["noticed"] + kinds["unnoticed"] + kinds["not reached"]
        modules[module] = dict(kinds) | {"score": round(kinds["noticed"] / judged, 3) if judged else None}
    return {"modules": modules, "unnoticed": unnoticed}


def table(found: dict) -> str:
    """Format the counts as Markdown."""
    kinds = ("noticed", "unnoticed", "not reached", ABOUT_WORDS)
    lines = [f"| module | {' | '.join(kinds)} | score |", "|---" * (len(kinds) + 2) + "|"]
    for module, counts in found["modules"].items():
        cells = " | ".join(str(counts.get(kind, 0)) for kind in kinds)
        lines.append(f"| `{module}` | {cells} | {counts['score']:.0%} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("mutants"), help="where mutmut left its files")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder to write to")
    a = parser.parse_args()
    found = count(a.folder.resolve())
    text = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
    (a.out / "mutation.json").write_text(text, encoding="utf-8")
    (a.out / "mutation.md").write_text(table(found), encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    main()
