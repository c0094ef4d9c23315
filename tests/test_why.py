"""The recipe that asks why flow matching loses, and what is told of its results."""

import json

import pytest
import torch

import lft_edu as lft
from lft_edu import plots
from lft_edu.fitting import LatentSource
from lft_edu.recipes import any_steps, why, why_report


class Tiny:
    """The tests' teacher as a bench: six of its eight layers, three steps of eight sequences."""

    spans, seeds, batch_size, lr, precision = ((1, 7),), (0, 1), 8, 0.02, "no"

    def __init__(self, teacher, blocks):
        self.teacher, self.blocks, self.held_out = teacher, blocks, blocks[:6]

    def source(self, span):
        return LatentSource(self.teacher, span, self.blocks, 8, cache=True, between=True, progress=False)


@pytest.fixture(scope="module")
def results(teacher, blocks, tmp_path_factory):
    """Every variant, trained for three steps with two seeds."""
    work = tmp_path_factory.mktemp("why")
    for seed in Tiny.seeds:
        why.work_through(Tiny(teacher, blocks), (1, 7), seed, 3 * 8 * 16, work / "bundled", "*")
    return why.collect(work, work)


def test_every_variant_is_trained_on_what_it_says(results, tmp_path_factory):
    rows = results["bundled"]
    assert [row["name"] for row in rows[::2]] == list(why.VARIANTS)
    seen = {row["name"]: row["tokens"] for row in rows}
    assert seen["regression"] == seen["flow matching"] == 3 * 8 * 16
    assert seen["four times the tokens"] == 4 * seen["flow matching"]
    assert seen["regression, a quarter of the tokens"] < seen["regression"]
    walked = next(row for row in rows if row["name"] == "flow matching")
    assert list(walked["by_steps"]) == ["1", "2", "3", "6"]
    assert walked["by_steps"]["1"]["kl"] == walked["kl"]
    assert [walked["by_steps"][k]["nfe"] for k in ("1", "6")] == [1, 6]
    nfe = {row["name"]: row["nfe"] for row in rows}
    for k in ("2", "6"):
        assert nfe[f"Flow Walking, {k} evaluations"] == nfe[f"trained loop, {k} evaluations"] == int(k)


def test_what_is_done_is_not_done_again(teacher, blocks, tmp_path, monkeypatch):
    bench = Tiny(teacher, blocks)
    why.work_through(bench, (1, 7), 0, 8 * 16, tmp_path, "always*")
    monkeypatch.setattr(why, "train", lambda *a: pytest.fail("trained again"))
    why.work_through(bench, (1, 7), 0, 8 * 16, tmp_path, "always*")
    assert [json.loads(p.read_text())["options"]["beta"] for p in tmp_path.glob("*.json")] == ["infinity"]


def test_a_velocity_of_zero_misses_the_whole_motion(teacher, blocks):
    student = lft.splice(teacher, (1, 7), lft.Flow("euler", 1)).bfloat16()
    with torch.no_grad():
        student.operator.velocity.modulation.outer.bias.unflatten(0, (6, -1))[2::3] = -1  # the gates: 1 - 1
    errors = why.velocity_errors(student, teacher, blocks[:6], (0.0, 0.5, 1.0))
    assert errors == pytest.approx([1.0, 1.0, 1.0], abs=1e-6)
    assert next(student.operator.parameters()).dtype == torch.bfloat16, "measuring leaves the student as it was"


def test_ratios_are_of_means_over_the_same_seeds(results):
    one = why_report.compare(results, "bundled", (1, 7), "flow matching")
    kl = {
        name: [row["kl"] for row in results["bundled"] if row["name"] == name]
        for name in ("flow matching", "regression")
    }
    assert one["ratio"] == pytest.approx(sum(kl["flow matching"]) / sum(kl["regression"]), rel=1e-3)
    assert one["seeds"] == pytest.approx([a / b for a, b in zip(*kl.values(), strict=True)])
    low, high = one["interval"]
    assert low < one["ratio"] < high
    assert why_report.compare(results, "bundled", (0, 3), "flow matching") is None
    itself = why_report.compare(results, "bundled", (1, 7), "regression")
    assert itself["ratio"] == 1
    assert itself["interval"] == [1, 1]


