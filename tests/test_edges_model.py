"""The exact values at the edges of operators, splices and velocities: settings, slots, messages. As test_edges.py."""

import copy
import re

import pytest
import torch
from transformers import DynamicCache

import lft_edu as lft
from lft_edu import operators, splicing
from lft_edu.flow import euler_step, midpoint_step, shortcut_step
from lft_edu.operators import build_operator, operator_from_dict, operator_title, row_title
from lft_edu.velocity import TimeModulation, VelocityEstimator


def said(words: str):
    """A ValueError that says exactly this."""
    return pytest.raises(ValueError, match=f"^{re.escape(words)}$")


@pytest.fixture
def layer(teacher):
    return copy.deepcopy(lft.families.layers_of(teacher)[2])


# operators


@pytest.mark.parametrize(
    ("make", "settings", "slots"),
    [
        (lambda: lft.Skip(), {"kind": "skip"}, 0),
        (lambda: lft.Regression(), {"kind": "regression"}, 1),
        (lambda: lft.Regression(layers=2, repeats=3), {"kind": "regression", "layers": 2, "repeats": 3}, 6),
        (lambda: lft.Regression(init_layer=0), {"kind": "regression", "init_layer": 0}, 1),
        (lambda: lft.Loop(), {"kind": "loop", "repeats": 3}, 3),
        (lambda: lft.Loop(1), {"kind": "loop", "repeats": 1}, 1),
        (lambda: lft.Flow(), {"kind": "flow", "solver": "euler", "num_steps": 1}, 1),
        (
            lambda: lft.Flow("midpoint", 3, 0),
            {"kind": "flow", "solver": "midpoint", "num_steps": 3, "init_layer": 0},
            6,
        ),
        (lambda: lft.Flow(steps=4), {"kind": "flow", "solver": "euler", "num_steps": 4}, 4),
        (lambda: lft.Flow(layers=2), {"kind": "flow", "solver": "euler", "num_steps": 1, "layers": 2}, 2),
        (
            lambda: lft.Flow(conditional=True),
            {"kind": "flow", "solver": "euler", "num_steps": 1, "conditional": True},
            1,
        ),
        (lambda: lft.Flow(step_aware=True), {"kind": "flow", "solver": "euler", "num_steps": 1, "step_aware": True}, 1),
    ],
    ids=lambda value: None,
)
def test_an_operator_is_its_settings(make, settings, slots):
    operator = make()
    assert operator.to_dict() == settings
    assert (operator.slots, operator.nfe) == (slots, slots)
    given = dict(settings)
    again = operator_from_dict(given)
    assert given == settings  # what is given stays as it was
    assert (type(again), again.to_dict()) == (type(operator), settings)
    assert operator_from_dict(settings | {"sink": True}).to_dict() == settings | {"sink": True}


def test_which_layer_an_operator_starts_from():
    assert [lft.Loop().layer_to_copy(m, n) for m, n in ((2, 5), (2, 6), (0, 1))] == [3, 4, 0]
    assert lft.Flow().layer_to_copy(2, 5) == 2
    assert [lft.Flow(init_layer=i).layer_to_copy(2, 5) for i in (2, 4)] == [2, 4]
    for i in (1, 5):
        with said(f"init_layer={i} is not in the span 2–5: give one of its layers, 2 to 4."):
            lft.Flow(init_layer=i).layer_to_copy(2, 5)


def test_steps_of_a_flow():
    assert lft.Flow().step is euler_step
    assert lft.Flow("midpoint").step is midpoint_step
    assert lft.Flow(step_aware=True).step is shortcut_step
    with said("solver='heun': choose one of euler, midpoint."):
        lft.Flow("heun")
    with said("solver='midpoint': a step-aware velocity is for Euler steps. Use solver='euler'."):
        lft.Flow("midpoint", step_aware=True)


def test_what_no_operator_is():
    with pytest.raises(ValueError, match=r"^Unknown operator 'flo'\. Did you mean 'flow'\?"):
        operator_from_dict({"kind": "flo"})
    with pytest.raises(ValueError, match=r"^Unknown operator 'None'\."):
        operator_from_dict({})
    with pytest.raises(
        ValueError, match=r"^Operator 'loop' does not take these settings: \{'turns': 2\} \(.*turns.*\)"
    ):
        operator_from_dict({"kind": "loop", "turns": 2})


def test_titles():
    flow = {"kind": "flow", "solver": "midpoint"}
    assert operator_title({"operator": flow | {"num_steps": 3}}) == "flow (midpoint × 3)"
    assert row_title({"name": "mine", "operator": flow | {"steps": 2}}) == "mine (midpoint × 2)"
    assert row_title({"name": "mine", "operator": {"kind": "skip"}}) == "mine"


