"""Checks of lesson 07 with trained operators or the bundled teacher: how well criteria predict the KL."""

import json
from functools import cache

import torch
from torch import Tensor

from ..lessons import progress
from ..spans import SpanScan
from ..support.statistics import rank_correlation
from .checking import Wrong, close, describe, exercise
from .lesson07 import close_hinted, number

# --- 7.4 ----------------------------------------------------------------------------------------------------------


def results():
    from ..loading.assets import ASSETS

    return ASSETS / "results"


@cache
def trained(name: str, seed: int = 0) -> dict[tuple[int, int], float]:
    """Load span → KL in nats per token after a short training, as measured by the recipe ``cut``."""
    rows = json.loads((results() / "cut.json").read_text(encoding="utf-8"))["rows"]
    return {tuple(r["span"]): r["kl"] for r in rows if r["name"] == name and r["seed"] == seed}


def lengths_of(spans) -> Tensor:
    return torch.tensor([n - m for m, n in spans])


def ranks(x: Tensor, groups: list[Tensor], method: str = "average", rank=None) -> Tensor:
    """Return the rank of each value within its group."""
    from scipy.stats import rankdata

    rank = rank or (lambda part: torch.from_numpy(rankdata(part.numpy(), method=method)).double())
    found = torch.zeros(len(x), dtype=torch.float64)
    for group in groups:
        found[group] = rank(x[group])
    return found


def centered(x: Tensor, groups: list[Tensor]) -> Tensor:
    found = x.clone()
    for group in groups:
        found[group] -= x[group].mean()
    return found


def correlation(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b) / (a.square().sum() * b.square().sum()).sqrt()


def rho_within(x: Tensor, y: Tensor, lengths: Tensor, **kwargs) -> Tensor:
    groups = [(lengths == length).nonzero()[:, 0] for length in lengths.unique()]
    return correlation(*(centered(ranks(v, groups, **kwargs), groups) for v in (x, y)))


def _wrong_rhos(x: Tensor, y: Tensor, lengths: Tensor) -> dict[str, Tensor]:
    """Return what common mistakes give instead of the rank correlation within lengths: message → value."""
    from scipy.stats import kendalltau

    groups = [(lengths == length).nonzero()[:, 0] for length in lengths.unique()]
    every = [torch.arange(len(x))]
    alone = torch.stack([rho_within(x[g], y[g], lengths[g]) for g in groups])
    sizes = torch.tensor([len(g) for g in groups]).double()
    within, right = [ranks(v, groups) for v in (x, y)], rho_within(x, y, lengths)
    order = lambda v: v.argsort(stable=True).argsort().double()  # noqa: E731
    gaps = (within[0] - within[1]).square()
    ties = "Ties: equal values get their *mean* rank (as in scipy.stats.rankdata). Yours "
    return {
        "That is Spearman's over all spans at once. Long spans are worse by any criterion, and that alone gives a high "
        "rho. Rank within each length.": rho_within(x, y, 0 * lengths),
        "That is Pearson's over all spans at once: rank first, and within each length.":
            correlation(centered(x, every), centered(y, every)),
        "That is Pearson's, of the values, within lengths: rank them first. One outlier would decide.":
            correlation(centered(x, groups), centered(y, groups)),
        "You ranked all spans together and only then went by length. Rank within each length.":
            correlation(*(centered(ranks(v, every), groups) for v in (x, y))),
        "The ranks are right, but you subtracted one mean from all. There are more spans of one length than of "
        "another, so their mean ranks differ, and that alone correlates. Subtract each length's own mean.":
            correlation(*(centered(v, every) for v in within)),
        "You did not subtract any mean rank. A correlation is of differences from the mean, of each length's own.":
            correlation(*within),
        "You took the mean of the lengths' own correlations: few spans then weigh as much as many. Put the centered "
        "ranks of all lengths together, and correlate once.": alone.mean(),
        "You weighted the lengths' own correlations by their numbers of spans. Near, but here the centered ranks of "
        "all lengths are put together, and correlated once.": (alone * sizes).sum() / sizes.sum(),
        "That is the first length alone.": alone[0],
        "That is the last length alone.": alone[-1],
        f"{ties}go by their order in the list, as argsort().argsort() does: then the order of the spans would matter.":
            rho_within(x, y, lengths, rank=order),
        f"{ties}all get the lowest rank (method='min').": rho_within(x, y, lengths, method="min"),
        f"{ties}all get the highest rank (method='max').": rho_within(x, y, lengths, method="max"),
        f"{ties}take one rank together, and the next value the next (method='dense').":
            rho_within(x, y, lengths, method="dense"),
        "argsort gives the index at each rank, not the rank of each value. Ranks are argsort().argsort(), or with ties "
        "scipy.stats.rankdata.": rho_within(x, y, lengths, rank=lambda v: v.argsort(stable=True).double()),
        "1 − 6 Σd² / (n³ − n) is right without ties, and for one group.":
            1 - 6 * sum(gaps[g].sum() for g in groups) / (sizes**3 - sizes).sum(),
        "1 − 6 Σd² / (n³ − n) is right without ties only, and with n of one length.":
            1 - 6 * gaps.sum() / (len(x) ** 3 - len(x)),
        "The sign is wrong: where both grow, rho is positive.": -right,
        "That is rho squared.": right.square(),
        "That is Kendall's tau over all spans at once. Wanted is Spearman's rho, within lengths.":
            torch.tensor(float(kendalltau(x.numpy(), y.numpy()).statistic)),
        "You divided ranks by the number of spans of their length; then short lists weigh as much as long ones.":
            correlation(*(centered(v / lengths_count(lengths), groups) for v in within)),
    }  # fmt: skip


