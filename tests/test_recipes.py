"""The recipes that made the assets, run small from beginning to end."""

import json

import pytest
import torch

import lft_edu as lft
from lft_edu.loading import assets, corpora
from lft_edu.recipes import data_scaling as tokens
from lft_edu.recipes import operators
from lft_edu.recipes import span_selection as cut
from lft_edu.recipes import teacher as recipe
from lft_edu.recipes.common import experiments
from lft_edu.training.optimizers import Muon, newton_schulz


@pytest.fixture
def few_files(monkeypatch):
    whole = corpora.python_files
    monkeypatch.setattr(corpora, "python_files", lambda name, split: whole("python-stdlib", split)[:25])


def test_teacher_and_operators_from_nothing(few_files, tmp_path):
    shape = ["--width", "32", "--vocabulary", "400", "--tokens-per-step", "512", "--block", "32"]
    folders = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "teacher")]
    recipe.main([*shape, *folders, "--steps", "4"])
    recipe.main([*shape, *folders, "--steps", "8"])  # goes on from step 4
    notes = assets.verify(tmp_path / "teacher")
    assert notes["tokens_seen"] == 8 * 512
    assert notes["steps"] == 8
    assert 0 < notes["held_out_loss_nats"] < 7
    model, tokenizer = lft.load_teacher(tmp_path / "teacher", device="cpu")
    assert model.config.num_hidden_layers == 24
    assert tokenizer.decode(tokenizer("def f(x):\n")["input_ids"]) == "def f(x):\n"

    out = tmp_path / "operators"
    short = [
        "--teacher",
        str(tmp_path / "teacher"),
        "--steps",
        "2",
        "--batch",
        "2",
        "--tokens",
        "2k",
        "--out",
        str(out),
    ]
    operators.main([*short, "--work", str(tmp_path / "work"), "--span", "6:12"])
    notes = assets.verify(out)
    assert set(notes["operators"]) == {f"{name}-6-12" for name in experiments(1)}
    assert notes["operators"]["flow-walking-kl-6-12"]["starts_from"] == "flow-walking"
    assert notes["operators"]["hybrid-6-12"]["training"]["alpha"] == 0.1
    assert not list(tmp_path.rglob("*.partial"))


def test_short_runs_on_spans_and_the_scan_go_on_where_they_stopped(few_files, monkeypatch, tmp_path):
    """The recipe behind lesson 07: every kind of run on two spans, then one more."""
    common = [
        "--work",
        str(tmp_path / "work"),
        "--out",
        str(tmp_path),
        "--tokens",
        "4k",
        "--held",
        "512",
        "--steps",
        "2",
    ]
    cut.main([*common, "--span", "6:12"])
    first = json.loads((tmp_path / "cut.json").read_text())["rows"]
    assert {row["name"] for row in first} == {*cut.RUNS, "flow-matching-midpoint"}
    assert {row["nfe"] for row in first if row["name"].startswith("flow-matching")} == {1, 6}
    monkeypatch.setattr(cut, "run", None)  # nothing is trained twice
    cut.main([*common, "--span", "6:12"])
    monkeypatch.undo()
    cut.main([*common, "--span", "2:4", "--only", "ridge", "--seed", "1"])
    rows = json.loads((tmp_path / "cut.json").read_text())["rows"]
    assert rows[:-1] == first
    assert (rows[-1]["span"], rows[-1]["seed"], rows[-1]["name"]) == ([2, 4], 1, "ridge")
    assert cut.trained({"rows": rows}, "ridge") == {(6, 12): next(r["kl"] for r in first if r["name"] == "ridge")}


