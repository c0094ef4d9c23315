"""The trajectory explorer's data, its refusals and its files; what it draws is tested in a browser."""

import json
import re

import numpy as np
import pytest
import torch

import lft_edu as lft
from lft_edu import plots
from lft_edu.cli import main
from lft_edu.explorer import app, trajectories
from lft_edu.explorer.naming import color_of, spoken, title_of
from lft_edu.explorer.scene import packed, unpacked
from lft_edu.explorer.stills import STILL
from lft_edu.loading import gguf
from lft_edu.loading.assets import NOTEBOOKS
from lft_edu.loading.teachers import build_model
from lft_edu.plots import visible
from lft_edu.projections import PREPARATIONS
from lft_edu.support.machine import fastest_dtype

TEXT = "if x:\n    return"


@pytest.fixture(scope="module")
def models(bundled):
    teacher, tokenizer = bundled
    names = ("flow-walking", "ridge")
    return teacher, {name: lft.load_student(f"bundled/{name}-6-18", teacher) for name in names}, tokenizer


@pytest.fixture
def explorer(models):
    return lft.TrajectoryExplorer(*models, text=TEXT)


def test_a_scene_holds_what_was_captured_and_projected(explorer, models):
    teacher, students, tokenizer = models
    paths = [lft.capture(teacher, tokenizer, TEXT), lft.capture(students["flow-walking"], tokenizer, TEXT, substeps=3)]
    scene = explorer.scene
    assert scene["tokens"] == [visible(token) for token in paths[0].tokens]
    for data, path in zip(scene["models"], paths, strict=True):
        np.testing.assert_allclose(unpacked(data["times"]), path.times, rtol=1e-6)
        np.testing.assert_allclose(unpacked(data["norms"]), path.norms(), rtol=1e-5)
        lens = path.logit_lens(5)
        assert (unpacked(data["lens_ids"]) == lens.ids.numpy()).all()
        assert {scene["words"][str(i)] for i in lens.ids.unique().tolist()} == {visible(w) for w in lens.words.values()}
        for view, points in data["points"].items():
            kind, dimensions = view.split()[0], int(view.split()[1][0])
            expected = lft.projections.bundled(kind, dimensions).transform(path)
            np.testing.assert_allclose(unpacked(points), expected, rtol=1e-4, atol=1e-4)
    for view, about in scene["views"].items():
        if view.startswith("PCA"):
            assert "landmarks" not in about
            continue
        drawn = unpacked(about["landmarks"])
        places = lft.projections.bundled("UMAP", drawn.shape[1]).places
        assert 500 < len(drawn) <= 1000
        assert (np.abs(drawn[:, None] - places[None]).max(-1).min(1) < 1e-5).all(), "they are the map's own states"
    kl = lft.trajectories.divergence(*paths)
    np.testing.assert_allclose(unpacked(scene["models"][1]["kl"]), kl.clamp_min(0), atol=1e-5)
    depths = lft.trajectories.shared_depths(*paths)
    np.testing.assert_allclose(unpacked(scene["models"][1]["shared"]), depths)
    pair = paths[0].at(depths), paths[1].at(depths)
    np.testing.assert_allclose(unpacked(scene["models"][1]["apart"]), (pair[0] - pair[1]).norm(dim=-1), atol=1e-4)
    found = lft.projections.distortion(lft.projections.bundled("PCA"), *(x[:, 1:] for x in pair))
    assert scene["models"][1]["distortion"]["PCA 2-D"]["hidden"] == pytest.approx(found.hidden, abs=1e-6)
    assert scene["models"][1]["distortion"]["PCA 2-D"]["agreement"] == pytest.approx(found.agreement, abs=1e-6)
    assert scene["models"][1]["distortion"]["UMAP 2-D"]["hidden"] is None
    for data, path in zip(scene["models"], paths, strict=True):
        final = path.log_probabilities().exp()
        ids = torch.stack([paths[0].log_probabilities().argmax(-1), path.ids.roll(-1)], -1)
        tracked = unpacked(data["tracked"])
        np.testing.assert_allclose(tracked[-1, :-1], final.gather(1, ids)[:-1], rtol=1e-3, atol=1e-5)
        assert np.isnan(tracked[:, -1, 1]).all()  # nothing follows the last token
        between = torch.cdist(path.states[5], path.states[5])[2]
        between[2] = np.inf
        assert unpacked(data["near"])[5, 2].tolist() == between.argsort()[:4].tolist()
        np.testing.assert_allclose(unpacked(data["distances"])[5, 2], between.sort().values[:4], rtol=1e-3)
    assert scene["targets"] == [visible(tokenizer.decode([i])) for i in ids[:, 0].tolist()]


