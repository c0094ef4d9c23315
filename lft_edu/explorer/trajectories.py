"""The trajectory explorer: every token's path through a teacher and a student, in one frozen projection.

Python captures and projects; ``page/*.js`` draws. The slider, play button, selection and hover need no kernel, so they
also work in an exported file.
"""

import base64
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import anywidget
import traitlets

from .. import plots, projections
from ..families import layers_of
from ..loading.assets import ASSETS
from ..metrics import Failure
from ..operators import Flow
from ..projections import PCA, PREPARATIONS, UMAP, Projection, trustworthiness
from ..splicing import SplicedForCausalLM, check_pair
from ..support.errors import unknown_name_error
from ..support.files import atomic_write
from ..trajectories import Trajectory, capture, logit_lenses
from .naming import spoken, title_of
from .scene import TOP, Seen, describe, scene, see
from .stills import bundle, still

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PAGE = Path(__file__).with_name("page")
SCRIPTS = ("data.js", "picture.js", "saving.js", "panels.js", "controls.js", "explorer.js")
VIEWS = tuple(f"{kind} {dimensions}-D" for kind in ("PCA", "UMAP") for dimensions in (2, 3))
MAX_CACHED = 24  # captured trajectories
EXAMPLES = (
    "for name, value in sorted(items):\n    print(name)",
    "x = [1, 2, 3, 4, 5]",
    "class Point:\n    def __init__(self, x, y):\n        self.x = x",
    "if x > 0:\n    return x\nelse:\n    return -x",
)  # of the bundled teacher
SENTENCES = (
    "The capital of France is Paris. The capital of Italy is",
    "One, two, three, four, five,",
    "The river runs from the mountains to the",
)  # of any other


def page_source() -> tuple[str, str]:
    """Read the explorer's JavaScript module and its style sheet."""
    return "\n".join((PAGE / name).read_text("utf-8") for name in SCRIPTS), (PAGE / "explorer.css").read_text("utf-8")