def test_budgets_are_repeated_with_other_seeds(few_files, monkeypatch, tmp_path):
    """The recipe behind lesson 08's curve of KL against tokens, and the figure of it."""
    common = ["--work", str(tmp_path / "work"), "--out", str(tmp_path), "--held", "512", "--only", "flow-matching"]
    tokens.main([*common, "--budget", "4k", "6k", "--seeds", "0", "1"])
    table = json.loads((tmp_path / "tokens.json").read_text())
    assert [(row["span"], row["tokens"]) for row in table["rows"]] == [
        ([6, 12], 2048), ([6, 12], 4096), ([6, 18], 2048), ([6, 18], 4096),
    ]  # fmt: skip
    for row in table["rows"]:
        one, other = row["kl_seeds"]
        assert row["seeds"] == [0, 1]
        assert one != other
        assert row["kl"] == (one + other) / 2
    line = lft.plots.budget(table, (6, 18)).data[0]
    assert list(line.y) == [row["kl"] for row in table["rows"][2:]]
    assert lft.plots.budget(table, (6, 18)).layout.xaxis.ticktext == ("2 k", "3 k", "4 k", "5 k")
    assert line.error_y.array[0] == pytest.approx(line.error_y.arrayminus[0])
    monkeypatch.setattr(tokens, "run", None)  # nothing is trained twice
    tokens.main([*common, "--budget", "4k", "6k", "--seeds", "0", "1"])
    with pytest.raises(ValueError, match="tokens, operations"):
        lft.plots.budget(table, (6, 18), x="hours")


def test_every_span_of_six_and_twelve_layers_from_the_middle_outwards():
    spans = cut.spans_of(24)
    assert spans[0] in ((9, 15), (6, 18))
    assert len(spans) == len(set(spans)) == 19 + 13
    assert {n - m for m, n in spans} == {6, 12}


def test_an_interrupted_export_leaves_the_old_teacher(tmp_path, monkeypatch):
    out = tmp_path / "teacher"
    out.mkdir()
    (out / "PROVENANCE.json").write_text("old")
    model = recipe.build_model(32, 300, layers=2)

    class Tokenizer:
        def save_pretrained(self, folder):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recipe.export(model, Tokenizer(), out, {})
    assert (out / "PROVENANCE.json").read_text() == "old"
    Tokenizer.save_pretrained = lambda self, folder: None
    recipe.export(model, Tokenizer(), out, {"new": True})
    assert json.loads((out / "PROVENANCE.json").read_text())["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["teacher"]


def test_bundled_provenance_says_how_it_was_made():
    notes = json.loads((assets.ASSETS / "teacher" / "PROVENANCE.json").read_text())
    wanted = {"recipe", "corpus", "tokens_seen", "steps", "hardware", "held_out_loss_nats", "settings", "sha256", "log"}
    assert wanted <= set(notes)
    losses = [e["held_out_loss"] for e in notes["log"]["evaluations"]]
    assert losses[-1] < losses[0]


def test_newton_schulz_pushes_singular_values_to_one():
    x = torch.randn(3, 20, 8, generator=torch.Generator().manual_seed(0))
    for matrices in (x, x.mT):
        values = torch.linalg.svdvals(newton_schulz(matrices))
        assert values.min() > 0.6
        assert values.max() < 1.3


def test_muon_descends_and_treats_each_matrix_alone():
    generator = torch.Generator().manual_seed(0)
    together = [torch.nn.Parameter(torch.randn(6, 4, generator=generator)) for _ in range(2)]
    alone = [torch.nn.Parameter(p.detach().clone()) for p in together]
    targets = [torch.randn(6, 4, generator=generator) for _ in range(2)]
    groups = [Muon(together, lr=0.05)], [Muon([p], lr=0.05) for p in alone]
    for optimizers, parameters in zip(groups, (together, alone), strict=True):
        for _ in range(20):
            for p, target in zip(parameters, targets, strict=True):
                p.grad = (p - target).detach()
            for optimizer in optimizers:
                optimizer.step()
    for a, b, target in zip(together, alone, targets, strict=True):
        assert torch.allclose(a, b, atol=1e-5)
        assert (a - target).norm() < 4