def test_two_students_are_shown_at_once(explorer, models):
    alone = explorer.scene["models"][1]
    explorer.show(second="ridge")
    teacher, first, second = explorer.scene["models"]
    assert [teacher["title"], first["title"], second["title"]] == ["teacher", "Flow Walking", "ridge"]
    assert first == alone
    paths = [lft.capture(model, models[2], TEXT) for model in (models[0], models[1]["ridge"])]
    np.testing.assert_allclose(unpacked(second["kl"]), lft.trajectories.divergence(*paths), atol=1e-4)
    assert len({teacher["color"], first["color"], second["color"]}) == 3
    explorer.show(student="ridge")  # not a student beside itself
    assert explorer.settings["second"] == ""
    assert len(explorer.scene["models"]) == 2


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("bundled/flow-walking-6-18", "Flow Walking, 6–18"),
        ("smollm2-135m/flow-matching-kl-13-19", "flow matching, then KL, 13–19"),
        ("ridge", "ridge"),
        ("my <b>run</b>", "my <b>run</b>"),
        ("runs/flow-surfing-6-18", "runs/flow-surfing-6-18"),
    ],
)
def test_students_have_names_for_readers(name, title):
    assert title_of(name) == title


def test_an_operator_keeps_its_color():
    names = ("bundled/flow-walking-6-18", "Flow Walking, 8–20", "flow_walking")
    assert {color_of(name) for name in names} == {plots.COLORS["flow-walking"]}
    assert color_of("mine") != color_of("mine", 1)


def test_spaces_are_counted_in_words():
    assert spoken("\n" + 15 * " ") == "line break + 15 spaces"
    assert spoken(" ") == "1 space"
    assert spoken("\n\n\t") == "2 line breaks + 1 tab"
    assert spoken(" name") == "“·name”"
    assert "\u202e" not in spoken("\u202e")


def test_a_saved_notebook_keeps_a_picture(explorer):
    data, _ = explorer._repr_mimebundle_()
    assert data["text/plain"] == STILL
    assert "src='data:image/png;base64," in data["text/html"]
    assert len(data["text/html"]) < 60_000


def test_packed_arrays_come_back(generator):
    for array in (torch.randn(2, 3, generator=generator), np.arange(6).reshape(3, 2)):
        kind = "float32" if isinstance(array, torch.Tensor) else "int32"
        np.testing.assert_array_equal(unpacked(packed(array, kind)), np.asarray(array))


def test_settings_change_the_scene_and_leave_the_models_alone(explorer, models):
    student = models[1]["flow-walking"]
    before = unpacked(explorer.scene["models"][1]["kl"]).copy()
    explorer.show(solver="euler", steps=1)
    assert explorer.scene["models"][1]["about"] == "layers 6–18 → flow, euler × 1"
    student_alone = lft.load_student("bundled/flow-walking-6-18", models[0]).set_solver("euler", 1)
    paths = [lft.capture(model, models[2], TEXT) for model in (models[0], student_alone)]
    np.testing.assert_allclose(
        unpacked(explorer.scene["models"][1]["kl"]), lft.trajectories.divergence(*paths), atol=1e-4
    )
    assert not np.allclose(before, unpacked(explorer.scene["models"][1]["kl"]), atol=1e-3)
    assert student.operator.settings == {"solver": "midpoint", "num_steps": 3}  # only looked at otherwise
    explorer.show(student="ridge")
    assert explorer.scene["settings"]["steps"] is None
    explorer.show(student="flow-walking")
    assert explorer.scene["settings"]["steps"] == 1  # each student keeps the walk it was given
    for preparation in PREPARATIONS:
        explorer.show(preparation=preparation, view="UMAP 3-D")
        assert unpacked(explorer.scene["models"][0]["points"]["UMAP 3-D"]).shape[-1] == 3


