"""README and docs: short, every link and anchor leads somewhere, every command and example is one that works."""

import difflib
import io
import json
import re
import runpy
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import lft_edu as lft
from lft_edu import cli
from lft_edu.families import FAMILIES
from lft_edu.recipes import answers, common, half_precision, pictures, readme_report, real_report

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
conformance = SimpleNamespace(**runpy.run_path(str(ROOT / "benchmarks" / "conformance.py")))
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]
LESSONS = {path.name[:2]: path for path in sorted(ROOT.glob("notebooks/*.ipynb"))}
NOTEBOOKS = [*LESSONS.values(), *sorted(ROOT.glob("notebooks/exercises/**/*.ipynb"))]
LINK = re.compile(r"\]\((?!\w+:)([^)\s]+)\)|^\[[^\]]+\]: (?!\w+:)(\S+)", re.M)
FENCE = re.compile(r"```(\w*)\n(.*?)```", re.S)


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def markdown_of(path: Path) -> str:
    """A page, or the Markdown cells of a notebook."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    cells = json.loads(text)["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*?)\s*$", FENCE.sub("", markdown_of(page)), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def test_readme_is_one_screen():
    assert len(README.read_bytes()) <= 6 * 1024
    alts = re.findall(r"^!\[([^\]]*)\]", README.read_text(encoding="utf-8"), re.M)
    assert [len(alt) > 40 for alt in alts] == [True], "one picture, with alt text"


def test_readme_counts_the_families():
    assert len(FAMILIES) == 18
    assert "any model of eighteen families" in README.read_text(encoding="utf-8")


def test_the_moving_picture_is_small_and_moves():
    from PIL import Image

    path = ROOT / "assets" / "figures" / "beams.gif"
    assert path.stat().st_size < 400_000
    with Image.open(path) as picture:
        assert picture.n_frames > 20
        assert picture.info.get("loop") == 0


def test_the_moving_picture_can_be_drawn_again():
    from PIL import Image

    pairs = lft.shapes.beams(8, torch.Generator().manual_seed(0))
    found = pictures.paths(pairs, steps=2, frames=3)
    assert {name: tuple(path.shape) for name, path in found.items()} == dict.fromkeys(pictures.LOSSES, (4, 8, 2))
    with Image.open(io.BytesIO(pictures.animate(found, pairs))) as picture:
        assert (picture.n_frames, picture.size) == (4, (660, 300))


def test_tables_of_readme_are_those_of_lessons_and_results():
    text = README.read_text(encoding="utf-8")
    assert readme_report.lessons_table() in text, "python -m lft_edu.recipes.readme_report"
    assert readme_report.results_table() in text, "python -m lft_edu.recipes.readme_report"
    assert real_report.paper_table(real_report.load()) in (DOCS / "results.md").read_text(encoding="utf-8")


def test_the_table_of_half_precision_is_the_measured_one(teacher, ids):
    results = json.loads((ROOT / "assets" / "results" / "half_precision.json").read_text(encoding="utf-8"))
    assert half_precision.page_table(results) in half_precision.PAGE.read_text(encoding="utf-8")
    found = half_precision.measure(teacher, lft.splice(teacher, (2, 5), lft.Skip()), ids)["rows"]
    assert 0 < found["floor"]["mean"] < found["float32"]["mean"], "rounding costs less than three layers"
    assert found["moved"]["largest"] >= found["moved"]["q99"] >= found["moved"]["median"] > 0


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=named)
def test_links_lead_somewhere(page):
    wrong = []
    for found in LINK.findall(FENCE.sub("", markdown_of(page))):
        file, _, heading = (found[0] or found[1]).partition("#")
        target = (page.parent / file).resolve() if file else page
        if not target.exists():
            wrong.append(file)
        elif heading and target.suffix == ".md" and heading not in anchors(target):
            wrong.append(f"{file}#{heading}")
    assert wrong == []


def test_every_page_can_be_reached_from_the_index():
    seen, todo = set(), [DOCS / "index.md"]
    while todo:
        page = todo.pop()
        if page in seen or page.suffix != ".md" or not page.is_relative_to(DOCS):
            continue
        seen.add(page)
        todo += [(page.parent / (a or b).split("#")[0]).resolve() for a, b in LINK.findall(markdown_of(page)) if a or b]
    assert set(DOCS.rglob("*.md")) == seen


def commands() -> list[tuple[str, str]]:
    """Every line of README and docs that begins with lft-edu, with the lines that continue it."""
    found = []
    for page in PAGES:
        for kind, block in FENCE.findall(page.read_text(encoding="utf-8")):
            for line in block.replace("\\\n", " ").splitlines() if kind in ("", "bash") else ():
                if re.match(r"(\.venv/bin/)?lft-edu ", line):
                    found.append((named(page), line))
    return found


@pytest.mark.parametrize(("page", "line"), commands())
def test_every_command_is_understood(page, line):
    words = shlex.split(re.split(r"\s+#|&&| -- ", line)[0].replace("…", ""))[1:]
    words = ["6:18" if word == "M:N" else word for word in words]
    if words[0] == "train" and "--span" not in words:
        words += ["--span", "6:18"]
    args, unknown = cli.parser(words).parse_known_args(words)
    assert not unknown, f"{page}: {line}"
    assert args.command == words[0]


def python_blocks(page: Path) -> list[str]:
    return [block for kind, block in FENCE.findall(page.read_text(encoding="utf-8")) if kind == "python"]


def test_the_dozen_lines_of_readme_run(tmp_path, monkeypatch, capsys):
    (code,) = python_blocks(README)
    assert len(code.splitlines()) <= 14
    for long, short in (("500_000", "8_000"), ("max_steps=200", "max_steps=2"), ("10_000", "1_000")):
        assert long in code
        code = code.replace(long, short)
    monkeypatch.chdir(tmp_path)
    space = {}
    exec(code, space)
    assert (tmp_path / "my-student" / "model.safetensors").exists()
    assert "kl" in capsys.readouterr().out.lower()


def test_the_examples_of_the_explorer_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    space = {}
    for code in python_blocks(DOCS / "explorer.md"):
        exec(code, space)
    assert (tmp_path / "where_it_fails.html").stat().st_size > 100_000
    assert space["figure"].frames


# --- glossary -----------------------------------------------------------------------------------------------------

STANDARD = """ODE, neural ODE, vector field, conditional velocity, marginal velocity, interpolant, rectified flow,
continuity equation, coupling, optimal transport, linear assignment, Hungarian, residual stream, logit lens, attention
sink, massive activations, KV cache, adaptive layer norm, adaLN, time embedding, knowledge distillation, KL divergence,
NFE, Euler, midpoint, Heun, order of convergence, speculative decoding"""  # what a learner must leave with


def entries() -> dict[str, str]:
    """Heading → text of each entry of the glossary."""
    text = re.split(r"^\[00\]:", (DOCS / "glossary.md").read_text(encoding="utf-8"), flags=re.M)[0]
    found = re.findall(r"^### (.+?)\n\n(.*?)(?=^##|\Z)", text, re.M | re.S)
    return {title: " ".join(body.split()) for title, body in found}


def plain(text: str) -> str:
    return re.sub(r"[*`_$]|\s+", lambda match: " " if match[0].isspace() else "", text.lower())


def test_the_glossary_has_the_words_of_the_field():
    titles = plain(" | ".join(entries()))
    assert len(entries()) >= 40
    assert [word for word in STANDARD.replace("\n", " ").split(", ") if plain(word) not in titles] == []


@pytest.mark.parametrize("title", entries())
def test_a_word_of_the_glossary_is_in_the_lessons_that_it_names(title):
    body = entries()[title]
    own = re.search(r"\*In the course:\* (.+?)\. Lessons?", body)
    words = [*re.split(r" \(|\)|, | and ", title), *(own[1].split(", ") if own else ())]
    lessons = re.findall(r"\[(\d\d)\]", body)
    assert lessons, "Name the lesson where it is met: Lesson [02]."
    for lesson in lessons:
        cells = json.loads(LESSONS[lesson].read_text(encoding="utf-8"))["cells"]
        text = plain("\n".join("".join(cell["source"]) for cell in cells))
        assert any(word and plain(word) in text for word in words), f"lesson {lesson} has none of {words}"


# --- the lecturer's kit -------------------------------------------------------------------------------------------

# [03] *The same crossing pairs* to *What a walk costs*
SECTIONS = re.compile(r"\[(\d\d)\] ((?:\*[^*]+\*(?:,? (?:to|then|and) |, )?)+)")


@pytest.mark.parametrize("lesson", common.lessons(), ids=lambda path: path.stem[:2])
def test_answers_are_those_of_the_lessons(lesson):
    found = answers.predictions(lesson)
    assert len(found) >= 3
    assert all(answer for _, answer in found)
    assert answers.page_list(lesson) in answers.PAGE.read_text(encoding="utf-8"), "python -m lft_edu.recipes.answers"


@pytest.mark.parametrize("page", sorted(DOCS.glob("teaching/*.md")), ids=named)
def test_sections_that_the_kit_names_are_in_the_lessons(page):
    """A title may have changed a little; the test finds those that are gone."""
    gone = []
    for lesson, named_there in SECTIONS.findall(" ".join(page.read_text(encoding="utf-8").split())):
        titles = [one.lower() for one in re.findall(r"^#+ (?:\d+ · )?(.*)$", markdown_of(LESSONS[lesson]), re.M)]
        for title in re.findall(r"\*([^*]+)\*", named_there):
            if not difflib.get_close_matches(title.lower(), titles, cutoff=0.6):
                gone.append(f"{lesson}: {title}")
    assert gone == []


def test_the_kit_has_what_it_promises():
    text = (DOCS / "teaching" / "discussion.md").read_text(encoding="utf-8")
    sections = re.split(r"^## ", text, flags=re.M)[1:]
    assert [section[:2] for section in sections] == list(LESSONS)
    assert {len(re.findall(r"^\d\. ", section, re.M)) for section in sections} == {3}
    exam = (DOCS / "teaching" / "exam.md").read_text(encoding="utf-8")
    points = [int(n) for n in re.findall(r"^\*\*\d+ \((\d+) points\)\.\*\*", exam, re.M)]
    assert (len(points), sum(points)) == (10, 60)
    given = [sum(map(int, re.findall(r"\[(\d)\]", part))) for part in re.split(r"^\*\*\d+ \(", exam, flags=re.M)[1:]]
    assert given == points, "points within a solution add up to those of its question"


@pytest.mark.parametrize("lesson", LESSONS)
def test_every_prediction_of_a_lesson_has_an_answer(lesson):
    text = (DOCS / "teaching" / "answers.md").read_text(encoding="utf-8")
    section = re.split(r"^## ", text, flags=re.M)[1 + sorted(LESSONS).index(lesson)]
    assert section.startswith(lesson)
    predictions, _, turns = section.partition("### Your turn")
    asked = len(re.findall(r"\*\*Predict first\.\*\*", markdown_of(LESSONS[lesson])))
    assert len(re.findall(r"^\d+\. ", predictions, re.M)) >= asked, f"{asked} predictions are asked for"
    own = re.search(r"^### Your turn$(.*?)(?=^###|\Z)", markdown_of(LESSONS[lesson]), re.M | re.S)
    tasks = len(re.findall(r"^\d+\. ●", own[1], re.M)) if own else 0
    assert len(re.findall(r"^\d+\. ", turns, re.M)) >= tasks, f"{tasks} tasks in Your turn"


# --- to be cited and contributed to -------------------------------------------------------------------------------


def test_the_authors_are_left_for_the_owner():
    """No name is made up: the owner of the repository replaces AUTHORS in both files, and then here."""
    import yaml

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["authors"] == [{"name": "AUTHORS"}], "Named? Then put the names into this test."
    header = yaml.safe_load((ROOT / "paper" / "paper.md").read_text(encoding="utf-8").split("---")[1])
    assert [author["name"] for author in header["authors"]] == ["AUTHORS"]


def test_citation_and_changelog_have_the_version():
    import yaml

    from lft_edu import __version__

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert citation["references"][0]["authors"][0] == {"family-names": "Wu", "given-names": "Yen-Chen"}
    assert re.search(rf"^## {re.escape(__version__)}\b", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)


def test_the_journal_paper_is_short_and_its_references_exist():
    text = (ROOT / "paper" / "paper.md").read_text(encoding="utf-8")
    assert len(text.split("---", 2)[2].split()) < 1000
    keys = set(re.findall(r"^@\w+\{(\S+),", (ROOT / "paper" / "paper.bib").read_text(encoding="utf-8"), re.M))
    assert set(re.findall(r"@([\w:]+\d{4}\w*)", text)) == keys


def test_forms_and_the_workflow_can_be_read():
    import yaml

    for path in (ROOT / ".github").rglob("*.yml"):
        assert yaml.safe_load(path.read_text(encoding="utf-8"))
    assert "make test" in (ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8")


def test_the_table_of_families_is_what_was_found_and_complete():
    found = json.loads(conformance.FOUND.read_text(encoding="utf-8"))
    page = conformance.PAGE.read_text(encoding="utf-8")
    assert f"<!-- conformance -->\n{conformance.table(found)}<!-- /conformance -->" in page
    assert {row["transformers"] for row in found} >= {conformance.versions("transformers")[0]}
    names = set(re.findall(r"^def test_(\w+)", (ROOT / "tests" / "test_families.py").read_text(), re.M))
    names |= set(re.findall(r"^    test_(\w+),$", (ROOT / "tests" / "test_families.py").read_text(), re.M))
    others = {"every_declared_family_is_tested", "a_tiny_llama_lives_as_the_docs_say"}
    assert {name for tests in conformance.COLUMNS.values() for name in tests} == names - others
    for row in found[:2]:
        assert set(row["families"]) == set(FAMILIES)
        assert all(set(cells) == set(conformance.COLUMNS) for cells in row["families"].values())
