"""The trajectory explorer: every token's path through a teacher beside its path through a student, on one frozen map.

Python captures, projects and answers; ``page/*.js`` draws. Scrubbing, playing, selecting and hovering never ask the
kernel, so they work in an exported file, too.
"""

import base64
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import anywidget
import traitlets

from .. import projections
from ..families import layers_of
from ..loading.assets import ASSETS
from ..metrics import Failure
from ..operators import Flow
from ..plots.base import visible
from ..projections import PCA, PREPARATIONS, UMAP, Projection, trustworthiness
from ..splicing import SplicedForCausalLM, check_pair
from ..support.errors import unknown_name_error
from ..support.files import atomic_write
from ..trajectories import Lens, Trajectory, capture
from .scene import TOP, describe, scene

PAGE = Path(__file__).with_name("page")
SCRIPTS = ("data.js", "picture.js", "panels.js", "controls.js", "explorer.js")
VIEWS = tuple(f"{kind} {dimensions}-D" for kind in ("PCA", "UMAP") for dimensions in (2, 3))
KEPT = 24  # captured texts


def page_source() -> tuple[str, str]:
    """The explorer's JavaScript module and its style sheet."""
    return "\n".join((PAGE / name).read_text("utf-8") for name in SCRIPTS), (PAGE / "explorer.css").read_text("utf-8")