def lengths_count(lengths: Tensor) -> Tensor:
    """Return for each span the number of spans of its length."""
    return (lengths[:, None] == lengths).sum(1).double()


@exercise("7.4", "Is an oracle any good?", difficulty=2, minutes=12)
def spearman(answer):
    from .lesson07 import _alike

    generator = torch.Generator().manual_seed(29)
    lengths = torch.tensor([6] * 9 + [12] * 5 + [3] * 4)[torch.randperm(18, generator=generator)]
    noise = torch.randn(2, 18, generator=generator, dtype=torch.float64)
    x = (lengths + 4 * noise[0]).div(3).round().clamp(min=0)  # with ties
    y = (0.2 * lengths + 0.6 * noise[0] + 0.8 * noise[1]).exp()

    def asked(*given: Tensor) -> Tensor:
        value = answer(*(v.clone() for v in given))
        if isinstance(value, tuple):
            raise Wrong(
                f"You returned {len(value)} things, such as a p-value or the ends of an interval: return rho alone."
            )
        return number(value, "rho")

    yield "a single number"
    mine = asked(x, y, lengths)
    advice = (
        "Rank both within each length (ties get their mean rank), subtract each length's mean rank, then "
        "Σab / √(Σa² Σb²) over all."
    )
    judge = lambda: close_hinted(mine, rho_within(x, y, lengths), "rho", _wrong_rhos(x, y, lengths), advice)  # noqa: E731

    yield "by hand: ranks (1, 2, 3 | 1, 2) and (1, 3, 2 | 1, 2) have rho 1.5/2.5 = 0.6"
    hand = torch.tensor([1.0, 2, 3, 10, 20]).double(), torch.tensor([0.1, 0.3, 0.2, 0.5, 0.6]).double()
    by_hand = asked(*hand, torch.tensor([6, 6, 6, 12, 12]))
    if not _alike(by_hand, 0.6):
        judge()  # ties and three lengths say more about what is wrong
    close_hinted(by_hand, 0.6, "rho", {}, advice)
    yield "18 spans of three lengths, with ties"
    judge()

    yield "only ranks count: exp of one, and the spans in another order, change nothing"
    shuffled = torch.randperm(18, generator=generator)
    close(asked(x.exp(), y, lengths), mine, "rho with exp(predicted)")
    close(asked(x[shuffled], y[shuffled], lengths[shuffled]), mine, "rho of the same spans in another order")
    close(asked(x, -y, lengths), -mine, "rho with −measured")
    kl, scan = trained("flow-matching"), SpanScan.load(results() / "scan.json")
    spans = sorted(kl)
    given = torch.stack([scan.ratios[s] for s in spans]), torch.tensor([kl[s] for s in spans], dtype=torch.float64)
    want = rho_within(*given, lengths_of(spans))
    yield f"the lesson's own data: R and the KL after flow matching, {len(spans)} spans, rho {float(want):.2f}"
    close(asked(*given, lengths_of(spans)), want, "rho of R and the KL after flow matching")


# --- 7.5 ----------------------------------------------------------------------------------------------------------

N_SAME, RATIO, SPAN = 256, 0.35, (6, 18)


@cache
def bundled():
    """Load the bundled teacher, its tokenizer, and 400,000 tokens of evaluation code."""
    from ..loading import corpora, teachers

    teacher, tokenizer = teachers.load_teacher("bundled", device="cpu")
    blocks = corpora.token_sequences("python-stdlib", tokenizer, "validation", 128)
    return teacher, tokenizer, blocks


