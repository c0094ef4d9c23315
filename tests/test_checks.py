"""Values of the wrong kind, for every argument that a public function takes: converted, or refused in words."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lft_edu as lft
from lft_edu import drafting, trajectories
from lft_edu.couplings import Coupling, assign
from lft_edu.flow import walk
from lft_edu.latents import depth_states
from lft_edu.objectives import flow_matching_loss
from lft_edu.support import checks
from lft_edu.support.statistics import interval
from lft_edu.text import complete

WRONG = {
    "None": None, "a list": [1, "x"], "a string": "abc", "a truth value": True, "a negative number": -3,
    "a fraction": 1.5, "nan": float("nan"), "a number in a tensor": torch.tensor(-1.5), "no row": torch.zeros(0, 3),
    "no numbers": torch.ones(4, 3, device="meta"), "complex": torch.ones(4, 3, dtype=torch.complex64),
    "four axes": torch.ones(2, 2, 2, 2), "an object": object(), "a dictionary": {}, "strings": np.array(["a"]),
}  # fmt: skip
X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
IDS = torch.arange(1, 33).reshape(2, 16)


def still(x, t):
    return 0 * x


def calls(teacher, tokenizer):
    """Each argument by the name of its function: a call with that argument, and values that are right for it."""
    student = lft.splice(teacher, (6, 18), lft.Flow())
    path = lft.capture(student, tokenizer, "x = 1")
    states = depth_states(teacher, IDS, 2)
    return {
        "recoupling_ratio x0": (lambda v: lft.recoupling_ratio(v, X), ()),
        "recoupling_ratio x1": (lambda v: lft.recoupling_ratio(X, v), ()),
        "Coupling x0": (lambda v: Coupling(v, X), ()),
        "Coupling group": (lambda v: Coupling(X, X, v), ("None",)),
        "Coupling.at": (
            lambda v: Coupling(X, X).at(v),
            ("a negative number", "a fraction", "nan", "a number in a tensor"),
        ),
        "assign": (assign, ()),
        "walk x0": (lambda v: walk(still, v, [0, 1]), [k for k in WRONG if isinstance(WRONG[k], torch.Tensor)]),
        "walk times": (lambda v: walk(still, X, v), ()),
        "walk velocity": (lambda v: walk(v, X, [0, 1]), ()),
        "flow_matching_loss": (lambda v: flow_matching_loss(still, v, X), ()),
        "splice teacher": (lambda v: lft.splice(v, (6, 18), lft.Skip()), ()),
        "splice span": (lambda v: lft.splice(teacher, v, lft.Skip()), ()),
        "splice operator": (lambda v: lft.splice(teacher, (6, 18), v), ()),
        "fit student": (lambda v: lft.fit(v, teacher, IDS), ()),
        "fit teacher": (lambda v: lft.fit(student, v, IDS), ()),
        "fit corpus": (lambda v: lft.fit(student, teacher, v, progress=False), ()),
        "fit objective": (lambda v: lft.fit(student, teacher, IDS, v, max_steps=1, progress=False), ("None",)),
        "fit training": (lambda v: lft.fit(student, teacher, IDS[:0], training=v), ()),
        "evaluate student": (lambda v: lft.evaluate(v, teacher, IDS), ()),
        "evaluate teacher": (lambda v: lft.evaluate(student, v, IDS), ()),
        "evaluate corpus": (lambda v: lft.evaluate(student, teacher, v), ()),
        "evaluate batch_size": (lambda v: lft.evaluate(student, teacher, IDS, v), ("None",)),
        "acceptance": (lambda v: lft.acceptance(teacher, student, v), ()),
        "draft input_ids": (lambda v: lft.draft(teacher, student, v), ()),
        "draft max_new_tokens": (lambda v: lft.draft(teacher, student, IDS[:1], v), ()),
        "expected_tokens": (lambda v: drafting.expected_tokens(v, 2), ()),
        "expected_tokens lookahead": (lambda v: drafting.expected_tokens(0.5, v), ()),
        "worst_tokens texts": (lambda v: lft.worst_tokens(student, teacher, tokenizer, v), ()),
        "worst_tokens n": (lambda v: lft.worst_tokens(student, teacher, tokenizer, ["x = 1"], v), ()),
        "capture model": (lambda v: lft.capture(v, tokenizer, "x"), ()),
        "capture tokenizer": (lambda v: lft.capture(teacher, v, "x"), ()),
        "capture text": (lambda v: lft.capture(teacher, tokenizer, v), ("a string",)),
        "complete model": (lambda v: complete(v, tokenizer, "x", 1), ()),
        "complete text": (lambda v: complete(teacher, tokenizer, v, 1), ("a string",)),
        "complete tokens": (lambda v: complete(teacher, tokenizer, "x", v), ()),
        "depth_states n": (lambda v: depth_states(teacher, IDS, v), ()),
        "depth_states corpus": (lambda v: depth_states(teacher, v, 1), ()),
        "scan_spans states": (lambda v: lft.scan_spans(v, progress=False), ()),
        "scan_spans criteria": (lambda v: lft.scan_spans(states, v, progress=False), ()),
        "scan_spans lengths": (lambda v: lft.scan_spans(states, lengths=v, progress=False), ("None",)),
        "PCA": (lambda v: lft.PCA().fit(v), ()),
        "Trajectory.at": (path.at, ("a fraction", "no row", "four axes")),
        "Trajectory.depth_index": (path.depth_index, ()),
        "velocity_at t": (lambda v: trajectories.velocity_at(student, path, 1, v, torch.zeros(2, 64)), ()),
        "velocity_at moves": (lambda v: trajectories.velocity_at(student, path, 1, 0.5, v), ()),
        "interval": (interval, ()),
        "load_student teacher": (lambda v: lft.load_student("bundled/ridge-6-18", v), ("None",)),
        "load_corpus tokenizer": (lambda v: lft.load_corpus("python-stdlib", v), ()),
        "load_corpus block_size": (lambda v: lft.load_corpus("python-stdlib", tokenizer, "test", v), ()),
        "Flow solver": (lft.Flow, ()),
        "Flow num_steps": (lambda v: lft.Flow("euler", v), ("None",)),
        "set_solver": (lambda v: student.set_solver(v), ("None",)),
        "random_teacher": (lft.random_teacher, ()),
        "RunSettings span": (lambda v: lft.RunSettings(span=v), ()),
        "export_plain": (lft.export_plain, ()),
    }


@pytest.fixture(scope="module")
def known(bundled):
    return calls(*bundled)


def raised(call, value):
    try:
        call(value)
    except Exception as error:
        return error


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_not_meant_is_refused_in_words(kind, known):
    for name, (call, right) in known.items():
        if kind in right:
            continue
        error = raised(call, WRONG[kind])
        assert isinstance(error, ValueError), f"{name}: {kind} raised {error!r}"
        assert len(str(error)) > 20


@given(st.lists(st.lists(st.floats(-9, 9, width=32), min_size=2, max_size=2), min_size=1, max_size=6))
@settings(max_examples=30, deadline=None)
def test_lists_and_arrays_are_tensors(rows):
    want = lft.recoupling_ratio(torch.tensor(rows), torch.tensor(rows).flip(0))
    for same in (rows, tuple(rows), np.array(rows, dtype=np.float32)):
        found = lft.recoupling_ratio(np.array(same, dtype=np.float32), torch.tensor(rows).flip(0))
        assert found.ratio == want.ratio
        assert torch.equal(checks.tensor("x", same).float(), torch.tensor(rows))
    coupling = Coupling(np.array(rows), np.array(rows))
    assert torch.equal(coupling.at(0.5), torch.tensor(rows, dtype=torch.float64))


def test_numbers_of_torch_and_numpy_are_numbers():
    for three in (3, np.int32(3), torch.tensor(3)):
        assert checks.whole(1)("n", three) == 3
        assert checks.real("t", three) == 3.0
    with pytest.raises(ValueError, match="n=True: give a whole number of at least 2"):
        checks.whole(2)("n", True)
    with pytest.raises(ValueError, match=r"n is a Tensor of shape \(2,\)"):
        checks.whole(2)("n", torch.ones(2))


def test_defaults_and_signatures_stay():
    @checks.takes(n=checks.whole(1), names=checks.several(checks.word, "strings"))
    def f(n, names=("a",), *, more=None):
        """Say it."""
        return n, names, more

    assert f(torch.tensor(2)) == (2, ("a",), None)
    assert f(names=["b"], n=1, more=0) == (1, ["b"], 0)
    assert (f.__name__, f.__doc__) == ("f", "Say it.")
    with pytest.raises(TypeError, match="missing"):
        f()