class TrajectoryExplorer(anywidget.AnyWidget):
    """Type a text; watch its tokens go through the teacher and through a student; ask what the picture hides.

    Everything works by keyboard: Tab to a control; arrow keys on the slider step layer by layer, on the picture they
    turn or shift it, + and − make it larger and smaller.

    Args:
        teacher: a causal language model.
        student: a spliced model, or name → spliced model.
        text: what is flown first.
        background: states ``(N, D)`` of the teacher, or trajectories, that the maps are fitted on. If None: for the
            bundled teacher the states that ship with it; for any other the first text.
        gallery: what :func:`~lft_edu.metrics.worst_tokens` found, student → failures; each one click away.
        between: pictures inside each step of a flow.

    Attributes:
        depth: where the slider stands, in layers.
        selected: positions of the selected tokens; none means all.
        view: ``"PCA 2-D"`` and so on.

    Raises:
        ValueError: students that do not fit the teacher, or a text that cannot be captured.
    """

    _esm, _css = page_source()
    scene = traitlets.Dict().tag(sync=True)
    students = traitlets.List(traitlets.Unicode()).tag(sync=True)
    gallery = traitlets.List().tag(sync=True)
    busy = traitlets.Unicode("").tag(sync=True)  # what is being computed
    error = traitlets.Unicode("").tag(sync=True)
    live = traitlets.Bool(True).tag(sync=True)
    depth = traitlets.Float(0.0).tag(sync=True)
    view = traitlets.Enum(VIEWS, VIEWS[0]).tag(sync=True)
    selected = traitlets.List(traitlets.Int()).tag(sync=True)

    def __init__(
        self,
        teacher,
        student: SplicedForCausalLM | dict[str, SplicedForCausalLM],
        tokenizer,
        text: str = "for name, value in sorted(items):\n    print(name)",
        background=None,
        gallery: dict[str, Sequence] | None = None,
        between: int = 3,
    ):
        models = student if isinstance(student, dict) else {"student": student}
        if not models:
            raise ValueError("There is no student: give a spliced model, or name → spliced model.")
        for model in models.values():
            check_pair(model, teacher)
        super().__init__()
        self.teacher, self.models, self.tokenizer, self.between = teacher, dict(models), tokenizer, between
        self.background = background
        self._paths: dict[tuple, tuple[Trajectory, Lens]] = {}
        self._projections: dict[tuple, tuple[Projection, float]] = {}
        self.students = list(models)
        self.gallery = [
            {"label": caption(name, failure), "text": failure.text, "student": name, "focus": failure.token}
            for name, failures in (gallery or {}).items()
            for failure in failures
        ]
        self.settings = {"text": text, "student": self.students[0], "preparation": "raw", "view": VIEWS[0]}
        self.walks = {name: self._walk_of(model) for name, model in models.items()}
        self.scene = self._scene(self.settings, self.walks)
        self.depth = float(len(layers_of(teacher)))
        self.on_msg(self._receive)
        self.observe(lambda change: self.settings.update(view=change["new"]), "view")

    def __repr__(self) -> str:
        names = ", ".join(self.students)
        return f"TrajectoryExplorer: {self.settings['text']!r} through teacher and {names}. Run this cell to open it."

    def show(self, **changes) -> None:
        """Change what is shown: ``text``, ``student``, ``preparation``, ``view`` (``"PCA 2-D"``, ``"UMAP 3-D"``, …),
        and for a flow ``solver`` and ``steps``. A model keeps its own solver: it is only looked at with another.

        Raises:
            ValueError: what cannot be shown; the picture stays as it was.
        """
        changes.pop("focus", None)
        settings, walks = dict(self.settings), dict(self.walks)
        walk = {key: changes.pop(key) for key in ("solver", "steps") if key in changes}
        for key, value in changes.items():
            if key not in settings:
                raise unknown_name_error("setting", key, (*settings, "solver", "steps"))
            if not isinstance(value, str):
                raise ValueError(f"{key}={value!r}: give a string.")
            settings[key] = value
        for key, allowed in (("student", self.students), ("preparation", PREPARATIONS), ("view", VIEWS)):
            if settings[key] not in allowed:
                raise unknown_name_error(key, settings[key], allowed)
        if walk:
            before = walks[settings["student"]]
            if before is None:
                raise ValueError("This operator has no solver and no steps; only a flow has.")
            now = {**before, **walk}
            if not isinstance(now["steps"], int) or not 1 <= now["steps"] <= 64:
                raise ValueError(f"steps={now['steps']!r}: give a whole number from 1 to 64.")
            walks[settings["student"]] = Flow(**now).settings  # Flow checks the solver's name
        shown = self._scene(settings, walks)
        if settings["text"] != self.settings["text"]:
            self.selected = []  # positions in the text before
        self.settings, self.walks, self.scene, self.view = settings, walks, shown, settings["view"]

    def _receive(self, _, message: dict, buffers) -> None:
        """The page asks; whatever goes wrong is said on the page."""
        changes = message.get("ask") if isinstance(message, dict) else None
        if not isinstance(changes, dict):
            return
        slow = str(changes.get("view", "")).startswith("UMAP") and not self._has_atlas()
        self.busy = "drawing a UMAP: up to a minute" if slow else "computing"
        try:
            self.show(**changes)
            self.error = ""
        except (ValueError, TypeError, RuntimeError) as error:
            self.error = ""  # the same mistake twice is said twice
            self.error = str(error)
        finally:
            self.busy = ""

    def _walk_of(self, model) -> dict | None:
        return dict(model.operator.settings) if isinstance(model.operator, Flow) else None

    def _scene(self, settings: dict, walks: dict, views: Sequence[str] | None = None) -> dict:
        name = settings["student"]
        model, walk = self.models[name], walks[name]
        teacher, student = self._path(None, settings["text"], None), self._path(name, settings["text"], walk)
        ready = [view for view in VIEWS if view.startswith("PCA") or view == settings["view"] or self._has_atlas()]
        chosen = {view: self._projection(view, settings["preparation"], teacher[0]) for view in views or ready}
        shown = scene((teacher, student), chosen, name, describe(model, walk))
        return shown | {"settings": {**settings, "solver": None, "steps": None, **(walk or {})}}

    def _path(self, name: str | None, text: str, walk: dict | None) -> tuple[Trajectory, Lens]:
        """A text captured by a student, or by the teacher (None), and read by the logit lens: computed once for each
        solver, and again after training."""
        model = self.teacher if name is None else self.models[name]
        trained = sum(p._version for p in model.parameters())  # counts changes in place
        key = (name, text, trained, *(walk or {}).values())
        if key not in self._paths:
            own = None if name is None else self._walk_of(model)
            try:
                if walk:
                    model.set_solver(**walk)
                path = capture(model, self.tokenizer, text, self.between if walk else 0)
            finally:
                if own:
                    model.set_solver(**own)
            while len(self._paths) >= KEPT:
                self._paths.pop(next(iter(self._paths)))
            self._paths[key] = path, path.logit_lens(TOP)
        return self._paths[key]

    def _projection(self, view: str, preparation: str, teacher: Trajectory) -> tuple[Projection, float]:
        """The frozen map of a view and how far its neighbours can be trusted; fitted when first asked for."""
        kind, dimensions = view.split()[0], int(view.split()[1][0])
        if (view, preparation) not in self._projections:
            if self._has_atlas():
                background = projections.bundled_states()
                projection = projections.bundled(kind, dimensions, preparation)
            else:
                if self.background is None:
                    self.background = teacher  # the first text: later ones are drawn on its map
                background = self.background
                projection = (PCA if kind == "PCA" else UMAP)(dimensions, preparation).fit(background)
            trust = trustworthiness(projection, background, most=500)
            self._projections[view, preparation] = projection, trust
        return self._projections[view, preparation]

    def _has_atlas(self) -> bool:
        return self.background is None and Path(self.teacher.name_or_path) == ASSETS / "teacher"

    def export_html(self, path: str | Path) -> Path:
        """Write what is shown, with every student and every view at hand, as one HTML file that needs no network.

        Returns:
            The file written.

        Raises:
            ValueError: no .html file, or no such folder.
        """
        path = Path(path).expanduser()
        if path.suffix.lower() not in (".html", ".htm"):
            raise ValueError(f"{path}: name the file to write, ending in .html.")
        if not path.parent.is_dir():
            raise ValueError(f"{path.parent} is no folder: make it first, or name another.")
        shown = self.settings["student"]
        order = [shown, *(name for name in self.students if name != shown)]
        views = [view for view in VIEWS if view in self.scene["views"]]
        scenes = {name: self._scene({**self.settings, "student": name}, self.walks, views) for name in order}
        known = [t for t in self.selected if 0 <= t < len(self.scene["tokens"])]
        with atomic_write(path) as partial:
            partial.write_text(standalone(scenes, self.depth, known), "utf-8", "replace")
        return path

    def export_png(self, path: str | Path, width: int = 1200, height: int = 1150) -> Path:
        """Write a picture of the page as it is now. Takes Chrome or Chromium, and playwright.

        Raises:
            ValueError: neither is there; use :meth:`export_html` and any browser's own means instead.
        """
        import tempfile

        browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        try:
            from playwright.sync_api import sync_playwright
        except ImportError:
            browser = None
        if browser is None:
            raise ValueError(
                "A PNG takes Chrome or Chromium and `pip install playwright`. export_html works without: open the file "
                "in any browser and print it."
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


def caption(student: str, failure: Failure) -> str:
    """A failure in one line."""
    word, expected, given = (f"“{visible(word)}”" for word in (failure.word, failure.expected, failure.given))
    return f"{student}: after {word} {failure.kl:.2f} nats; teacher {expected}, student {given}"


def standalone(scenes: dict[str, dict], depth: float, selected: list[int]) -> str:
    """An HTML page with these scenes, student → scene, that no request ever leaves."""
    script, style = page_source()
    teacher, *_ = next(iter(scenes.values()))["models"]  # the same in all of them: written once
    scenes = {name: {**one, "models": [None, one["models"][1]]} for name, one in scenes.items()}
    data = {"scenes": scenes, "teacher": teacher, "depth": depth, "selected": selected}
    text = json.dumps(data, default=lambda raw: base64.b64encode(raw).decode(), allow_nan=False)
    for character in "<>&\u2028\u2029":  # no text ends its script
        text = text.replace(character, f"\\u{ord(character):04x}")
    page = (PAGE / "standalone.html").read_text("utf-8")
    for mark, part in (("/*style*/", style), ("/*script*/", script), ("/*data*/", text)):
        page = page.replace(mark, part)
    return page