def test_tables_and_figures_show_what_was_measured(results):
    names = ("regression", "flow matching", "two layers")
    text = why_report.table(results, names)
    assert [line.split("|")[1].strip() for line in text.splitlines()[2:]] == list(names)
    groups = why_report.dots(results, names)
    assert list(groups) == ["bundled, 1–7"]
    figure = plots.dots(groups, "title", "ratio")
    (trace,) = figure.data
    assert list(trace.x) == [value for value, _, _ in groups["bundled, 1–7"].values()]
    assert list(figure.layout.yaxis.ticktext) == list(names)
    found = why_report.errors_by_time(results, "bundled", (1, 7), ("flow matching",))
    times, errors = found["flow matching"]
    assert times == list(why.TIMES)
    assert len(errors) == len(times)


def test_names_in_figures_are_escaped():
    figure = plots.dots({"<b>": {"<i>": (1.0, 0.9, 1.2)}}, "t", "x")
    assert figure.data[0].name == "&lt;b&gt;"
    assert figure.layout.yaxis.ticktext[0] == "&lt;i&gt;"


def test_the_results_that_ship_are_of_this_recipe():
    shipped = why_report.load()
    for teacher in why_report.TEACHERS:
        assert {row["name"] for row in shipped[teacher]} <= set(why.VARIANTS)
        for row in shipped[teacher]:
            assert row["operator"] == why.VARIANTS[row["name"]][0]
            assert sum(row["sequence_kl"]) / len(row["sequence_kl"]) == pytest.approx(row["kl"], rel=1e-3)
    page = why_report.RESULTS.read_text(encoding="utf-8")
    names = dict.fromkeys(row["name"] for teacher in why_report.TEACHERS for row in shipped[teacher])
    assert why_report.table(shipped, names) in page, "docs/results.md: python -m lft_edu.recipes.why --render"


def test_any_steps_on_the_page_are_those_that_were_measured():
    page = why_report.RESULTS.read_text(encoding="utf-8")
    results = any_steps.load()
    assert any_steps.page_table(results) in page, "docs/results.md: python -m lft_edu.recipes.any_steps --collect"
    assert {tuple(row["span"]) for row in results["rows"]} == set(why.Bundled.spans)


def test_the_number_of_steps_is_drawn_and_the_velocity_is_told_how_long_they_are():
    told, seen, generator = [], set(), torch.Generator().manual_seed(0)
    objective = any_steps.AnySteps(step_aware=True)

    def velocity(x, t, length):
        told.append(length)
        return torch.zeros_like(x)

    for _ in range(60):
        told.clear()
        objective.loss(velocity, torch.zeros(5, 2), torch.ones(5, 2), objective.times(5, generator))
        seen.add(len(told))
        assert torch.stack(told).sum(0).allclose(torch.ones(5))
    assert seen == set(range(1, 9))


def test_the_shortcut_loss_vanishes_for_motion_at_constant_velocity_only():
    x0 = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    shift, lengths = torch.tensor([1.0, -2.0, 0.5]), set()
    objective = any_steps.Shortcut()
    times = objective.times(64, torch.Generator().manual_seed(1))

    def constant(x, t, length):
        lengths.update(round(v, 4) for v in length.tolist())
        return shift.expand_as(x)

    assert objective.loss(constant, x0, x0 + shift, times) < 1e-10
    assert lengths == {0.0, 0.0625, 0.125, 0.25, 0.5, 1.0}
    assert objective.loss(lambda x, t, d: 2 * shift.expand_as(x), x0, x0 + shift, times) > 1
    inconsistent = lambda x, t, d: shift * (1 + d[:, None])  # noqa: E731  # right where the step is short
    assert objective.loss(inconsistent, x0, x0 + shift, times) > 1e-2