def test_nothing_is_computed_twice(explorer, monkeypatch):
    ran = []
    capture = trajectories.capture
    monkeypatch.setattr(trajectories, "capture", lambda *a: (ran.append(a[2]), capture(*a))[1])
    explorer.show(view="UMAP 2-D")
    explorer.show(preparation="unit")
    assert not ran  # other maps of the same states
    explorer.show(text="y = 2")
    assert ran == ["y = 2"] * 2
    explorer.show(student="ridge")
    explorer.show(text=TEXT)
    assert len(ran) == 4  # the teacher's are known
    for i in range(2 * trajectories.MAX_CACHED):
        explorer.show(text=f"x{i}")
    assert len(explorer._paths) <= trajectories.MAX_CACHED


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": ""}, "type some Python"),
        ({"text": 3}, "give a string"),
        ({"text": ["x"]}, "give a string"),
        ({"student": "flow-walkin"}, "Did you mean 'flow-walking'"),
        ({"view": "PCA"}, "Unknown view"),
        ({"second": "rige"}, "Did you mean 'ridge'"),
        ({"preparation": "layer-norm"}, "Did you mean 'layernorm'"),
        ({"steps": 0}, "from 1 to 64"),
        ({"steps": 2.5}, "from 1 to 64"),
        ({"solver": "rk4"}, "choose one of euler, midpoint"),
        ({"depht": 3}, "Unknown setting"),
        ({"student": "ridge", "steps": 2}, "no solver and no steps"),
    ],
)
def test_a_mistake_is_said_and_changes_nothing(explorer, changes, message):
    shown, settings = explorer.scene, dict(explorer.settings)
    with pytest.raises(ValueError, match=message):
        explorer.show(**changes)
    assert explorer.scene is shown
    assert explorer.settings == settings
    explorer._receive(None, {"ask": changes}, [])
    assert re.search(message, explorer.error)
    assert explorer.busy == ""
    explorer._receive(None, {"ask": {"text": "z"}}, [])
    assert explorer.error == ""
    assert explorer.scene["text"] == "z"


def test_a_selection_belongs_to_its_text(explorer, tmp_path):
    explorer.selected = [2, 3]
    explorer.show(student="ridge")
    assert explorer.selected == [2, 3]
    explorer.show(text="y = 1")
    assert explorer.selected == []
    explorer.selected = [1, 99]
    page = explorer.export_html(tmp_path / "page.html").read_text("utf-8")
    assert json.loads(re.search(r"const given = (\{.*\});\n", page)[1])["selected"] == [1]


def test_the_view_chosen_on_the_page_is_what_is_exported(explorer, tmp_path):
    explorer.view = "UMAP 3-D"  # as the page does
    explorer.show(student="ridge")
    assert explorer.view == explorer.scene["settings"]["view"] == "UMAP 3-D"
    explorer.show(view="PCA 3-D")
    assert explorer.view == "PCA 3-D"


def test_a_student_trained_further_is_captured_anew(bundled):
    teacher, tokenizer = bundled
    student = lft.load_student("bundled/flow-walking-6-18", teacher)
    explorer = lft.TrajectoryExplorer(teacher, {"": student}, tokenizer, text=TEXT)
    before = unpacked(explorer.scene["models"][1]["kl"]).mean()
    with torch.no_grad():
        for p in student.operator.parameters():
            p.zero_()
    explorer.show(text=TEXT)
    assert unpacked(explorer.scene["models"][1]["kl"]).mean() > 2 * before  # and a student without a name is no teacher


def test_the_page_is_told_while_something_is_computed(explorer):
    told = []
    explorer.observe(lambda change: told.append(change["new"]), "busy")
    explorer._receive(None, {"ask": {"text": "y = 3"}}, [])
    explorer._receive(None, {"ask": {"text": ""}}, [])
    assert told == ["computing", "", "computing", ""]


@pytest.mark.parametrize("message", [None, "x", {}, {"ask": 3}, {"ask": {}}, {"ask": {"steps": [1]}}])
def test_garbage_from_the_page_breaks_nothing(explorer, message):
    explorer._receive(None, message, [])
    assert explorer.scene["text"] == TEXT


def test_students_must_fit_the_teacher(models, teacher, tmp_path):
    bundled, students, tokenizer = models
    with pytest.raises(ValueError, match="student is empty"):
        lft.TrajectoryExplorer(bundled, {}, tokenizer)
    with pytest.raises(ValueError, match="belongs to another teacher"):
        lft.TrajectoryExplorer(teacher, students, tokenizer)
    with pytest.raises(ValueError, match="not a spliced model"):
        lft.TrajectoryExplorer(bundled, bundled, tokenizer)


def test_another_teacher_is_drawn_on_the_map_of_its_first_text(bundled):
    _, tokenizer = bundled
    other = build_model(64, 2048, layers=4, seed=3).eval()
    explorer = lft.TrajectoryExplorer(
        other, lft.splice(other, (1, 3), lft.Skip()), tokenizer, text="for x in y: print(x)"
    )
    assert set(explorer.scene["views"]) == {"PCA 2-D", "PCA 3-D"}  # a UMAP is drawn when it is asked for
    first = lft.capture(other, tokenizer, "for x in y: print(x)")
    explorer.show(text="import os")
    path = lft.capture(other, tokenizer, "import os")
    expected = lft.PCA(2).fit(first).transform(path)
    np.testing.assert_allclose(unpacked(explorer.scene["models"][0]["points"]["PCA 2-D"]), expected, atol=1e-4)