@cache
def random_states() -> Tensor:
    """Return states of 512 tokens of 512 sequences at every depth, (25, 512, 64)."""
    from ..latents import depth_states

    teacher, _, blocks = bundled()
    return depth_states(teacher, blocks, 512, torch.Generator().manual_seed(0))


@cache
def of_token(token: int) -> tuple[float, float, float]:
    """Return R of the occurrences of one token, their mean distance at the start, and their mean displacement."""
    from ..couplings import recoupling_ratio
    from ..latents import depth_states

    teacher, _, blocks = bundled()
    states = depth_states(teacher, blocks, N_SAME, torch.Generator().manual_seed(0), token=token)
    x0, x1 = states[SPAN[0]], states[SPAN[1]]
    return recoupling_ratio(x0, x1).ratio, torch.pdist(x0).mean().item(), (x1 - x0).norm(dim=-1).mean().item()


@exercise("7.5", "A word whose paths cross", difficulty=2, minutes=10)
def word(answer):
    from ..couplings import recoupling_ratio

    yield "one token of the teacher's vocabulary, as text"
    value = answer()
    if isinstance(value, int) and not isinstance(value, bool):
        raise Wrong(
            f"You returned {describe(value)}. If that is a token id: return its text, tokenizer.decode([{value}])."
        )
    if not isinstance(value, str):
        raise Wrong(f"You returned {describe(value)}: return the token's text, a string.")
    if not value:
        raise Wrong("You returned an empty string, which is not a token.")
    if len(value) > 200:
        raise Wrong(f"You returned {len(value):,} characters: return one token.")
    _, tokenizer, blocks = bundled()
    try:
        ids = tokenizer(value, add_special_tokens=False)["input_ids"]
    except (TypeError, UnicodeError):
        raise Wrong("You returned a string that is not valid text: it cannot be encoded as UTF-8.") from None
    if set(ids) & set(tokenizer.all_special_ids):
        raise Wrong("You returned a special token, which is not part of any code. Give a token of code.")
    if len(ids) != 1:
        parts = ", ".join(repr(tokenizer.decode([i])) for i in ids[:6])
        raise Wrong(
            f"You returned {value!r}, which is {len(ids)} tokens: {parts}{', …' if len(ids) > 6 else ''}. Give one. "
            "The space before a word belongs to its token: ' if' and 'if' are different tokens."
        )
    count = int((blocks[:, 1:] == ids[0]).any(1).sum())
    yield f"it occurs in at least {N_SAME} of {len(blocks)} sequences of evaluation code"
    if count < N_SAME:
        raise Wrong(f"You returned {value!r}, which occurs in {count} sequences: too few. Give a more common token.")
    found, apart, displacement = of_token(ids[0])
    yield f"R of {value!r} on layers {SPAN[0]}–{SPAN[1] - 1}: {found:.2f}, wanted at least {RATIO}"
    if found < RATIO:
        x0, x1 = (random_states()[depth, :N_SAME] for depth in SPAN)
        any_apart, any_way = torch.pdist(x0).mean(), (x1 - x0).norm(dim=-1).mean()
        raise Wrong(
            f"You returned {value!r}. Among {N_SAME} random tokens R is {recoupling_ratio(x0, x1).ratio:.2f}.\n"
            f"On average, its occurrences are {apart:.0f} apart at depth {SPAN[0]} and move {displacement:.0f} from "
            f"there to depth {SPAN[1]}; random tokens {any_apart:.0f} and {any_way:.0f}. Tokens that start "
            "close together and move far are more easily re-paired: look for a word whose occurrences start nearly "
            "equal."
        )


# --- 7.6 ----------------------------------------------------------------------------------------------------------

RHO = 0.6  # on the spans of six layers: block influence has 0.59 there
SEEN, HELD_OUT = 6, 12  # layers of the spans to search on, and of those to which the result is put once


