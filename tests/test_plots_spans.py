"""Maps of spans: what the figures show."""

import json
import math
import re

import pytest
import torch

import lft_edu as lft
from lft_edu import plots


def test_the_map_shows_every_span_at_its_place(scan):
    figure = plots.recoupling_heatmap(scan, "angular", marked=[(1, 3)])
    cells, frame = figure.data
    json.dumps(cells.z, allow_nan=False)  # a widget sends it so, and JSON knows no NaN
    colored = torch.tensor([[math.nan if x is None else x for x in row] for row in cells.z], dtype=torch.float64)
    shown = scan["angular"]
    assert torch.equal(colored.isnan(), shown.isnan())
    known = ~shown.isnan()
    assert torch.equal(colored[known].argsort(stable=True), shown[known].argsort(stable=True))  # darker is more
    assert not shown[1, 3].isnan()
    assert plots.static_image(figure, alt="a map").data[:4] == b"\x89PNG"
    assert shown[3, 1].isnan()
    low, high = scan.intervals("angular")
    text = cells.customdata[1][3]
    assert text == f"layers 1 … 2 (2 of them): {shown[1, 3]:.3f} ({low[1, 3]:.3f} to {high[1, 3]:.3f})"
    assert cells.customdata[3][1] == ""
    assert (frame.x, frame.y) == ((3,), (1,))
    assert figure.layout.yaxis.range[0] > figure.layout.yaxis.range[1]  # m goes down, as in a table


def test_a_criterion_without_interval_says_only_its_value(scan):
    cell = plots.recoupling_heatmap(scan, "cka").data[0].customdata[0][2]
    assert re.fullmatch(r"layers 0 … 1 \(2 of them\): \d\.\d{3}", cell)


def test_names_are_escaped_in_titles(scan):
    hostile = scan.add("<b>x", {(0, 1): torch.ones(4)})
    assert "<b>" not in plots.recoupling_heatmap(hostile, "<b>x").layout.title.text
    assert "&lt;b&gt;x" in plots.spans.title_of("<b>x")


def test_lines_are_colored_by_the_matching_of_the_full_space(states):
    x0, x1 = states[0], states[6]
    found = lft.recoupling_ratio(x0, x1)
    assert 0 < found.ratio < 1
    figure = plots.span_coupling(x0, x1, found.re_paired, "two ends")
    changed = next(trace for trace in figure.data if trace.name == "optimal transport would re-pair")
    assert len(changed.x) == 3 * int(found.re_paired.sum())  # start, end, gap


def test_predictions_and_measurements_of_the_same_span_meet(scan):
    measured = {(0, 2): 0.5, (1, 3): 0.25, (0, 4): 2.0}
    figure = plots.predictions(scan, measured, ["recoupling", "angular"])
    places = {(trace.x[i], trace.y[i]) for trace in figure.data for i in range(len(trace.x)) if trace.xaxis in ("x2",)}
    assert places == {(scan["angular"][span].item(), kl) for span, kl in measured.items()}
    assert {trace.name for trace in figure.data} == {"2 layers", "4 layers"}
    assert figure.layout.yaxis.type == "log"


def test_ranks_are_taken_within_a_length_and_ties_share_theirs(scan):
    measured = {(0, 2): 0.5, (1, 3): 0.25, (2, 4): 0.75, (0, 4): 2.0, (1, 5): 3.0}
    tied = scan.add(
        "tied", {span: torch.tensor([0.0, 0.0, 1.0, 0.0, 1.0][i]).expand(4) for i, span in enumerate(measured)}
    )
    figure = plots.predictions(tied, measured, ["angular", "tied"], ranks=True)
    second = {trace.name: trace for trace in figure.data if trace.xaxis == "x2"}
    assert set(second) == {"2 layers", "4 layers", "both agree"}
    assert (second["2 layers"].x, second["2 layers"].y) == ((1.5, 1.5, 3.0), (2.0, 1.0, 3.0))
    assert (second["4 layers"].x, second["4 layers"].y) == ((1.0, 2.0), (1.0, 2.0))
    assert second["2 layers"].text == ("0", "1", "2")
    assert "layers 0 … 1: 0 → KL 0.500" in second["2 layers"].customdata
    assert (second["both agree"].x, second["both agree"].y) == ((1, 3), (1, 3))
    assert figure.layout.yaxis.type != "log"
    assert plots.static_image(figure, alt="ranks").data[:4] == b"\x89PNG"


def test_the_paper_s_spans_have_a_key_and_others_none(scan):
    assert plots.recoupling_heatmap(scan).data[1].showlegend
    assert not plots.recoupling_heatmap(scan, marked=[(0, 2)]).data[1].showlegend


def test_correlations_stand_in_order_and_nothing_is_said_of_nothing():
    nothing = (math.nan,) * 3
    found = {"a": {"angular": (0.2, 0.1, 0.4), "cka": nothing, "ridge": (0.7, 0.5, 0.8)}}
    figure = plots.rank_correlations(found, "which?")
    assert list(figure.layout.yaxis.ticktext) == ["1 − linear CKA (no signal)", "Angular distance", "Ridge error"]
    (marks,) = figure.data
    assert list(marks.x) == [0.2, 0.7]
    assert marks.error_x.array == pytest.approx([0.2, 0.1])
    assert marks.error_x.arrayminus == pytest.approx([0.1, 0.2])