def test_what_an_operator_is_built_of(layer, teacher):
    built = build_operator({"kind": "regression", "layers": 3}, layer, teacher.config)
    assert built.layer is layer
    owned = [id(p) for one in (built.layer, *built.more) for p in one.parameters()]
    assert len(built.more) == 2
    assert len(set(owned)) == 3 * len(list(layer.parameters()))
    assert len(build_operator({"kind": "regression"}, layer, teacher.config).more) == 0
    assert all(
        torch.equal(a, b) for one in built.more for a, b in zip(one.parameters(), layer.parameters(), strict=True)
    )
    seeds = [torch.Generator().manual_seed(7) for _ in range(2)]
    flow = build_operator({"kind": "flow", "layers": 2, "conditional": True}, layer, teacher.config, seeds[0])
    assert flow.velocity.layer is layer
    assert len(flow.more) == 1
    assert flow.more[0].layer is not layer
    assert (flow.start.weight == 0).all()
    assert flow.start.weight.shape == (64, 64)
    assert flow.start.bias is None
    first = TimeModulation(64, seeds[1])  # the generator is the one that was given, and the first layer draws first
    assert torch.equal(flow.velocity.modulation.inner.weight, first.inner.weight)
    assert not torch.equal(flow.more[0].modulation.inner.weight, first.inner.weight)
    assert not hasattr(build_operator({"kind": "flow"}, layer, teacher.config), "start")
    aware = build_operator({"kind": "flow", "step_aware": True}, layer, teacher.config)
    assert aware.velocity.modulation.inner.in_features == 2 * flow.velocity.modulation.inner.in_features
    stored = build_operator({"kind": "skip", "sink": True}, layer, teacher.config)
    assert stored.sink.tolist() == [0.0] * 64
    assert build_operator({"kind": "skip"}, layer, teacher.config).sink is None


class Told(torch.nn.Module):
    """In place of a velocity: keeps what it is called with."""

    def __init__(self, move):
        super().__init__()
        self.move, self.calls = move, []

    def forward(self, x, *times, **context):
        self.calls.append((x, *map(float, times), context))
        return self.move * torch.ones_like(x)


def test_a_velocity_of_layers_and_what_each_is_told(layer, teacher):
    flow = build_operator({"kind": "flow", "layers": 2, "conditional": True}, layer, teacher.config)
    one, two = flow.velocity, flow.more[0] = Told(1.0), Told(10.0)
    flow.velocity, flow.start.weight.data = one, torch.eye(64)
    x, x0 = torch.zeros(1, 2, 64), torch.full((1, 2, 64), 5.0)
    with said("A conditional velocity needs to know where the walk starts: field(x0, ...)."):
        flow.field()
    assert (flow.field(x0, position=3)(x, torch.tensor(0.25)) == 11).all()
    (seen, t, context), (then, t2, context2) = one.calls[0], two.calls[0]
    assert (t, t2, context, context2) == (0.25, 0.25, {"position": 3}, {"position": 3})
    assert (seen == 5).all()  # the state, and where the walk began
    assert (then == 1).all()  # the state, and what the layer before adds
    plain = "This velocity is told the time alone, u(x, t); lft.Flow(step_aware=True) is told the step, too."
    with said(plain):
        flow.field(x0)(x, torch.tensor(0.0), torch.tensor(1.0))
    aware = build_operator({"kind": "flow", "step_aware": True, "num_steps": 2}, layer, teacher.config)
    aware.velocity = Told(1.0)
    with pytest.raises(ValueError, match=r"^A step-aware velocity is told how long the step is, u\(x, t, Δt\): train"):
        aware.field()(x, torch.tensor(0.0))
    assert (aware(x) == 1).all()
    assert [call[1:3] for call in aware.velocity.calls] == [(0.0, 0.5), (0.5, 0.5)]


def test_layers_are_applied_in_turn_each_with_its_cache_entry(layer, teacher):
    built = build_operator({"kind": "regression", "layers": 2, "repeats": 2}, layer, teacher.config)
    built.layer, built.more[0], built.first_slot = Told(1.0), Told(10.0), 5
    x, cache = torch.zeros(1, 2, 64), DynamicCache()
    assert (built(x, position=3, cache=cache) == 10).all()  # what each returns is the next state, not an update
    assert [float(call[0][0, 0, 0]) for call in built.layer.calls] == [0, 10]
    assert [float(call[0][0, 0, 0]) for call in built.more[0].calls] == [1, 1]
    contexts = [call[-1] for pair in zip(built.layer.calls, built.more[0].calls, strict=True) for call in pair]
    assert [(one["position"], one["cache"]._index) for one in contexts] == [(3, 5), (3, 6), (3, 7), (3, 8)]
    assert (built.field(position=3)(x + 2, torch.tensor(0.7)) == 8).all()  # to 10, from 2


