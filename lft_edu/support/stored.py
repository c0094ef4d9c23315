"""Save notebooks without dead widget views: an extension of the Jupyter server, which ``lft-edu lab`` switches on, with
one of JupyterLab beside it, in ``lab/``, by which animated figures are worked by keyboard.

A widget lives in its kernel. JupyterLab saves a reference to it, prefers that to everything else in the output, and
shows "Error displaying widget: model not found" when the notebook is opened again. The extension drops the reference
from what is saved and leaves the output's fallback: the course's applications bring a picture and a sentence.
"""

from pathlib import Path

LAB = Path(__file__).with_name("lab")
KEYS_JS = LAB / "lft-edu-figures" / "keys.js"  # not in static/, which browsers keep for a year
VIEW = "application/vnd.jupyter.widget-view+json"
SENTENCE = "An interactive widget: run this cell to use it."


def without_views(book: dict) -> int:
    """Remove widget views from the outputs of a notebook, in place; return how many there were.

    An output that has nothing else to show than a widget's ``repr`` gets a sentence in its place. Outputs without data,
    which progress bars leave, are removed.
    """
    removed = 0
    for cell in book.get("cells", ()):
        if cell.get("cell_type") != "code":
            continue
        cell["outputs"] = [output for output in cell.get("outputs", ()) if output.get("data") != {}]
        for output in cell["outputs"]:
            data = output.get("data")
            if isinstance(data, dict) and data.pop(VIEW, None) is not None:
                removed += 1
                if set(data) <= {"text/plain"}:
                    data["text/plain"] = SENTENCE
    book.get("metadata", {}).pop("widgets", None)
    return removed


def before_saving(model: dict, **_) -> None:
    """Clean a notebook that the contents manager is about to save."""
    if model.get("type") == "notebook" and isinstance(model.get("content"), dict):
        without_views(model["content"])


def _jupyter_server_extension_points() -> list[dict]:
    return [{"module": __name__}]


def _load_jupyter_server_extension(app) -> None:
    app.contents_manager.register_pre_save_hook(before_saving)


FLAGS = (  # of JupyterLab
    f"--ServerApp.jpserver_extensions={{'{__name__}': True}}",
    f"--LabApp.extra_labextensions_path={LAB}",
    "--LabApp.news_url=None",  # or the first thing a learner is asked is whether to get news of Jupyter
)
