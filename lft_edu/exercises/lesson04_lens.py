"""Checks of lesson 04: the logit lens at every depth, and how a path bends."""

from contextlib import suppress

import torch
from torch import Tensor

from .checking import Wrong, close, exercise, tensor
from .lesson04 import small_model


def readable(states: Tensor, norm, head, last=None, choice: Tensor | None = None) -> Tensor:
    """Return the probability (S, T) that states (S, T, D), the last one normed already, give to the final choice.

    Args:
        last: what to do with the last state before the head; None: nothing. ``choice``: another one, (S, T) or (T,).
    """
    read = torch.cat([norm(states[:-1]), states[-1:] if last is None else last(states[-1:])])
    logits = head(read)
    choice = (head(states[-1]).argmax(-1) if choice is None else choice).expand(logits.shape[:2])
    return logits.softmax(-1).gather(-1, choice[..., None])[..., 0]


@exercise("4.4", "When can it be read?", difficulty=2, minutes=12)
def lens(answer):
    generator = torch.Generator().manual_seed(13)  # four tokens, four choices; a second norm changes all of them
    norm, head = torch.nn.LayerNorm(6), torch.nn.Linear(6, 9, bias=False)
    for p in (*norm.parameters(), *head.parameters()):
        p.requires_grad_(False).copy_(torch.randn(p.shape, generator=generator))
    x = 2 * torch.randn(5, 4, 6, generator=generator).cumsum(0)
    states = torch.cat([x[:-1], norm(x[-1:])])
    given = tuple(state[None] for state in states)
    yield "one probability for each depth and token"
    value = tensor(answer(given, norm, head), None, "the probabilities")
    for message, shape in {
        "You returned (5, 1, 4): the batch axis is left in. There is one text: take state[0].": (5, 1, 4),
        "You returned (4, 5), tokens first: the depth comes first, (5, 4).": (4, 5),
        "You returned whole distributions, (5, 4, 9): take the probability of one token from each, the one that the "
        "model chooses in the end.": (5, 4, 9),
        "You returned the distributions of one depth, (4, 9): read every depth.": (4, 9),
        "You returned four depths: the last one counts, too.": (4, 4),
    }.items():
        if tuple(value.shape) == shape:
            raise Wrong(message)
    mine = tensor(value, (5, 4), "the probabilities", "depths, tokens")

    yield "of the token that the model chooses in the end; the last state has gone through the norm already"
    own, twice = head(norm(states)), head(norm(states[-1])).argmax(-1)
    logits = torch.cat([own[:-1], head(states[-1:])])
    choice, wanted = logits[-1].argmax(-1), readable(states, norm, head)
    pick = lambda table: table.gather(-1, choice.expand(5, 4)[..., None])[..., 0]  # noqa: E731
    close(mine, wanted, "the probabilities", {
        "You normed the last state twice: in what output_hidden_states gives, it has gone through the final norm "
        "already. (Your choice is right.)": readable(states, norm, head, norm),
        "You normed the last state twice, and took the choice from there: in what output_hidden_states gives, the last "
        "state has gone through the final norm already.": readable(states, norm, head, norm, twice),
        "The probabilities are read right. But the choice comes from a last state that was normed twice: it has gone "
        "through the final norm already.": readable(states, norm, head, choice=twice),
        "These are each depth's own favorites. Follow one token through all depths: the one chosen at the last.":
            logits.softmax(-1).amax(-1),
        "These are each depth's own favorites, and the last state was normed twice.": own.softmax(-1).amax(-1),
        "You left out the final norm. The head was trained on normalized states; only the last one has it already.":
            pick(head(states).softmax(-1)),
        "You normalized by hand, without the learned weight and bias of the norm. Call norm(state).":
            pick(torch.cat([head(torch.nn.functional.layer_norm(x[:-1], (6,))), logits[-1:]]).softmax(-1)),
        "These are logits. A softmax makes them probabilities.": pick(logits),
        "These are log-probabilities: softmax, not log_softmax.": pick(logits.log_softmax(-1)),
        "The softmax is over the tokens of the text. It is over the vocabulary, dim=-1.": pick(logits.softmax(1)),
        "The softmax is over the depths. It is over the vocabulary, dim=-1.": pick(logits.softmax(0)),
        "You followed one token, the choice after the whole text: each position has its own choice.":
            readable(states, norm, head, choice=choice[-1:]),
    })  # fmt: skip
    yield "a real model: the last row is its own probability"
    for model, ids in ((small_model(3), torch.tensor([[3, 41, 7, 7, 20]])), (small_model(2), torch.arange(8)[None])):
        with torch.no_grad():
            out = model(input_ids=ids, use_cache=False, output_hidden_states=True)
            norm, head = model.gpt_neox.final_layer_norm, model.get_output_embeddings()
            wanted = readable(torch.cat(out.hidden_states), norm, head)
            found = answer(out.hidden_states, norm, head)
        close(found, wanted, "the probabilities")
        close(tensor(found, wanted.shape, "it")[-1], out.logits[0].softmax(-1).amax(-1), "the last row")


