"""Lesson 04: every typical mistake gets the message meant for it. (Solutions, stubs, garbage: test_exercises.py.)"""

import functools
import math

import numpy as np
import pytest
import torch

import lft_edu as lft
from lft_edu.exercises import check, lesson04
from lft_edu.latents import hidden_states_at_all_layers


def caught(model, ids):
    return torch.stack(hidden_states_at_all_layers(model, ids)[0])[:, 0]


def listed(model, ids):
    return torch.cat(model(input_ids=ids, output_hidden_states=True).hidden_states)


def normed(model, ids):
    return model.gpt_neox.final_layer_norm(caught(model, ids))


def left_hooked(model, ids):
    model.gpt_neox.layers[1].register_forward_hook(lambda *a: None)
    return caught(model, ids)


def both_hooks(model, ids):
    states = caught(model, ids)
    return torch.stack([states[:-1], states[1:]], 1).flatten(0, 1)


def only_three(model, ids):
    """Hard-coded to three layers."""
    states = caught(model, ids)
    return torch.cat([states[:3], states[-1:]])


def axes(x, center=True):
    return torch.linalg.svd(x - x.mean(0) if center else x).Vh


def pca(fitted, other, mean=None, rows=slice(0, 2), by=None):
    mean = fitted.mean(0) if mean is None else mean
    return (other - mean) @ axes(fitted if by is None else by)[rows].T


def upward(fitted, other):
    return (other - fitted.mean(0)) @ torch.linalg.eigh(torch.cov(fitted.T)).eigenvectors[:, :2]


def standardized(fitted, other):
    return pca(fitted / fitted.std(0), other / fitted.std(0))


def in_place(fitted, other):
    mean = fitted.mean(0)
    other -= mean
    return other @ axes(fitted)[:2].T


def turned_by_company(fitted, other):
    """The sign of an axis depends on who else is there."""
    return pca(fitted, other) * other.mean(0).sum().sign()


def ratio(norms, by):
    return lesson04.place_of(norms / by)


def relative(norms):
    return ratio(norms, norms.median(1, True).values)


def swapped(states):
    token, depth = lesson04.place_of(lesson04.ratios(states))
    return depth, token


def first_table(states):
    """Right about the first states, by heart."""
    return 4, 1


def lens(state, norm, head):
    return head(norm(state)).softmax(-1)


def angles(path, use=torch.arccos, clamp=True):
    steps = path.diff(dim=0)
    cosine = (steps[1:] * steps[:-1]).sum(-1) / steps[1:].norm(dim=-1) / steps[:-1].norm(dim=-1)
    return use(cosine.clamp(-1, 1) if clamp else cosine)


def between(a, b):
    return torch.nn.functional.cosine_similarity(a, b, dim=-1).clamp(-1, 1).arccos()


def plane_only(path):
    """Looks at the first two dimensions."""
    return angles(path[:, :2])