def test_an_exported_file_is_whole_and_holds_every_student(explorer, tmp_path):
    page = explorer.export_html(tmp_path / "page.html")
    text = page.read_text("utf-8")
    assert list(tmp_path.iterdir()) == [page]
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in text
    data = json.loads(re.search(r"const given = (\{.*\});\n", text)[1])
    assert list(data["scenes"]) == ["flow-walking", "ridge"]
    assert data["depth"] == 24
    for wrong, message in (("page.txt", "ending in .html"), ("nowhere/page.html", "is not a folder")):
        with pytest.raises(ValueError, match=message):
            explorer.export_html(tmp_path / wrong)


def test_png_needs_a_browser_and_says_so(explorer, tmp_path, monkeypatch):
    monkeypatch.setattr(trajectories.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="export_html needs neither"):
        explorer.export_png(tmp_path / "page.png")
    assert not list(tmp_path.iterdir())


def test_failures_are_the_largest_divergences(models):
    teacher, students, tokenizer = models
    texts = ["def f(x):\n    return x + 1", "import os\nimport sys\nprint(os)", "z"]
    found = lft.worst_tokens(students["ridge"], teacher, tokenizer, texts, n=5)
    assert len(found) == 2  # at most one a text; a text of one token has none
    for failure in found:
        paths = [lft.capture(model, tokenizer, failure.text) for model in (teacher, students["ridge"])]
        kl = lft.trajectories.divergence(*paths)[:-1]
        assert kl.argmax() == failure.token
        assert kl.max().item() == pytest.approx(failure.kl, rel=1e-3)
        assert failure.word == paths[0].tokens[failure.token]
        assert failure.followed == paths[0].tokens[failure.token + 1]
        assert failure.expected == paths[0].logit_lens(1).top(-1, failure.token)[0][0]
        assert failure.given == paths[1].logit_lens(1).top(-1, failure.token)[0][0]
    assert found[0].kl >= found[1].kl
    with pytest.raises(ValueError, match="two tokens or more"):
        lft.worst_tokens(students["ridge"], teacher, tokenizer, ["z"])
    with pytest.raises(ValueError, match="give a list of strings"):
        lft.worst_tokens(students["ridge"], teacher, tokenizer, "z = 1")
    with pytest.raises(ValueError, match="reads up to 512"):
        lft.worst_tokens(students["ridge"], teacher, tokenizer, ["z" * 600])
    explorer = lft.TrajectoryExplorer(teacher, students, tokenizer, text=TEXT, gallery={"ridge": found})
    assert explorer.gallery[0]["text"] == found[0].text
    assert f"{found[0].kl:.2f} nats after “" in explorer.gallery[0]["label"]
    assert explorer.gallery[0]["student"] == "ridge"


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """Run ``lft-edu explore`` with voila replaced by nothing; return the command that would run, and the cell."""
    import nbformat

    ran = []
    monkeypatch.setattr("os.execv", lambda *a: ran.append(a) or 0)
    monkeypatch.setattr(app.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(app.tempfile, "mkdtemp", lambda prefix: str(tmp_path))

    def run(*words):
        assert main(["explore", *words]) == 0
        (cell,) = nbformat.read(tmp_path / "explorer.ipynb", as_version=4).cells
        compile(cell.source, "cell", "exec")
        return ran[-1][1], cell.source

    return run


@pytest.fixture
def real(monkeypatch):
    """A computer that seems to have the real model and two students of it."""
    names = ["smollm2-135m/a-8-20", "smollm2-135m/b-8-20"]
    monkeypatch.setattr(app, "shipped_students", lambda teacher=None: names)
    monkeypatch.setattr(app, "operator_file", lambda name: None)
    monkeypatch.setattr(app.gguf, "folder_of", lambda name: None)
    monkeypatch.setattr(app.gguf, "is_ready", lambda name: True)


def test_the_application_is_a_notebook_that_opens_the_explorer(opened, monkeypatch, capsys):
    command, source = opened("--text", "x = '''", "--", "--port", "9999")
    assert command[1:3] == ["-m", "voila"]
    assert command[4:6] == list(app.FLAGS)
    assert command[6:8] == ["--port", "9999"]
    assert """text="x = '''")""" in source
    assert "load_teacher('bundled', dtype=torch.float32)" in source
    assert "text=" not in opened()[1]  # the explorer's own
    assert main(["explore", "--teacher", "elsewhere"]) == 2
    assert "`lft-edu train --teacher elsewhere --span m:n --out FOLDER`" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["explore"]) == 2
    assert "make explore" in capsys.readouterr().err


