"""What a lesson's page needs: claims, predictions, tables, progress."""

import json

import pytest
import torch

import lft_edu as lft
from lft_edu.course import MANIFEST
from lft_edu.exercises import check
from lft_edu.lessons import overview, predictions, progress
from lft_edu.lessons.tables import escape_markdown


@pytest.fixture
def copy_of_the_course(tmp_path, monkeypatch):
    (tmp_path / MANIFEST).write_text("{}")
    (tmp_path / "exercises").mkdir()
    monkeypatch.chdir(tmp_path / "exercises")
    monkeypatch.setenv("JPY_SESSION_NAME", "lft-course/01_couplings.ipynb")
    return tmp_path


@pytest.fixture(autouse=True)
def nothing_made(monkeypatch):
    monkeypatch.setattr(predictions, "_made", {})
    monkeypatch.setattr(progress, "_memory", {})


def test_a_claim_that_holds_prints_its_sentence(capsys):
    lft.claim("Two is less than three", 2 < 3, torch.tensor(True))
    assert capsys.readouterr().out == "✓ Two is less than three\n"


def test_a_claim_that_fails_shows_the_condition_and_its_numbers():
    share, errors = {"fm": 0.25}, [0.1, 0.9]
    with pytest.raises(AssertionError) as refuted:
        lft.claim("Few arrive", share["fm"] < 0.3, all(e < 0.5 for e in errors))
    assert str(refuted.value).splitlines() == [
        "✗ Few arrive",
        "    all((e < 0.5 for e in errors))",
        "    errors = [0.1, 0.9]",
    ]


def test_a_claim_that_fails_does_not_call_anything_again():
    calls = []
    with pytest.raises(AssertionError, match=r"calls\.append"):
        lft.claim("Never", calls.append(1) is not None)
    assert calls == [1]


def test_a_claim_needs_a_condition():
    with pytest.raises(ValueError, match="Nothing to check"):
        lft.claim("Everything is fine")


def test_a_claim_refuses_a_tensor_of_many_truths():
    with pytest.raises(RuntimeError, match="ambiguous"):
        lft.claim("All", torch.ones(2) > 0)


def test_a_table_formats_numbers_and_marks_the_best():
    rows = [
        {"operator": "ridge", "KL": 0.3312, "tokens": 12000, "attends": False},
        {"operator": "walk", "KL": torch.tensor(0.25), "tokens": None, "attends": True},
    ]
    shown = lft.table(rows, formats={"KL": ".2f"}, best={"KL": min})
    assert shown._repr_markdown_().splitlines() == [
        "| operator | KL | tokens | attends |",
        "| --- | ---: | ---: | ---: |",
        "| ridge | 0.33 | 12,000 | no |",
        "| walk | **0.25** | – | yes |",
    ]
    assert repr(shown).splitlines() == [
        "operator      KL  tokens  attends",
        "ridge       0.33  12,000       no",
        "walk      0.25 *       –      yes",
    ]


def test_a_table_of_named_rows_has_the_names_first():
    shown = lft.table({"stretch": {"R": 0.0}, "shift": 1.0})
    assert shown._repr_markdown_().splitlines()[2:] == ["| stretch | 0 | – |", "| shift | – | 1 |"]


@pytest.mark.parametrize("bad", [[], {}, [1, 2], ["ab"]])
def test_a_table_needs_rows(bad):
    with pytest.raises(ValueError, match="at least one row"):
        lft.table(bad)


def test_a_table_refuses_an_unknown_column():
    with pytest.raises(ValueError, match=r"No column 'NFE'. The columns: 'KL'"):
        lft.table([{"KL": 1.0}], formats={"NFE": "d"})