WRONG = [
    ("4.1", listed, "*after* the final norm"),
    ("4.1", normed, "All states went through"),
    ("4.1", lambda m, i: caught(m, i)[1:], "input of layer 0 is missing: a forward"),
    ("4.1", lambda m, i: caught(m, i)[:-1], "pre-hooks alone"),
    ("4.1", lambda m, i: listed(m, i)[1:], "and the last state is after"),
    ("4.1", lambda m, i: torch.cat([caught(m, i)[1:], normed(m, i)[-1:]]), "Off by one"),
    ("4.1", lambda m, i: torch.cat([caught(m, i)[:1], caught(m, i)[:-1]]), "is there twice, the output"),
    ("4.1", both_hooks, "one pre-hook, on layer 0, is enough"),
    ("4.1", lambda m, i: caught(m, i)[:2], "2 states; 3 layers have 4 depths"),
    ("4.1", lambda m, i: caught(m, i).flip(0), "reversed"),
    ("4.1", lambda m, i: caught(m, i)[-1:].expand(4, -1, -1), "instead of appending"),
    ("4.1", lambda m, i: caught(m, i)[:1].expand(4, -1, -1), "Hook every layer"),
    ("4.1", lambda m, i: caught(m, i)[:, None], "batch axis"),
    ("4.1", lambda m, i: caught(m, i)[None], "batch axis"),
    ("4.1", lambda m, i: list(caught(m, i)), "torch.stack"),
    ("4.1", lambda m, i: caught(m, i).transpose(0, 1), "depths, tokens, width"),
    ("4.1", lambda m, i: m(input_ids=i).logits, "must have shape (4, 5, 32)"),
    ("4.1", left_hooked, "left hooks on the model (1)"),
    ("4.1", only_three, "2 layers"),
    ("4.2", lambda f, o: pca(o, o), "You fitted again"),
    ("4.2", lambda f, o: pca(f, o, o.mean(0)), "own mean: every cloud"),
    ("4.2", lambda f, o: pca(torch.cat([f, o]), o), "both together"),
    ("4.2", lambda f, o: pca(f, o, 0), "did not subtract the mean from what you project"),
    ("4.2", lambda f, o: (o - f.mean(0)) @ axes(f, False)[:2].T, "not centered"),
    ("4.2", lambda f, o: o @ axes(f, False)[:2].T, "no mean"),
    ("4.2", lambda f, o: (o - o.mean(1, True)) @ axes(f - f.mean(1, True), False)[:2].T, "dim=1"),
    ("4.2", lambda f, o: pca(f, o, rows=[1, 0]), "wrong order"),
    ("4.2", lambda f, o: pca(f, o, rows=[0, 2]), "Largest difference"),
    ("4.2", lambda f, o: pca(f, o, rows=slice(-2, None)), "vary *least*"),
    ("4.2", upward, "eigh sorts upward"),
    ("4.2", lambda f, o: (o - f.mean(0)) @ axes(f)[:, :2], "*rows* are the axes"),
    ("4.2", lambda f, o: pca(f, o) / torch.linalg.svdvals(f - f.mean(0))[:2], "divided by the singular values"),
    ("4.2", lambda f, o: pca(f, o) / pca(f, f).std(0), "same standard deviation"),
    ("4.2", standardized, "each dimension by its standard deviation"),
    ("4.2", lambda f, o: pca(f, f), "You returned 40 points"),
    ("4.2", lambda f, o: torch.linalg.svd(f - f.mean(0), full_matrices=False)[0][:, :2], "You returned 40 points"),
    ("4.2", lambda f, o: pca(f, o).T, "Transpose"),
    ("4.2", lambda f, o: (f.mean(0), axes(f)[:2]), "2 things"),
    ("4.2", lambda f, o: pca(f, o, rows=slice(0, 3)), "must have shape (25, 2)"),
    ("4.2", in_place, "changed the states themselves"),
    ("4.2", turned_by_company, "changed its sign"),
    ("4.2", lambda f, o: pca(torch.cat([f, o]) if len(o) > 25 else f, o), "together with other states"),
    ("4.3", lambda x: lesson04.place_of(lesson04.ratios(x))[0], "return two"),
    ("4.3", lambda x: lesson04.ratios(x).argmax(), "divmod"),
    ("4.3", swapped, "swapped"),
    ("4.3", lambda x: lesson04.place_of(x.norm(dim=-1)), "largest norm of all"),
    ("4.3", lambda x: ratio(x.norm(dim=-1), x.norm(dim=-1).median()), "largest norm of all"),
    ("4.3", lambda x: relative(x.abs().sum(-1)), "sum of absolute values"),
    ("4.3", lambda x: relative(x.abs().amax(-1)), "largest entry"),
    ("4.3", lambda x: ratio(x.norm(dim=-1), x.norm(dim=-1).mean(1, True)), "an outlier moves the mean"),
    ("4.3", lambda x: ratio(x.norm(dim=-1), x.norm(dim=-1).median(0).values), "each token with itself"),
    ("4.3", first_table, "counted from 0"),
    ("4.3", lambda x: (0, 0), "times the median norm of its depth"),
    ("4.3", lambda x: (0.5, 1), "whole numbers"),
    ("4.3", lambda x: x.norm(dim=-1), "must have shape (2,)"),
    ("4.4", lambda x, n, h: h(x).softmax(-1), "left out the final norm. The head"),
    ("4.4", lambda x, n, h: h(x), "and the softmax"),
    ("4.4", lambda x, n, h: h(n(x)).softmax(0), "each *row* sums to 1"),
    ("4.4", lambda x, n, h: h(n(x)).flatten().softmax(0).view(4, 9), "everything at once"),
    ("4.4", lambda x, n, h: h(n(x)), "These are the logits"),
    ("4.4", lambda x, n, h: h(n(x)).log_softmax(-1), "log-probabilities"),
    ("4.4", lambda x, n, h: lens(n(x), n, h), "norm twice"),
    ("4.4", lambda x, n, h: h(torch.nn.functional.layer_norm(x, x.shape[-1:])).softmax(-1), "by hand"),
    ("4.4", lambda x, n, h: lens(x, n, h).softmax(-1), "softmax twice"),
    ("4.4", lambda x, n, h: h(n(x)).sigmoid(), "Largest difference"),
    ("4.4", lambda x, n, h: lens(x, n, h)[-1], "one for each of the 4"),
    ("4.4", lambda x, n, h: lens(x, n, h).argmax(-1), "whole distribution"),
    ("4.4", lambda x, n, h: lens(x, n, h).T, "must have shape (4, 9)"),
    ("4.5", lambda p: angles(p, lambda c: c), "You returned the cosine"),
    ("4.5", lambda p: angles(p, lambda c: 1 - c), "1 − cosine"),
    ("4.5", lambda p: angles(p).rad2deg(), "degrees"),
    ("4.5", lambda p: math.pi - angles(p), "π minus"),
    ("4.5", lambda p: between(p[:-1], p[1:]), "3 angles for 4 states"),
    ("4.5", lambda p: between(p[1:-1], p[2:]), "between *states*, seen"),
    ("4.5", lambda p: between(p[:-2], p[1:-1]), "between *states*. Take"),
    ("4.5", lambda p: between(p.diff(dim=0)[1:], p.diff(dim=0)[:1]), "with the first one"),
    ("4.5", lambda p: (p.diff(dim=0)[1:] * p.diff(dim=0)[:-1]).sum(-1).clamp(-1, 1).arccos(), "lengths of the steps"),
    ("4.5", functools.partial(angles, clamp=False), "Clamp it"),
    ("4.5", lambda p: angles(p, clamp=False).numpy(), "Clamp it"),
    ("4.5", lambda p: angles(p, torch.arcsin), "Largest difference"),
    ("4.5", plane_only, "Largest difference"),
    ("4.5", lambda p: angles(p).sum(), "S − 2 of them"),
    ("4.6", lambda: "x = 1", "10 to 64 tokens"),
    ("4.6", lambda: "x = 1\n" * 40, "10 to 64 tokens"),
    ("4.6", lambda: "x" * 10_000_000, "10,000,000 characters"),
    ("4.6", lambda: b"def mean(values): return sum(values) / len(values)", "return a string"),
    ("4.6", lambda: "\ud800" * 20, "not valid text"),
    ("4.6", lambda: "<|endoftext|>" * 20, "special token"),
    ("4.6", lambda: "!" * 58, "The teacher itself predicts this text badly"),  # KL 0.87
    ("4.6", lambda: "x = [" + "0, " * 20 + "0]", "follows too well"),
    ("4.6", lambda: "# Unless required by applicable law or agreed to in writing, software\n", "follows too well"),
]


