"""Every paper that is cited is in docs/bibliography.md, and every paper there is cited."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
BIBLIOGRAPHY = ROOT / "docs" / "bibliography.md"
CITED = re.compile(r"(?:arxiv\.org/abs/|arXiv[: ])(\d{4}\.\d{4,5})")


def prose_of(path: Path) -> str:
    """A file's text; of a notebook, its cells without their outputs."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    return "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])


def test_citations_and_bibliography_agree():
    pages = [
        ROOT / "README.md",
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("notebooks/**/*.ipynb"),
        *ROOT.glob("lft_edu/**/*.py"),
    ]
    cited = {number: path.name for path in pages if path != BIBLIOGRAPHY for number in CITED.findall(prose_of(path))}
    listed = re.findall(
        r"^\* \[(\d{4}\.\d{4,5})\]\(https://arxiv\.org/abs/\1\) ", BIBLIOGRAPHY.read_text("utf-8"), re.M
    )
    assert len(listed) == len(set(listed))
    missing = {number: where for number, where in cited.items() if number not in listed}
    assert not missing, "Add these to docs/bibliography.md."
    assert not set(listed) - set(cited), "Nothing cites these any more."