class TrajectoryExplorer(anywidget.AnyWidget):
    """An application that compares the paths of a text's tokens through a teacher and a student.

    By keyboard: Tab moves between controls; arrow keys move the slider by one layer, and pan or rotate the figure;
    + and − zoom.

    Args:
        teacher: a causal language model.
        student: a spliced model, or name → spliced model.
        text: the first text shown.
        background: states ``(N, D)`` or trajectories of the teacher to fit the projections on. If None, the bundled
            states for the bundled teacher, and the first text for any other.
        gallery: student → failures found by :func:`~lft_edu.metrics.worst_tokens`, listed as links.
        substeps: additional states inside each step of a flow.
        examples: texts to click. If None, some Python for the bundled teacher and some English for any other.

    Attributes:
        depth: position of the slider, in layers.
        selected: positions of the selected tokens; empty for all.
        view: ``"PCA 2-D"``, ``"PCA 3-D"``, ``"UMAP 2-D"`` or ``"UMAP 3-D"``.

    Raises:
        ValueError: a student of another teacher, or a text that cannot be captured.
    """

    _esm, _css = page_source()
    scene = traitlets.Dict().tag(sync=True)
    students = traitlets.List(traitlets.Unicode()).tag(sync=True)
    titles = traitlets.Dict().tag(sync=True)  # student → its name for readers
    examples = traitlets.List(traitlets.Unicode()).tag(sync=True)
    gallery = traitlets.List().tag(sync=True)
    busy = traitlets.Unicode("").tag(sync=True)  # description of the running computation
    error = traitlets.Unicode("").tag(sync=True)
    live = traitlets.Bool(True).tag(sync=True)
    depth = traitlets.Float(0.0).tag(sync=True)
    view = traitlets.Enum(VIEWS, VIEWS[0]).tag(sync=True)
    selected = traitlets.List(traitlets.Int()).tag(sync=True)

    def __init__(
        self,
        teacher: "PreTrainedModel",
        student: SplicedForCausalLM | dict[str, SplicedForCausalLM],
        tokenizer: "PreTrainedTokenizerBase",
        text: str = "for name, value in sorted(items):\n    print(name)",
        background=None,
        gallery: dict[str, Sequence] | None = None,
        substeps: int = 3,
        examples: Sequence[str] | None = None,
    ):
        models = student if isinstance(student, dict) else {"student": student}
        if not models:
            raise ValueError("student is empty: give a spliced model, or a dict of name → spliced model.")
        for model in models.values():
            check_pair(model, teacher)
        super().__init__()
        self.teacher, self.models, self.tokenizer, self.substeps = teacher, dict(models), tokenizer, substeps
        self.background = background
        self._paths: dict[tuple, Seen] = {}
        self._projections: dict[tuple, tuple[Projection, float]] = {}
        self.students, self.titles = list(models), {name: title_of(name) for name in models}
        self.examples = list((EXAMPLES if self._is_bundled() else SENTENCES) if examples is None else examples)
        self.gallery = [
            {"label": caption(failure), "text": failure.text, "student": name, "focus": failure.token}
            for name, failures in (gallery or {}).items()
            for failure in failures
        ]
        self.settings = {
            "text": text, "student": self.students[0], "second": "", "preparation": "raw", "view": VIEWS[0]
        }  # fmt: skip
        self.solvers = {name: self._solver_of(model) for name, model in models.items()}
        self.scene = self._scene(self.settings, self.solvers)
        self.depth = float(len(layers_of(teacher)))
        self.on_msg(self._receive)
        self.observe(lambda change: self.settings.update(view=change["new"]), "view")

    def __repr__(self) -> str:
        names = ", ".join(self.students)
        return f"TrajectoryExplorer: {self.settings['text']!r} through teacher and {names}. Run this cell to open it."

    def show(self, **changes) -> None:
        """Change the display: ``text``, ``student``, ``second`` (a student to compare with, ``""`` for none),
        ``preparation``, ``view`` (``"PCA 2-D"``, ``"UMAP 3-D"``, …), and for a flow ``solver`` and ``steps``, those of
        ``student``. The models themselves keep their own solvers.

        Raises:
            ValueError: an unknown setting or value; the display stays as it was.
        """
        changes.pop("focus", None)
        settings, solvers = dict(self.settings), dict(self.solvers)
        if "num_steps" in changes:
            changes["steps"] = changes.pop("num_steps")
        asked = {"solver": "solver", "steps": "num_steps"}  # on the page → of the operator
        solver = {name: changes.pop(key) for key, name in asked.items() if key in changes}
        for key, value in changes.items():
            if key not in settings:
                raise unknown_name_error("setting", key, (*settings, "solver", "steps"))
            if not isinstance(value, str):
                raise ValueError(f"{key}={value!r}: give a string.")
            settings[key] = value
        for key, allowed in (("student", self.students), ("preparation", PREPARATIONS), ("view", VIEWS)):
            if settings[key] not in allowed:
                raise unknown_name_error(key, settings[key], allowed)
        if settings["second"] and settings["second"] not in self.students:
            raise unknown_name_error("student", settings["second"], self.students)
        if settings["second"] == settings["student"]:
            settings["second"] = ""
        if solver:
            before = solvers[settings["student"]]
            if before is None:
                raise ValueError("This operator has no solver and no steps: choose a student with a flow.")
            now = {**before, **solver}
            if not isinstance(now["num_steps"], int) or not 1 <= now["num_steps"] <= 64:
                raise ValueError(f"steps={now['num_steps']!r}: give a whole number from 1 to 64.")
            solvers[settings["student"]] = Flow(**now).settings  # Flow checks the solver's name
        shown = self._scene(settings, solvers)
        if settings["text"] != self.settings["text"]:
            self.selected = []  # they were positions in the old text
        self.settings, self.solvers, self.scene, self.view = settings, solvers, shown, settings["view"]

    def _repr_mimebundle_(self, **kwargs):
        """Return the widget, and a picture of the paths for where there is no kernel."""
        data, metadata = super()._repr_mimebundle_(**kwargs)
        return bundle(data, self.picture()), metadata

    def picture(self) -> str:
        """Return the paths of the current text as HTML: a static picture with its description."""
        name = self.settings["student"]
        paths = [seen.path for seen in self._paths_of(self.settings["text"], {name: self.solvers[name]})]
        projection, _ = self._projection("PCA 2-D", self.settings["preparation"], paths[0])
        named = dict(zip(("teacher", self.titles[name]), paths, strict=True))
        figure = plots.trajectory(
            named, projection, title=f"Hidden states through depth: teacher and {self.titles[name]}"
        )
        return still(figure, f"Paths of the tokens of a text through the teacher and {self.titles[name]}.")

    def _receive(self, _, message: dict, buffers) -> None:
        """Handle a request of the page; show errors there."""
        changes = message.get("ask") if isinstance(message, dict) else None
        if not isinstance(changes, dict):
            return
        slow = str(changes.get("view", "")).startswith("UMAP") and not self._is_bundled()
        self.busy = "computing a UMAP: up to a minute" if slow else "computing"
        try:
            self.show(**changes)
            self.error = ""
        except (ValueError, TypeError, RuntimeError) as error:
            self.error = ""  # an unchanged value would not be sent again
            self.error = str(error)
        finally:
            self.busy = ""

    def _solver_of(self, model) -> dict | None:
        return dict(model.operator.settings) if isinstance(model.operator, Flow) else None

    def _scene(self, settings: dict, solvers: dict, views: Sequence[str] | None = None) -> dict:
        names = [settings["student"], *filter(None, [settings["second"]])]
        teacher, *seen = self._paths_of(settings["text"], {name: solvers[name] for name in names})
        ready = [view for view in VIEWS if view.startswith("PCA") or view == settings["view"] or self._is_bundled()]
        chosen = {view: self._projection(view, settings["preparation"], teacher.path) for view in views or ready}
        abouts = [describe(self.models[name], solvers[name]) for name in names]
        shown = scene(teacher, list(zip(names, abouts, seen, strict=True)), chosen)
        solver = solvers[names[0]] or {"solver": None, "num_steps": None}
        return shown | {"settings": {**settings, "solver": solver["solver"], "steps": solver["num_steps"]}}

    def _paths_of(self, text: str, solvers: dict[str, dict | None]) -> list[Seen]:
        """Capture a text in the teacher and in students, with logit lenses; cached until the weights change."""
        wanted: dict[tuple, tuple[str | None, dict | None]] = {}
        for who, settings in ((None, None), *solvers.items()):
            model = self.teacher if who is None else self.models[who]
            trained = sum(p._version for p in model.parameters())  # counts changes in place
            wanted[who, text, trained, *(settings or {}).values()] = who, settings
        new = {key: self._capture(who, text, how) for key, (who, how) in wanted.items() if key not in self._paths}
        if new:
            lenses = dict(zip(new, logit_lenses(list(new.values()), TOP), strict=True))
            first = next(iter(wanted))
            of_teacher = lenses[first] if first in new else self._paths[first].lens
            expected = of_teacher.ids[-1, :, 0]
            self._paths |= {key: see(path, lenses[key], expected) for key, path in new.items()}
        found = [self._paths[key] for key in wanted]
        while len(self._paths) > MAX_CACHED:
            self._paths.pop(next(iter(self._paths)))
        return found

    def _capture(self, name: str | None, text: str, solver: dict | None) -> Trajectory:
        """Capture a text in a student, or the teacher (None)."""
        if name is None or solver is None:
            return capture(self.teacher if name is None else self.models[name], self.tokenizer, text, 0)
        model, own = self.models[name], self._solver_of(self.models[name])
        try:
            return capture(model.set_solver(**solver), self.tokenizer, text, self.substeps)
        finally:
            model.set_solver(**own)

    def _projection(self, view: str, preparation: str, teacher: Trajectory) -> tuple[Projection, float]:
        """Return the projection of a view and its trustworthiness, fitted at first use."""
        kind, dimensions = view.split()[0], int(view.split()[1][0])
        if (view, preparation) not in self._projections:
            if self._is_bundled():
                background = projections.bundled_states()
                projection = projections.bundled(kind, dimensions, preparation)
            else:
                if self.background is None:
                    self.background = teacher  # fit on the first text, for all later ones too
                background = self.background
                projection = (PCA if kind == "PCA" else UMAP)(dimensions, preparation).fit(background)
            trust = trustworthiness(projection, background, most=500)
            self._projections[view, preparation] = projection, trust
        return self._projections[view, preparation]

    def _is_bundled(self) -> bool:
        return self.background is None and Path(self.teacher.name_or_path) == ASSETS / "teacher"

    def export_html(self, path: str | Path) -> Path:
        """Write the current text, with all students and all computed views, as one offline HTML file.

        Returns:
            The path written.

        Raises:
            ValueError: ``path`` does not end in .html, or its folder does not exist.
        """
        path = Path(path).expanduser()
        if path.suffix.lower() not in (".html", ".htm"):
            raise ValueError(f"{path}: give the file to write, ending in .html.")
        if not path.parent.is_dir():
            raise ValueError(f"{path.parent} is not a folder: create it, or give another path.")
        shown = self.settings["student"]
        order = [shown, *(name for name in self.students if name != shown)]
        views = [view for view in VIEWS if view in self.scene["views"]]
        alone = {**self.settings, "second": ""}  # the page puts two together
        scenes = {name: self._scene({**alone, "student": name}, self.solvers, views) for name in order}
        known = [t for t in self.selected if 0 <= t < len(self.scene["tokens"])]
        shown = {"depth": self.depth, "selected": known, "second": self.settings["second"]}
        with atomic_write(path) as partial:
            partial.write_text(standalone(scenes, shown), "utf-8", "replace")
        return path

    def export_png(self, path: str | Path, width: int = 1200, height: int = 1150) -> Path:
        """Write a screenshot of the page, ``width`` × ``height`` CSS pixels, with Chrome or Chromium and playwright.

        Raises:
            ValueError: one of them is missing.
        """
        import tempfile

        browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        try:
            from playwright.sync_api import sync_playwright
        except ImportError:
            browser = None
        if browser is None:
            raise ValueError(
                "export_png needs Chrome or Chromium and `pip install playwright`. export_html needs neither: open the "
                "file in any browser and print it."
            )
        with tempfile.TemporaryDirectory() as folder, sync_playwright() as play:
            page_file = self.export_html(Path(folder) / "page.html")
            chrome = play.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
            page = chrome.new_page(viewport={"width": width, "height": height}, device_scale_factor=2)
            page.goto(page_file.as_uri())
            page.wait_for_selector("[data-scene]")
            picture = page.screenshot()
            chrome.close()
        path = Path(path).expanduser()
        with atomic_write(path) as partial:
            partial.write_bytes(picture)
        return path


def caption(failure: Failure) -> str:
    """Describe a failure in one line."""
    word, expected, given = (spoken(word) for word in (failure.word, failure.expected, failure.given))
    return f"{failure.kl:.2f} nats after {word}: teacher {expected}, student {given}"


def standalone(scenes: dict[str, dict], shown: dict) -> str:
    """Return an HTML page with these scenes (student → scene) that makes no requests.

    Args:
        shown: what it shows at first: ``depth``, ``selected`` tokens, and the name of a ``second`` student or ``""``.
    """
    script, style = page_source()
    teacher, *_ = next(iter(scenes.values()))["models"]  # the same in all of them: written only once
    scenes = {name: {**one, "models": [None, one["models"][1]]} for name, one in scenes.items()}
    data = {"scenes": scenes, "teacher": teacher, **shown}
    text = json.dumps(data, default=lambda raw: base64.b64encode(raw).decode(), allow_nan=False)
    for character in "<>&\u2028\u2029":  # so that no text can end its script
        text = text.replace(character, f"\\u{ord(character):04x}")
    page = (PAGE / "standalone.html").read_text("utf-8")
    for mark, part in (("/*style*/", style), ("/*script*/", script), ("/*data*/", text)):
        page = page.replace(mark, part)
    return page