def test_which_operators_are_layers_one_after_another(layer, teacher):
    built = build_operator({"kind": "regression", "layers": 2, "repeats": 2}, layer, teacher.config)
    assert [id(one) for one in built.as_layers()] == [id(one) for one in (layer, built.more[0])] * 2
    assert build_operator({"kind": "regression"}, layer, teacher.config).as_layers() == [layer]
    assert lft.Skip().as_layers() == []
    for kind in ("skip", "regression"):
        assert build_operator({"kind": kind, "sink": True}, layer, teacher.config).as_layers() is None
    assert build_operator({"kind": "flow"}, layer, teacher.config).as_layers() is None


def test_a_walk_stops_at_every_step_and_between(layer, teacher):
    flow = build_operator({"kind": "flow", "num_steps": 4, "solver": "euler"}, layer, teacher.config)
    flow.velocity = Told(1.0)
    x = torch.zeros(1, 2, 64)
    assert (flow(x) == 1).all()
    assert [call[1] for call in flow.velocity.calls] == [0.0, 0.25, 0.5, 0.75]
    states, times = flow.path(x, {})
    assert [float(s[0, 0, 0]) for s in states] == times.tolist() == [0.25, 0.5, 0.75, 1.0]
    states, times = flow.path(x, {}, substeps=2)
    assert times.tolist() == pytest.approx([i / 12 for i in range(1, 13)], abs=1e-15)
    assert [float(s[0, 0, 0]) for s in states] == pytest.approx(times.tolist(), abs=1e-6)
    assert (times.dtype, len(states)) == (torch.float64, 12)
    (alone,), one = lft.Skip().path(x, {})
    assert torch.equal(alone, x)
    assert (one.tolist(), one.dtype) == ([1.0], torch.float64)


# velocities


def test_time_modulations_start_as_none_and_tell_times_apart():
    modulation = TimeModulation(8, torch.Generator().manual_seed(0))
    t = torch.tensor([0.0, 0.5, 1.0])
    assert torch.equal(modulation(t), torch.tensor([0.0, 0, 1, 0, 0, 1])[:, None].expand(3, 6, 8))
    torch.nn.init.normal_(modulation.outer.weight, generator=torch.Generator().manual_seed(1))
    seen = []
    modulation.inner.register_forward_hook(lambda m, args, out: seen.append(args[0]))
    out = modulation(t)
    assert (out[0] - out[1]).abs().max() > 0.1
    (features,) = seen
    assert features.shape == (3, 128)
    frequency = torch.exp(-torch.arange(64) / 64 * torch.tensor(10_000.0).log())
    torch.testing.assert_close(
        features[1], torch.cat([(500 * frequency).cos(), (500 * frequency).sin()]), atol=1e-4, rtol=0
    )
    assert modulation.inner.weight.std().item() == pytest.approx(128**-0.5, rel=0.1)


def test_a_velocity_takes_a_time_for_all_per_sequence_or_per_token(layer, teacher):
    velocity = VelocityEstimator(layer, teacher.config, torch.Generator().manual_seed(0)).eval()
    torch.nn.init.normal_(velocity.modulation.outer.weight, std=0.1, generator=torch.Generator().manual_seed(1))
    x = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(2))
    rotary = lft.latents.span_latents(teacher, (2, 5), torch.ones(2, 3, dtype=torch.long)).context
    with torch.no_grad():
        whole = velocity(x, 0.3, **rotary)
        for t in (torch.tensor(0.3), torch.full((2,), 0.3), torch.full((2, 3), 0.3)):
            torch.testing.assert_close(velocity(x, t, **rotary), whole)
        mixed = velocity(x, torch.tensor([0.3, 0.9]), **rotary)
    torch.testing.assert_close(mixed[0], whole[0])
    assert (mixed[1] - whole[1]).abs().max() > 1e-3


# splices


def test_what_a_span_must_be():
    assert splicing.check_span((0, 8), 8) == (0, 8)
    assert splicing.check_span([torch.tensor(7), 8], 8) == (7, 8)
    for span in ((3, 3), (-1, 2), (2, 9), (5, 4)):
        m, n = span
        limits = "layers m … n−1 are replaced, so 0 ≤ m < n ≤ 8 must hold."
        with said(f"span=({m}, {n}) does not fit a teacher of 8 layers: {limits}"):
            splicing.check_span(span, 8)
    for span in (3, (1,), (1, 2, 3), (1.5, 3), ("a", "b"), None):
        with said(f"span={span!r}: give two layer numbers (m, n), such as (6, 18)."):
            splicing.check_span(span, 8)


class Past:
    def __init__(self, length):
        self.length = length

    def get_seq_length(self):
        return self.length


