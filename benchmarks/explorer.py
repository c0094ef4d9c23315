"""How quick the trajectory explorer is, measured in the browser where it is used.

    python benchmarks/explorer.py        # a few minutes; takes Chromium and playwright

Writes ``benchmarks/results/explorer.json`` and ``explorer.md``. Scrubbing is timed in an exported page, from the call
to the last drawing command, and as the interval between frames while every frame shows another depth. Waiting for a
text is timed in JupyterLab on loopback, from Enter to the new scene on the page; with a real language model, where it
has been fetched, in Python alone on one core.
"""

import platform
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import nbformat

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
RESULTS = ROOT / "benchmarks" / "results"
SCRUB = """async () => {
  const explorer = document.querySelector('.lft-explorer').explorer;
  const drawn = [], frames = [];
  for (let i = 0; i < 240; i++) {
    const now = await new Promise(requestAnimationFrame);
    frames.push(now);
    const started = performance.now();
    explorer.go(24 * (i % 120) / 120);
    drawn.push(performance.now() - started);
  }
  return { drawn: drawn.slice(20), frames: frames.slice(21).map((t, i) => t - frames[i + 20]) };
}"""
WANTED = {
    "scrub, script, ms": 16,
    "scrub, frame to frame, ms": 17,  # a screen of 60 frames a second
    "Enter to new trajectories, 128 tokens, ms": 1000,
    "kernel start to the first picture of notebook 00, s": 20,
    "exported file, 256 tokens, 4 students, MB": 6,
    "new text of 64 tokens, smollm2-135m, one core, s": 3,
}


def long_text(tokenizer, tokens: int, skip: int = 0) -> str:
    """Python of so many tokens, another for each ``skip``."""
    source = (ROOT / "lft_edu" / "trajectories.py").read_text()[skip:]
    while len(tokenizer(source)["input_ids"]) > tokens:
        source = source[: -max(1, (len(tokenizer(source)["input_ids"]) - tokens) // 2)]
    return source


def scrub(browser, explorer, folder: Path) -> dict:
    """Scrubbing an exported page, nothing selected, so that all tokens are drawn bright."""
    page_file = explorer.export_html(folder / "page.html")
    page = browser.new_page(viewport={"width": 1200, "height": 1100})
    page.goto(page_file.as_uri())
    page.wait_for_selector("[data-scene]")
    found = page.evaluate(SCRUB)
    page.close()
    return {
        "scrub, script, ms": evenly_spaced(found["drawn"]),
        "scrub, frame to frame, ms": evenly_spaced(found["frames"]),
        "exported file, 256 tokens, 4 students, MB": evenly_spaced([page_file.stat().st_size / 1e6]),
    }


def wait_for_texts(browser, lab: str, tokenizer) -> dict:
    """From Enter to the new scene, for ten texts of 128 tokens that the explorer has not seen."""
    from browsing import open_notebook, run_all

    page = browser.new_page(viewport={"width": 1500, "height": 1100})
    page.set_default_timeout(60_000)
    open_notebook(page, lab, "explorer.ipynb")
    run_all(page, until="Next token after")
    waited = []
    for i in range(11):
        page.fill(".lft-explorer textarea", long_text(tokenizer, 128, 400 * i))
        page.press(".lft-explorer textarea", "Enter")
        page.wait_for_selector(f"[data-scene='{i + 2}']")
        waited.append(float(page.get_attribute(".lft-explorer", "data-waited")))
    page.close()
    return {"Enter to new trajectories, 128 tokens, ms": evenly_spaced(waited[1:])}


def first_picture(rounds: int = 3) -> dict:
    """A fresh kernel, then the cells of notebook 00 up to its first figure."""
    from nbclient import NotebookClient

    book = nbformat.read(ROOT / "notebooks" / "00_start_here.ipynb", as_version=4)
    last = next(i for i, cell in enumerate(book.cells) if "plots.show" in cell.source)
    book.cells = book.cells[: last + 1]
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        NotebookClient(book, resources={"metadata": {"path": str(ROOT / "notebooks")}}).execute()
        seconds.append(time.perf_counter() - started)
    return {"kernel start to the first picture of notebook 00, s": evenly_spaced(seconds)}


def wait_with_a_real_model() -> dict:
    """A new text of 64 tokens in SmolLM2-135M and a student of it, on one core; empty where the model is missing."""
    import torch

    import lft_edu as lft
    from lft_edu.loading import gguf
    from lft_edu.support.machine import fastest_dtype

    if not gguf.is_ready("smollm2-135m"):
        return {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    teacher, tokenizer = lft.load_teacher("smollm2-135m", device="cpu", dtype=fastest_dtype(torch.device("cpu")))
    student = lft.splice(teacher, (8, 20), lft.Flow("midpoint", 1))
    explorer = lft.TrajectoryExplorer(teacher, student, tokenizer)
    seconds = []
    for i in range(6):
        started = time.perf_counter()
        explorer.show(text=long_text(tokenizer, 64, 400 * i))
        seconds.append(time.perf_counter() - started)
    torch.set_num_threads(threads)
    return {"new text of 64 tokens, smollm2-135m, one core, s": evenly_spaced(seconds)}


def evenly_spaced(values: list[float]) -> dict:
    ordered = sorted(values)
    return {
        "median": round(statistics.median(ordered), 2),
        "95 %": round(ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))], 2),
        "n": len(ordered),
    }


def render(results: dict) -> str:
    lines = [
        "# The trajectory explorer in a browser",
        "",
        f"{results['about']}. Two models × 25 depths and more × 256 tokens where nothing else is said.",
        "",
        "| | median | 95 % of cases below | wanted |",
        "|---|---|---|---|",
    ]
    for name, row in results["rows"].items():
        lines.append(f"| {name} | {row['median']:g} | {row['95 %']:g} | ≤ {WANTED[name]:g} |")
    return "\n".join([*lines, "", "`python benchmarks/explorer.py`", ""])


def main() -> None:
    import browsing
    from playwright.sync_api import sync_playwright

    import lft_edu as lft
    from lft_edu.explorer.app import STUDENTS
    from lft_edu.support.files import atomic_write, write_json

    rows = first_picture() | wait_with_a_real_model()
    teacher, tokenizer = lft.load_teacher("bundled", device="cpu")
    students = {name: lft.load_student(name, teacher) for name in STUDENTS}
    explorer = lft.TrajectoryExplorer(teacher, students, tokenizer, text=long_text(tokenizer, 256))
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as play, ExitStack() as stack:
        browsing.write_books(Path(folder))
        address = stack.enter_context(browsing.serve(Path(folder)))
        browser = play.chromium.launch(executable_path=browsing.CHROMIUM, args=browsing.FLAGS)
        rows |= scrub(browser, explorer, Path(folder)) | wait_for_texts(browser, address, tokenizer)
        version = browser.version
        browser.close()
    about = f"Chromium {version}, drawing without a GPU, {platform.machine()}, 2 slow cores"
    results = {"about": about, "rows": rows}
    write_json(RESULTS / "explorer.json", results)
    with atomic_write(RESULTS / "explorer.md") as partial:
        partial.write_text(render(results))
    print(render(results))


if __name__ == "__main__":
    main()
