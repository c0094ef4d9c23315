"""Lesson 04: every typical mistake gets the message meant for it. (Solutions, stubs, garbage: test_exercises.py.)"""

import functools
import math

import numpy as np
import pytest
import torch
from test_exercises import solutions

import lft_edu as lft
from lft_edu.exercises import check, lesson04
from lft_edu.latents import hidden_states_at_all_layers


def caught(model, ids):
    return torch.stack(hidden_states_at_all_layers(model, ids)[0])[:, 0]


def added(model, ids):
    return lesson04.parts_of(model, ids)[1]


def left_hooked(model, ids):
    model.gpt_neox.layers[1].register_forward_hook(lambda *a: None)
    return added(model, ids)


def states_around(model, ids):
    states = caught(model, ids)
    return torch.stack([states[:-1], states[1:]], 1)


def stream_after(model, ids):
    return caught(model, ids)[:-1, None] + added(model, ids)


def only_three(model, ids):
    """Hard-coded to three layers."""
    updates = added(model, ids)
    return torch.cat([updates[:2], updates[-1:]])


def axes(x, center=True):
    return torch.linalg.svd(x - x.mean(0) if center else x).Vh


def hides(fitted, teacher, student, by=None, rows=slice(0, 2), apart=None, of=lambda shown, whole: 1 - shown / whole):
    """What a picture hides, with something changed: its axes, the difference, what becomes of the squares."""
    d = student - teacher if apart is None else apart(teacher, student)
    shown = (d @ (axes(fitted) if by is None else by)[rows].T).square()
    return of(shown.sum(), d.square().sum())


def one_by_one(fitted, teacher, student):
    return torch.stack([hides(fitted, *pair) for pair in zip(teacher, student, strict=True)]).mean()


def explained(fitted, *others):
    s = torch.linalg.svdvals(fitted - fitted.mean(0)).square()
    return 1 - s[:2].sum() / s.sum()


def in_place(fitted, teacher, student):
    student -= teacher
    return hides(fitted, 0 * teacher, student)


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


def lens(states, norm, head, read=None, choose=None, of=lambda logits: logits.softmax(-1)):
    """The lens at all depths, with something changed: how states are read, which token is followed."""
    x = torch.cat(states)
    logits = head(torch.cat([norm(x[:-1]), x[-1:]]) if read is None else read(x, norm))
    choice = (logits[-1] if choose is None else choose(x, norm, head)).argmax(-1)
    return of(logits).gather(-1, choice.expand(logits.shape[:2])[..., None])[..., 0]


def normed_by_hand(x, norm):
    return torch.cat([torch.nn.functional.layer_norm(x[:-1], x.shape[-1:]), x[-1:]])


def twice(x, norm, head):
    return head(norm(x[-1]))


def once(x, norm, head):
    return head(x[-1])


def favorites(states, norm, head, read=lambda x, norm: torch.cat([norm(x[:-1]), x[-1:]])):
    return head(read(torch.cat(states), norm)).softmax(-1).amax(-1)