def test_the_application_shows_a_real_model_with_its_students(opened, real, capsys):
    opened()
    assert (
        "A real language model is on this computer: lft-edu explore --teacher smollm2-135m" in capsys.readouterr().err
    )
    for words in (["--teacher", "smollm2-135m"], ["--student", "smollm2-135m/b-8-20"]):
        _, source = opened(*words)
        assert "load_teacher('smollm2-135m', dtype=fastest_dtype())" in source
        assert f"text={app.ENGLISH!r}" in source
        assert ("a-8-20" in source) == (words[0] == "--teacher")
        assert "b-8-20" in source
        assert "A real" not in capsys.readouterr().err
    assert "text='Ciao')" in opened("--teacher", "smollm2-135m", "--text", "Ciao")[1]
    assert main(["explore", "--teacher", "bundled", "--student", "smollm2-135m/a-8-20"]) == 2
    assert "give --teacher smollm2-135m" in capsys.readouterr().err


def test_the_application_without_the_real_model_says_how_to_get_it(opened, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("LFT_EDU_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(app.gguf, "_installed", lambda published: None)
    assert main(["explore", "--teacher", "smollm2-135m"]) == 2
    assert "`lft-edu fetch smollm2-135m`" in capsys.readouterr().err
    opened()
    assert "A real language model" not in capsys.readouterr().err
    assert main(["explore", "--student", "bundled/flow-walkin-6-18"]) == 2
    assert "Did you mean 'bundled/flow-walking-6-18'" in capsys.readouterr().err


def test_the_application_finds_folders_from_where_it_runs(opened, monkeypatch, tmp_path):
    (tmp_path / "run" / "student").mkdir(parents=True)
    (tmp_path / "run" / "student" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert f"[{str(tmp_path / 'run' / 'student')!r}]" in opened("--student", "run")[1]


def test_the_application_s_cell_opens_another_teacher(bundled, tmp_path, opened):
    """The cell runs as it stands, in the type that is fast here."""
    teacher, tokenizer = build_model(64, 2048, layers=4, seed=3).eval(), bundled[1]
    teacher.save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    lft.splice(teacher, (1, 3), lft.Flow("euler", 1)).save_pretrained(tmp_path / "student")
    _, source = opened("--teacher", str(tmp_path / "teacher"), "--student", str(tmp_path / "student"))
    *lines, last = source.strip().splitlines()
    names: dict = {}
    exec("\n".join(lines), names)
    explorer = eval(last, names)
    assert explorer.scene["text"] == app.ENGLISH
    assert {explorer.teacher.dtype, *(model.dtype for model in explorer.models.values())} == {fastest_dtype()}


def test_lesson_09_runs_without_the_real_model_and_says_how_to_get_it(monkeypatch, capsys):
    import nbformat

    book = nbformat.read(NOTEBOOKS / "09_teacher_versus_flow.ipynb", 4)
    (cell,) = [cell for cell in book.cells if cell.cell_type == "code" and "smollm2-135m" in cell.source]
    monkeypatch.setattr(gguf, "is_ready", lambda name: False)
    monkeypatch.setattr(lft, "load_teacher", lambda *a, **k: pytest.fail("loaded"))
    names: dict = {"lft": lft}
    exec(cell.source, names)
    assert names["real"] is None
    assert "`lft-edu fetch smollm2-135m`" in capsys.readouterr().out


@pytest.mark.skipif(not gguf.is_ready("smollm2-135m"), reason="the real model is not here: lft-edu fetch smollm2-135m")
def test_a_real_model_is_drawn():
    teacher, tokenizer = lft.load_teacher("smollm2-135m", dtype=fastest_dtype())
    student = lft.splice(teacher, (8, 20), lft.Flow("euler", 1))
    explorer = lft.TrajectoryExplorer(teacher, student, tokenizer, text=app.ENGLISH)
    shown = explorer.scene
    assert len(shown["tokens"]) == 12
    ids = unpacked(shown["models"][0]["lens_ids"])
    assert shown["words"][str(ids[-1, -1, 0])] == "·Rome"
    path = lft.capture(teacher, tokenizer, app.ENGLISH)
    assert (ids == path.logit_lens(5).ids.numpy()).mean() > 0.99  # in bfloat16, equal probabilities change places
    assert np.isfinite(unpacked(shown["models"][1]["kl"])).all()
