"""Lesson 08 where there is a hub: a server on loopback offers Pythia-410M, at its real width, and WikiText."""

from pathlib import Path

import nbformat
import pytest
from hub import Hub, hub_environment, parquet_bytes, tiny_pythia
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "08_compressing_a_real_language_model.ipynb"
LINES = [f" = Chapter {i} = \n" if i % 40 == 0 else f" The river number {i} runs to the sea . \n" for i in range(4000)]


@pytest.mark.slow
def test_lesson_08_with_a_hub(tmp_path, bundled):
    parts = {"train-00000-of-00002": LINES[:2000], "train-00001-of-00002": LINES[2000:], "test-00000-of-00001": LINES}
    files = {f"wikitext-103-raw-v1/{name}.parquet": parquet_bytes(texts) for name, texts in parts.items()}
    splits = "".join(f"  - {{split: {s}, path: wikitext-103-raw-v1/{s}-*}}\n" for s in ("train", "test"))
    files["README.md"] = f"---\nconfigs:\n- config_name: wikitext-103-raw-v1\n  data_files:\n{splits}---\n".encode()
    with Hub(tmp_path / "hub") as hub:
        model = tiny_pythia(tmp_path / "model", bundled[1], layers=4, shape="pythia-410m")
        hub.add("EleutherAI/pythia-410m", model)
        hub.add("Salesforce/wikitext", files, kind="dataset")
        book = nbformat.read(NOTEBOOK, as_version=4)
        (settings,) = [cell for cell in book.cells if "PYTHIA = HUB and GPU" in cell.source]
        # as if there were a GPU, and time for one step of 32 × 256 tokens
        for there, here in (("PYTHIA = HUB and GPU", "PYTHIA = HUB"), ("50_000_000", "2_560"), ("100_000", "1_024")):
            assert there in settings.source
            settings.source = settings.source.replace(there, here)
        for cell in book.cells:
            cell.source = cell.source.replace('Path("runs/lesson08")', f"Path({str(tmp_path / 'runs')!r})")
        place = {"metadata": {"path": str(NOTEBOOK.parent)}}
        client = NotebookClient(book, timeout=600, kernel_name="python3", resources=place)
        client.execute(env=hub_environment(hub, tmp_path / "home"))
        assert hub.missed == []
        asked = {path for _, path, _ in hub.requests}
    printed = "\n".join(o.text for cell in book.cells if cell.cell_type == "code" for o in cell.outputs if "text" in o)
    assert printed.startswith("This page runs on EleutherAI/pythia-410m: 4 layers, width 1024.")
    assert "Flow Walking, 8,192 tokens" in printed, printed
    assert "skipping the best 2" in printed
    assert any(path.endswith("train-00001-of-00002.parquet") for path in asked)