def test_text_in_a_table_stays_text():
    from markdown_it import MarkdownIt

    hostile = "a|b <img src=x onerror=alert(1)> [c](javascript:d) *e* `f` __init__ $x$ \\ &lt;\nnext"
    page = MarkdownIt().enable("table").render(lft.table([{hostile: hostile}])._repr_markdown_())
    import html
    import re

    cells = [html.unescape(one) for one in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", page)]
    assert cells == [" ".join(hostile.split())] * 2
    assert "<img" not in page
    assert "<a" not in page
    assert escape_markdown("plain words, 1.5") == "plain words, 1.5"


def shown(capsys):
    return capsys.readouterr().out


def test_a_prediction_is_kept_and_compared(copy_of_the_course, capsys):
    guess = lft.predict("As N grows, R …", "grows", "falls")
    guess._control.value = "falls"  # a click
    assert guess.said == "falls"
    control = guess._control
    guess.reveal("grows", "Most people say falls.")
    assert control.comm is None, "the buttons are closed: a saved notebook holds no dead widget"
    kept = json.loads((copy_of_the_course / progress.FILE).read_text())["predictions"]["As N grows, R …"]
    assert kept == {"said": "falls", "right": False, "lesson": "01"}
    lft.my_predictions()
    again = lft.predict("As N grows, R …", "grows", "falls")
    assert again.said == "falls", "what was said is there again"


def test_the_tally_counts_choices_only():
    for question, said, answer in (("a", "x", "x"), ("b", "y", "x"), ("c", "x", "x"), ("d", None, "x")):
        guess = lft.predict(question, "x", "y")
        if said:
            guess.say(said)
        guess.reveal(answer)
    lft.predict("in words").say("something")
    graded = [p for p in predictions._made.values() if p.choices]
    assert [p.right for p in graded] == [True, False, True, None]


def test_the_tally_in_words(monkeypatch):
    texts = []
    monkeypatch.setattr(predictions, "_display", lambda text, page: texts.append(text))
    lft.my_predictions()
    guess = lft.predict("a", "x", "y")
    guess.say("x")
    guess.reveal("x")
    lft.predict("b", "x", "y").reveal("y")
    lft.my_predictions()
    assert texts[0] == "You made no predictions."
    assert texts[1].startswith("✓ As you said. Answer: x.")
    assert texts[2].startswith("Answer: y.")
    assert texts[3] == "You were right 1 of 1; 1 not made."


def test_what_a_learner_writes_is_escaped():
    guess = lft.predict("<b>why</b>?")
    guess.say("<script>alert(1)</script>")
    page = guess._repr_html_()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "&lt;b&gt;why" in page


@pytest.mark.parametrize("choices", [("one",), ("same", "same")])
def test_a_prediction_needs_choices_that_differ(choices):
    with pytest.raises(ValueError, match="choices="):
        lft.predict("?", *choices)


def test_an_answer_must_be_one_of_the_choices():
    with pytest.raises(ValueError, match="not among the choices 'a', 'b'"):
        lft.predict("?", "a", "b").reveal("c")


def test_exercises_that_pass_are_kept(copy_of_the_course):
    def step(velocity, x, t, s):
        first = velocity(x, t)
        return x + (s - t) / 2 * (first + velocity(x + (s - t) * first, s))

    assert check("2.2", step)
    assert not check("2.3", step)
    row = next(line for line in repr(lft.my_progress()).splitlines() if line.startswith("02"))
    assert row.split()[1:4] == ["1", "of", "8"]
    assert "2.3" in row
    assert "2.2" not in row


def test_progress_of_one_lesson(copy_of_the_course):
    progress.keep("exercises", "1.1", True)
    assert repr(lft.my_progress(1)).splitlines()[1].split()[:4] == ["01", "1", "of", "5"]
    with pytest.raises(ValueError, match=r"Nothing is known of lesson 42\. Lessons with exercises: 00, 01, 02"):
        lft.my_progress(42)


def test_exercises_are_listed_in_order(monkeypatch):
    monkeypatch.setattr(overview, "EXERCISES", dict.fromkeys(("8.2", "8.10", "8.1")))
    assert "8.1, 8.2, 8.10" in repr(lft.my_progress())


def test_a_damaged_progress_file_counts_as_empty(copy_of_the_course):
    for damaged in ("{", "[]", '{"exercises": 1}', "\udcff"):
        (copy_of_the_course / progress.FILE).write_text(damaged, errors="surrogateescape")
        assert progress.load() == {}
        lft.my_progress()


def test_without_a_copy_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    progress.keep("exercises", "1.1", True)
    assert list(tmp_path.iterdir()) == []
    assert progress.load() == {"exercises": {"1.1": True}}


def test_a_read_only_copy_does_not_stop_a_lesson(copy_of_the_course, monkeypatch):
    monkeypatch.setattr(progress, "write_json", lambda *_: (_ for _ in ()).throw(PermissionError("read-only")))
    progress.keep("exercises", "1.1", True)


def test_source_is_shown_without_its_docstring():
    shown = lft.show_source(lft.flow.euler_step)
    assert shown.data.splitlines() == [
        "def euler_step(velocity: Velocity, x: Tensor, t, s) -> Tensor:",
        "    t, s = as_time(t, x), as_time(s, x)",
        "    return x + pad_t_like_x(s - t, x) * velocity(x, t)",
    ]
    assert shown.language == "python"


def test_source_of_methods_and_classes_is_shown():
    method = lft.show_source(lft.Coupling.crossings).data
    assert method.startswith("def crossings(self)"), "a method begins at the left"
    assert '"""' not in method
    assert lft.show_source(lft.objectives.HeadKL).data.splitlines()[1] == "    @staticmethod"


def plain(x):
    return x


def only_words():
    """Nothing else."""


def test_source_without_a_docstring_stays_as_it_is():
    assert lft.show_source(plain).data == "def plain(x):\n    return x"
    assert lft.show_source(only_words).data.endswith('"""Nothing else."""')


@pytest.mark.parametrize("bad", [len, 3, "euler_step"])
def test_only_python_code_can_be_shown(bad):
    with pytest.raises(ValueError, match="has no Python source that can be shown"):
        lft.show_source(bad)
