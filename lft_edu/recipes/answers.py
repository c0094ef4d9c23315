"""The answers to all predictions of the lessons, for docs/teaching/answers.md.

    python -m lft_edu.recipes.answers

Questions and answers are those of the lessons' stored outputs, so that the page cannot say anything else.
"""

import ast
from pathlib import Path

import nbformat

from ..lessons.tables import escape_markdown
from ..loading.assets import ASSETS
from .common import into_page, lessons

PAGE = ASSETS.parent / "docs" / "teaching" / "answers.md"


def predictions(lesson: Path) -> list[tuple[str, str]]:
    """Each question of a lesson's ``lft.predict``, and what its ``reveal`` answers, from the stored outputs."""
    asked: dict[str, str] = {}
    found: dict[str, str] = {}
    for cell in nbformat.read(lesson, as_version=4).cells:
        if cell.cell_type != "code":
            continue
        shown = [output.get("data", {}).get("text/plain", "").strip() for output in cell.outputs]
        answers = iter(text.partition("Answer: ")[2] for text in shown if "Answer: " in text)
        tree = ast.parse(cell.source)
        for node in tree.body:
            call = getattr(node, "value", None)
            if isinstance(node, ast.Assign) and isinstance(call, ast.Call) and ast.unparse(call.func) == "lft.predict":
                asked[ast.unparse(node.targets[0])] = ast.literal_eval(call.args[0])
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
        for call in sorted(calls, key=lambda call: call.lineno):
            if call.func.attr == "reveal":
                found[ast.unparse(call.func.value)] = next(answers)
    return [(question, found[name]) for name, question in asked.items()]


def page_list(lesson: Path) -> str:
    """A lesson's questions and answers as a numbered list in Markdown."""
    rows = enumerate(predictions(lesson), start=1)
    return "".join(f"{i}. *{escape_markdown(question)}* {escape_markdown(answer)}\n" for i, (question, answer) in rows)


def main() -> None:
    for lesson in lessons():
        into_page(PAGE, f"predictions {lesson.name[:2]}", page_list(lesson))


if __name__ == "__main__":
    main()