def turns(path: Tensor) -> Tensor:
    """Return the angles (S − 2,) between successive steps, float64."""
    steps = torch.nn.functional.normalize(path.double().diff(dim=0), dim=-1)
    return (steps[1:] * steps[:-1]).sum(-1).clamp(-1, 1).arccos()


@exercise("4.5", "How a path bends", difficulty=2, minutes=10)
def turning(answer):
    corner = torch.tensor([[1.0, 1.0], [4.0, 1.0], [4.0, 2.0], [0.0, 5.0]])
    path = torch.randn(7, 4, generator=torch.Generator().manual_seed(6)).cumsum(0) + 2
    yield "an angle at each inner state: S states have S − 2"
    mine = tensor(_not_nan(answer(corner)), None, "the angles")
    if mine.shape == (3,):
        raise Wrong(
            "You returned 3 angles for 4 states. Four states are three steps, and between three steps there are two "
            "turns. Take differences first: path.diff(dim=0)."
        )
    tensor(mine, (2,), "the angles", "S − 2 of them")

    yield "by hand: steps (3, 0), (0, 1), (−4, 3) turn by 90°, then by arccos(3/5)"
    steps = corner.diff(dim=0)
    unscaled = (steps[1:] * steps[:-1]).sum(-1).clamp(-1, 1).arccos()
    lengths = {"You did not divide by the lengths of the steps: cos = a·b / (|a| |b|).": unscaled}
    close(mine, turns(corner), "the angles", _wrong_angles(corner) | lengths)
    yield "any path, in any number of dimensions"
    want = turns(path)
    close(_not_nan(answer(path)), want, "the angles", _wrong_angles(path), tolerance=1e-3)
    close(_not_nan(answer(50 * path - 7)), want, "the angles of a path 50 times as large", tolerance=1e-3)
    yield "straight on is 0, and back again is π"
    for seed in range(40):
        step = torch.randn(5, generator=torch.Generator().manual_seed(seed))
        straight = torch.arange(1.0, 5)[:, None] * step
        close(_not_nan(answer(straight)), torch.zeros(2), "the angles of a straight line", tolerance=3e-3)
        back = torch.stack([0 * step, step, 0 * step])
        close(_not_nan(answer(back)), [torch.pi], "the angle of a path there and back", tolerance=3e-3)


def _not_nan(value):
    """Return ``value``, or explain NaN, which has one cause here."""
    with suppress(TypeError, ValueError, RuntimeError):  # not numbers: reported by the next check
        if torch.as_tensor(value).isnan().any():
            raise Wrong(
                "NaN. Rounding makes the cosine of two equal directions 1.0000001, and no angle has that cosine. Clamp "
                "it to [−1, 1] before the arccos; and divide by the lengths of the steps."
            )
    return value


def _wrong_angles(path: Tensor) -> dict[str, Tensor]:
    """Return what common mistakes give instead of the angles between steps: message → value."""
    right, x, steps = turns(path), path.double(), path.double().diff(dim=0)
    between = lambda a, b: torch.nn.functional.cosine_similarity(a, b, dim=-1).clamp(-1, 1).arccos()  # noqa: E731
    return {
        "You returned the cosine. The angle is its arccos.": right.cos(),
        "You returned 1 − cosine. The angle is the arccos of the cosine.": 1 - right.cos(),
        "You returned degrees: return radians, π is half a turn.": right.rad2deg(),
        "You returned π minus the angle: straight on would be π. Subtract states in the same order for both steps.":
            torch.pi - right,
        "That is the angle between *states*, seen from the origin: it changes when all states are translated. Take "
        "the angle between steps, path.diff(dim=0).": between(x[1:-1], x[2:]),
        "That is the angle between *states*. Take the angle between steps, path.diff(dim=0).": between(x[:-2], x[1:-1]),
        "You compared every step with the first one. Compare it with the one before.": between(steps[1:], steps[:1]),
    }  # fmt: skip