@pytest.mark.parametrize(("number", "answer", "words"), WRONG, ids=lambda v: v if isinstance(v, str) else "")
def test_typical_mistakes_get_their_message(number, answer, words):
    report = check(number, answer)
    assert not report
    assert words in report.message
    assert report.failed


def test_other_ways_pass():
    """numpy, float64, another sign, eigenvectors, angles by two arguments: what counts is the value."""
    assert check("4.1", lambda m, i: torch.cat([listed(m, i)[:-1], caught(m, i)[-1:]]).numpy())
    assert check("4.2", lambda f, o: -pca(f, o))
    assert check("4.2", lambda f, o: pca(f.double(), o.double()) * torch.tensor([1, -1]))
    assert check("4.2", lambda f, o: (o - f.mean(0)) @ torch.linalg.eigh(torch.cov(f.T))[1][:, [-1, -2]])
    assert check("4.3", lambda x: np.array(lesson04.place_of(lesson04.ratios(x))))
    assert check("4.3", lambda x: lesson04.place_of(lesson04.ratios(x).square()))
    assert check("4.4", lambda x, n, h: lens(x, n, h).detach().numpy())
    assert check("4.5", lambda p: np.arccos(np.clip(angles(p, lambda c: c).numpy(), -1, 1)))
    assert check("4.5", lambda p: lft.trajectories.Trajectory.curvature(_path(p))[:, 0])


def _path(states):
    return lft.trajectories.Trajectory(states[:, None], torch.arange(len(states)), [""], torch.zeros(1), "", None, None)


@pytest.mark.parametrize("number", ["4.1", "4.2", "4.3", "4.4", "4.5", "4.6"])
def test_stranger_answers_do_not_crash_a_check(number):
    import pandas

    for value in (
        pandas.DataFrame({"a": [1.0]}),
        torch.zeros(2, device="meta"),
        {1, 2},
        object(),
        np.array("a"),
        1e300,
    ):
        assert check(number, lambda *a, value=value: value).message


def test_a_failing_text_shows_how_far_it_is():
    """Both numbers, and where the student loses most: something to climb by."""
    message = check("4.6", lambda: "for name in names:\n    print(name, len(name))\n" * 3).message
    assert "Yours, 45 tokens: KL 0.20" in message
    assert "loss 2.34" in message
    assert "differs most after" in message