def test_which_tokens_are_first_in_their_sequence():
    first = lambda *args: splicing.first_tokens((2, 3), *args, torch.device("cpu")).tolist()  # noqa: E731
    assert first(None, None) == [[True, False, False]] * 2
    assert first(None, Past(2)) == [[False] * 3] * 2
    left = torch.tensor([[0, 0, 1], [0, 1, 1]])
    assert first(left, None) == [[False, False, True], [False, True, False]]
    longer = torch.tensor([[0, 0, 0, 1, 1], [1, 1, 1, 1, 1]])
    assert first(longer, Past(2)) == [[False, True, False], [False, False, False]]
    assert first(torch.ones(2, 1, 3, 3), None) == [[True, False, False]] * 2


def test_what_can_not_be_spliced_is_said(teacher):
    student = lft.splice(teacher, (2, 5), lft.Skip())
    with pytest.raises(
        ValueError, match=r"^operator='flow': give an operator object, such as lft\.Flow\(\) or lft\.Skip"
    ):
        lft.splice(teacher, (2, 5), "flow")
    with said("This model is already spliced: splice the teacher it came from."):
        lft.splice(student, (2, 5), lft.Skip())
    with said("The teacher is a str: give a transformers model, as load_teacher does."):
        lft.splice("bundled", (2, 5), lft.Skip())
    with said("A 'skip' operator has no solver; only lft.Flow has one."):
        student.set_solver("euler")
    with said("The student is not a spliced model: make one with lft.splice or load one with lft.load_student."):
        splicing.check_pair(teacher, teacher)
    with said("The teacher is a spliced model: give the model the student was spliced from."):
        splicing.check_pair(student, student)
    other = lft.loading.teachers.build_model(64, 301, layers=8, seed=1)
    shape = {"family": "gpt_neox", "layers": 8, "width": 64, "vocabulary": 300}
    with said(
        f"The student belongs to another teacher: it was made from {shape}, this one has {shape | {'vocabulary': 301}}."
    ):
        splicing.check_pair(student, other)


def test_a_student_is_frozen_but_for_what_can_be_trained(teacher):
    flow, ridge = (lft.splice(teacher, (2, 5), operator) for operator in (lft.Flow(), lft.Ridge()))
    assert {p.requires_grad for p in flow.operator.parameters()} == {True}
    outside = {id(p) for p in flow.operator.parameters()}
    assert not any(p.requires_grad for p in flow.parameters() if id(p) not in outside)
    assert not any(p.requires_grad for p in ridge.parameters())
    assert not flow.training
    assert (flow.config.span, flow.config.depth, flow.config.text_config.num_hidden_layers) == ([2, 5], 8, 6)
    assert flow.set_solver("midpoint", 2) is flow
    assert flow.config.operator == {"kind": "flow", "solver": "midpoint", "num_steps": 2}
    assert flow.config.text_config.num_hidden_layers == 9
    assert flow.set_solver(num_steps=1).config.operator["solver"] == "midpoint"
    assert flow.set_solver("euler").config.operator == {"kind": "flow", "solver": "euler", "num_steps": 1}
    assert flow.set_solver(steps=3).operator.settings["num_steps"] == 3
    assert flow.operator.first_slot == 2
    assert operators.OPERATORS["flow"] is type(flow.operator)


def test_a_fresh_splice_draws_from_its_generator_and_leaves_the_global_one(teacher):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    weights = [
        lft.splice(teacher, (2, 5), lft.Flow(), generator).operator.velocity.modulation.inner.weight
        for generator in (None, torch.Generator().manual_seed(0), torch.Generator().manual_seed(1))
    ]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])


def test_attentions_and_states_are_refused_wherever_they_are_asked_for(teacher, ids):
    student = lft.splice(teacher, (2, 5), lft.Skip())
    for name in ("output_hidden_states", "output_attentions"):
        with pytest.raises(ValueError, match="not supported for spliced models"):
            student(ids, **{name: True})
    for config in (student.config, student.model.config):
        config.output_hidden_states = True
        with pytest.raises(ValueError, match="not supported for spliced models"):
            student(ids)
        assert student(ids, output_hidden_states=False).logits.shape == (*ids.shape, 300)  # what is said here counts
        config.output_hidden_states = False
    other = lft.splice(teacher, (2, 6), lft.Skip())
    cache = student(ids, use_cache=True).past_key_values
    with said(
        "This cache has 5 entries, and this model fills 4: a cache belongs to one model, and is not to be used after "
        "set_solver. Start with a new one."
    ):
        other(ids, past_key_values=cache)
    assert student(ids, use_cache=False).past_key_values is None
    with pytest.raises(ValueError, match="This is the model inside a student"):
        student.model.save_pretrained("nowhere")