@exercise("7.6", "Beat the oracle", difficulty=3, minutes=20)
def beat_the_best(answer):
    from ..couplings import recoupling_ratio

    generator = torch.Generator().manual_seed(8)
    cloud = lambda: torch.randn(512, 64, generator=generator)  # noqa: E731
    x0 = 3 * cloud() + 1
    x1, other, shuffled = 1.2 * x0 + cloud(), 4 * cloud() - 1, torch.randperm(512, generator=generator)

    def asked(a: Tensor, b: Tensor) -> float:
        kept = a.clone(), b.clone()
        value = float(number(answer.uncopied(*kept), "the criterion"))
        if not (torch.equal(kept[0], a) and torch.equal(kept[1], b)):
            raise Wrong("You changed the states themselves: -= and its like work in place. Make new tensors.")
        return value

    yield "one number, deterministic and independent of the order of the tokens"
    mine = asked(x0, x1)
    if asked(x0, x1) != mine:
        raise Wrong(
            "Two calls with the same states gave different numbers. If you draw at random, use a generator and seed it."
        )
    if not _same(asked(x0[shuffled], x1[shuffled]), mine):
        raise Wrong("Another order of the same tokens gives another number. The order of the tokens has no meaning.")
    yield "it depends on both ends, and on which end belongs to which start"
    if asked(x0, other) == mine and asked(other, x1) == mine:
        raise Wrong(f"You returned {mine:.4g} for quite different states too: a constant cannot rank spans.")
    if _same(asked(x0, other), mine):
        raise Wrong("With quite different ends, your number is the same: it uses the starts alone.")
    if _same(asked(other, x1), mine):
        raise Wrong("With quite different starts, your number is the same: it uses the ends alone.")
    if _same(asked(x0, x1[shuffled]), mine):
        raise Wrong(
            "If the ends are shuffled, your number is the same: you compare two clouds (norms, means, variances). "
            "Layers that do nothing and layers that permute all tokens would get the same number. Compare each "
            "token's start with its own end."
        )

    states, trained_kl = random_states(), trained("flow-walking")
    kl, held_out = ({s: v for s, v in trained_kl.items() if s[1] - s[0] == size} for size in (SEEN, HELD_OUT))

    def of_spans(spans) -> Tensor:
        values = []
        for m, n in spans:
            try:
                values.append(asked(states[m], states[n]))
            except Wrong as wrong:
                raise Wrong(f"Layers {m}–{n - 1}: {wrong}") from None
        return torch.tensor(values, dtype=torch.float64)

    spans = sorted(kl)
    yield f"the {len(spans)} spans of {SEEN} layers that were trained"
    measured = torch.tensor([kl[s] for s in spans], dtype=torch.float64)
    mine = of_spans(spans)
    ratios = torch.tensor([recoupling_ratio(states[m], states[n]).ratio for m, n in spans], dtype=torch.float64)
    rho, low, high = rank_correlation(mine, measured, resamples=500)
    theirs = rank_correlation(ratios, measured, resamples=1)[0]
    if rho != rho:
        raise Wrong("Your number is the same for all spans of one length. It must also rank spans of equal length.")
    if torch.allclose(mine, ratios, atol=1e-9):
        raise Wrong(
            f"That is the recoupling ratio itself, rho {rho:.2f} ({low:.2f} to {high:.2f}). Find another criterion."
        )
    yield f"rho {rho:.2f} ({low:.2f} to {high:.2f}), wanted at least {RHO}; R on the same tokens: {theirs:.2f}"
    if rho <= -0.25:
        raise Wrong(f"rho = {rho:.2f}: upside down? A small number predicts little damage. Return the negative.")
    if rho < RHO or rho <= theirs:
        raise Wrong(
            f"Your ranking of the spans agrees too little with that of the KL after Flow Walking.\n{_worst(mine, kl)}"
        )
    spans = sorted(held_out)
    measured = torch.tensor([held_out[s] for s in spans], dtype=torch.float64)
    rho, low, high = rank_correlation(of_spans(spans), measured, resamples=500)
    yield f"held out, {len(spans)} spans of {HELD_OUT} layers: rho {rho:.2f} ({low:.2f} to {high:.2f}){_earlier(rho)}"


def _earlier(rho: float) -> str:
    """Keep what the held-out spans said, and what they said the first time: only that was a test."""
    tries = [*progress.load().get("held_out", {}).get("7.6", []), round(rho, 2)]
    progress.keep("held_out", "7.6", tries)
    return "" if len(tries) == 1 else f"; you have looked {len(tries)} times, and the first time it was {tries[0]:.2f}"


def _same(a: float, b: float) -> bool:
    return abs(a - b) <= 1e-4 * max(abs(a), abs(b))


def _worst(mine: Tensor, kl: dict[tuple[int, int], float]) -> str:
    """Describe the spans whose ranks are most wrong."""
    spans = sorted(kl)
    lengths, measured = lengths_of(spans), torch.tensor([kl[s] for s in spans])
    groups = [(lengths == length).nonzero()[:, 0] for length in lengths.unique()]
    yours, theirs, of = ranks(mine, groups), ranks(measured, groups), lengths_count(lengths)
    gap = (yours - theirs).abs() / of
    lines = [
        f"  layers {spans[i][0]}–{spans[i][1] - 1}: rank {yours[i]:g} of {of[i]:g} by yours, "
        f"{theirs[i]:g} by KL ({measured[i]:.3f})"
        for i in gap.argsort(descending=True)[:3].tolist()
    ]
    return "\n".join(["Furthest off (rank 1 is the least damage):", *lines])