def everything(states, norm, head):
    x = torch.cat(states)
    return head(torch.cat([norm(x[:-1]), x[-1:]])).softmax(-1)


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
    ("4.1", lambda m, i: lesson04.parts_of(m, i)[0], "what attention and MLP *read*"),
    ("4.1", lambda m, i: added(m, i).flip(1), "The MLP comes first"),
    ("4.1", states_around, "These are states, before and after"),
    ("4.1", stream_after, "without the state"),
    ("4.1", lambda m, i: added(m, i).sum(1, keepdim=True).expand(-1, 2, -1, -1), "in both places"),
    ("4.1", lambda m, i: added(m, i).flip(0), "reversed"),
    ("4.1", lambda m, i: added(m, i)[-1:].expand(3, -1, -1, -1), "instead of appending"),
    ("4.1", lambda m, i: added(m, i)[:1].expand(3, -1, -1, -1), "Hook every layer"),
    ("4.1", lambda m, i: added(m, i).transpose(0, 1).reshape(3, 2, 5, 32), "all attentions first"),
    ("4.1", lambda m, i: added(m, i)[:, :, None], "batch axis"),
    ("4.1", lambda m, i: added(m, i).sum(1), "Keep attention's and the MLP's apart"),
    ("4.1", caught, "Updates lie between the depths"),
    ("4.1", lambda m, i: added(m, i).flatten(0, 1), "unflatten"),
    ("4.1", lambda m, i: added(m, i).transpose(0, 1), "The layer comes first"),
    ("4.1", lambda m, i: list(added(m, i)), "torch.stack"),
    ("4.1", lambda m, i: m(input_ids=i).logits, "must have shape (3, 2, 5, 32)"),
    ("4.1", lambda m, i: added(m, i) * 1.1, "Largest difference"),
    ("4.1", left_hooked, "left hooks on the model (1)"),
    ("4.1", only_three, "must have shape (2, 2, 9, 32)"),
    ("4.2", lambda f, a, b: 1 - hides(f, a, b), "picture *shows*"),
    ("4.2", functools.partial(hides, of=lambda s, w: 1 - (s / w).sqrt()), "lengths do not"),
    ("4.2", lambda f, a, b: hides(f, a, b).sqrt(), "You took the root"),
    ("4.2", functools.partial(hides, of=lambda s, w: w - s), "lies between 0 and 1"),
    ("4.2", one_by_one, "mean of the fractions"),
    ("4.2", lambda f, a, b: hides(a, a, b) if len(a) > 7 else hides(f, a, b), "to the teacher's states"),
    ("4.2", lambda f, a, b: hides(b, a, b) if len(a) > 7 else hides(f, a, b), "to the student's states"),
    ("4.2", lambda f, a, b: hides(torch.cat([a, b]) if len(a) > 7 else f, a, b), "teacher and student together"),
    ("4.2", lambda f, a, b: hides(torch.cat([f, a, b]) if len(a) > 7 else f, a, b), "all three together"),
    ("4.2", lambda f, a, b: hides(f, a, b, axes(b - a, False) if len(a) > 7 else None), "hides least of them"),
    ("4.2", lambda f, a, b: hides(b - a if len(a) > 7 else f, a, b), "centered differences"),
    ("4.2", lambda f, a, b: hides(a, a, b), "Largest difference"),
    (
        "4.2",
        lambda f, a, b: hides(f, a, b, apart=lambda a, b: (b - a) - (b - a).mean(0) * (len(a) > 7)),
        "moved by together",
    ),
    ("4.2", lambda f, a, b: hides(f, a, b, axes(f, len(a) == 7)), "not centered"),
    ("4.2", lambda f, a, b: hides(f, a, b, axes(f).T if len(a) > 7 else None), "*rows* are the axes"),
    ("4.2", lambda f, a, b: hides(f, a, b, rows=slice(-2, None) if len(a) > 7 else slice(2)), "vary *least*"),
    ("4.2", lambda f, a, b: hides(f, a, b, rows=slice(0, 1 + (len(a) == 7))), "one axis"),
    ("4.2", lambda f, a, b: hides(f, a, b, rows=slice(0, 2 + (len(a) != 7))), "three axes"),
    ("4.2", lambda f, a, b: explained(f) if len(a) > 7 else hides(f, a, b), "variance of the *fitted*"),
    ("4.2", lambda f, a, b: hides(f, a, b).expand(25), "one for all states together"),
    ("4.2", in_place, "changed the states themselves"),
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
    ("4.4", functools.partial(lens, read=lambda x, n: n(x), choose=once), "Your choice is right"),
    ("4.4", functools.partial(lens, read=lambda x, n: n(x)), "and took the choice from there"),
    ("4.4", functools.partial(lens, choose=twice), "The probabilities are read right"),
    ("4.4", favorites, "each depth's own favorites. Follow"),
    ("4.4", functools.partial(favorites, read=lambda x, n: n(x)), "and the last state was normed twice"),
    ("4.4", functools.partial(lens, read=lambda x, n: x), "left out the final norm"),
    ("4.4", functools.partial(lens, read=normed_by_hand), "by hand"),
    ("4.4", functools.partial(lens, of=lambda logits: logits), "These are logits"),
    ("4.4", functools.partial(lens, of=lambda logits: logits.log_softmax(-1)), "log-probabilities"),
    ("4.4", functools.partial(lens, of=lambda logits: logits.softmax(1)), "over the tokens"),
    ("4.4", functools.partial(lens, of=lambda logits: logits.softmax(0)), "over the depths"),
    ("4.4", functools.partial(lens, choose=lambda x, n, h: h(x[-1])[-1:]), "each position has its own choice"),
    ("4.4", functools.partial(lens, of=lambda logits: logits.sigmoid()), "Largest difference"),
    ("4.4", lambda *a: lens(*a)[:, None], "batch axis"),
    ("4.4", lambda *a: lens(*a).T, "tokens first"),
    ("4.4", everything, "whole distributions"),
    ("4.4", lambda *a: everything(*a)[-1], "read every depth"),
    ("4.4", lambda *a: lens(*a)[:-1], "the last one counts, too"),
    ("4.4", lambda *a: lens(*a)[0], "must have shape (5, 4)"),
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
    assert check("4.1", lambda m, i: added(m, i).numpy())
    assert check("4.2", lambda f, a, b: hides(f.double(), a.double(), b.double()).numpy())
    assert check("4.2", lambda f, a, b: hides(f, a, b, torch.linalg.eigh(torch.cov(f.T))[1].T.flip(0)))
    assert check("4.2", by_what_is_left)
    assert check("4.3", lambda x: np.array(lesson04.place_of(lesson04.ratios(x))))
    assert check("4.3", lambda x: lesson04.place_of(lesson04.ratios(x).square()))
    assert check("4.4", lambda *a: lens(*a).detach().double().numpy())
    assert check("4.5", lambda p: np.arccos(np.clip(angles(p, lambda c: c).numpy(), -1, 1)))
    assert check("4.5", lambda p: lft.trajectories.Trajectory.curvature(_path(p))[:, 0])


def by_what_is_left(fitted, teacher, student):
    """Subtract from each state what the picture shows of it, the mean included; compare what is left."""
    mean, two = fitted.mean(0), axes(fitted)[:2]
    left = [x - mean - (x - mean) @ two.T @ two for x in (teacher, student)]
    return (left[1] - left[0]).square().sum() / (student - teacher).square().sum()


def test_what_is_hidden_is_the_librarys(states):
    pca = lft.PCA(dimensions=2).fit(states.flatten(0, 1))
    teacher, student = states[3], states[3] + states[4].flip(0)
    mine = solutions()["4.2"](states.flatten(0, 1), teacher, student).item()
    assert mine == pytest.approx(lft.projections.distortion(pca, teacher, student).hidden, abs=1e-5)


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
