"""Checks of lesson 07: recoupling ratio, its growth, angular distance. (Comparing criteria: lesson07_teacher.)"""

import math
from contextlib import suppress

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from ..couplings import assign, cost_matrix, optimal_assignment
from .checking import Wrong, close, describe, exercise, tensor


def number(value, what: str) -> Tensor:
    """Return the answer as a single number."""
    if isinstance(value, tuple):
        raise Wrong(f"You returned {len(value)} things: return {what} alone, one number.")
    return tensor(value, (), what)


def close_hinted(value, want, what: str, mistakes: dict, advice: str, tolerance: float = 1e-4) -> None:
    """Call ``close``, and add ``advice`` to its message for an unknown mistake."""
    known = {message: outcome for message, outcome in mistakes.items() if not _alike(outcome, want)}
    try:
        close(value, want, what, known, tolerance)
    except Wrong as wrong:
        raise (Wrong(f"{wrong}\n{advice}") if str(wrong).startswith("Largest") else wrong) from None


def _alike(a, b) -> bool:
    a, b = (torch.as_tensor(x, dtype=torch.float64) for x in (a, b))
    return a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=1e-9)


def moved(n: int, width: int, far: float, seed: int) -> tuple[Tensor, Tensor]:
    """Draw pairs ``(N, D)``, float32; displacements are about ``far`` times the distance between two starts."""
    generator = torch.Generator().manual_seed(seed)
    x0 = torch.randn(n, width, generator=generator) * 0.8 ** torch.arange(width) + 1
    return x0, 1.2 * x0 + far * torch.randn(n, width, generator=generator)


# --- 7.1 ----------------------------------------------------------------------------------------------------------

# The lines of pairs 0 and 1 cross; 2 and 3 come nearer to each other, 4 is far away.
HAND = (
    torch.tensor([[0.0, 0.0], [0.0, 2.0], [9.0, 0.0], [9.0, 6.0], [20.0, 0.0]]),
    torch.tensor([[3.0, 2.0], [3.0, 0.0], [10.0, 1.0], [10.0, 5.0], [20.0, 1.0]]),
)


def re_paired(assigned: Tensor) -> Tensor:
    """Return the recoupling ratio of an assignment ``(N,)``."""
    return (assigned != torch.arange(len(assigned))).double().mean()


def _greedy(cost: Tensor) -> Tensor:
    cost, chosen = cost.clone(), []
    for row in cost:
        chosen.append(int(row.argmin()))
        cost[:, chosen[-1]] = torch.inf
    return torch.tensor(chosen)


def _wrong_ratios(x0: Tensor, x1: Tensor) -> dict[str, Tensor]:
    """Return what common mistakes give instead of the recoupling ratio: message → value."""
    n, cost = len(x0), cost_matrix(x0, x1)
    assigned = assign(cost)
    right, mean, both = re_paired(assigned), (x0 - x0.mean(0), x1 - x1.mean(0)), torch.cat([x0, x1])
    metric = "The assignment is exact, the distance is not Euclidean: "
    return {
        "That is the fraction of pairs that are *kept*. R is the fraction that is changed: 1 − Tr(M)/N (paper, eq. 7).":
            1 - right,
        "That is how *many* pairs are changed. R is a fraction: divide by N.": n * right,
        "These are percent: R is a fraction, from 0 to 1.": 100 * right,
        "You gave each start its nearest end. Several may have the same one, so that is not a permutation. "
        "Optimal transport uses each end once: scipy.optimize.linear_sum_assignment.":
            re_paired(cost.argmin(1)),
        "You gave each *end* its nearest start: nearest neighbors, not a permutation. Optimal transport uses each "
        "once: scipy.optimize.linear_sum_assignment.": re_paired(cost.argmin(0)),
        "You assigned greedily: each in turn takes the nearest end that is still free, and that is not the least "
        "total distance. scipy.optimize.linear_sum_assignment finds it.": re_paired(_greedy(cost)),
        f"{metric}the distance is *squared* (or it is the scalar product, which gives the same assignment). One "
        "long displacement then costs more than many short ones.": re_paired(assign(cost.square())),
        f"{metric}it is the cosine distance, which ignores norms.":
            re_paired(assign(cost_matrix(x0, x1, "cosine"))),
        f"{metric}you divided the states by their norms first.":
            re_paired(assign(cost_matrix(normalize(x0, dim=-1), normalize(x1, dim=-1)))),
        f"{metric}it is the sum of absolute differences (p=1).":
            re_paired(assign(torch.cdist(x0, x1, p=1).double())),
        f"{metric}it is the sum of absolute differences, p=1.": re_paired(_untied(torch.cdist(x0, x1, p=1))),
        f"{metric}it is the largest difference in one dimension.":
            re_paired(assign(torch.cdist(x0, x1, p=torch.inf).double())),
        f"{metric}it is the largest difference in any one dimension.":
            re_paired(_untied(torch.cdist(x0, x1, p=torch.inf))),
        "You subtracted each cloud's mean. The common displacement is part of the distance.":
            re_paired(assign(cost_matrix(*mean))),
        "You divided each dimension by its standard deviation. Use the states as they are.":
            re_paired(assign(cost_matrix((x0 - both.mean(0)) / both.std(0), (x1 - both.mean(0)) / both.std(0)))),
        "You maximized the total distance.": re_paired(assign(-cost)),
        "You followed the assignment twice: compare a[i] with i, not a[a[i]].": re_paired(assigned[assigned]),
        "That is the fraction of the distance that optimal transport saves. R counts pairs.":
            1 - cost[range(n), assigned].sum() / cost.trace(),
        "No token is re-paired. Do you take distances from x0 to x1, not within one cloud? And is it the "
        "*second* array of the solver that you compare with 0 … N−1? The first is always 0 … N−1.": torch.tensor(0.0),
    }  # fmt: skip


@exercise("7.1", "Exact, and fair to ties", difficulty=2, minutes=12)
def ratio(answer):
    x0, x1 = moved(60, 6, 0.6, 33)
    yield "a single number"
    value = answer(x0.clone(), x1.clone())
    if isinstance(value, tuple):
        raise Wrong(
            "You returned several things, as the solver does. Return one number, the fraction of pairs changed."
        )
    shape = tuple(tensor(value, None, "the ratio").shape)
    if shape == (60,):
        raise Wrong("You returned 60 values, one per token: the mean over “is re-paired” is one number.")
    if shape == (60, 60):
        raise Wrong("You returned a table (60, 60). Of a table M that pairs i with j, Tr(M)/N is the fraction kept.")
    mine = number(value, "the ratio")
    right, mistakes = re_paired(optimal_assignment(x0, x1)), _wrong_ratios(x0, x1)
    exact = (
        "Take Euclidean distances from each x0 to each x1, an exact assignment of least total distance (no Sinkhorn, "
        "no subsample), and the fraction of i whose partner is not i. What you subtract from the diagonal must be tiny."
    )

    def judge() -> None:
        if 0.9 < mine < 1 and not any(_alike(mine, outcome) for outcome in mistakes.values()):
            raise Wrong(
                f"Of 60 tokens R = {float(mine):.2f}, it should be {float(right):.2f}: as if ends were drawn at "
                "random. Do you shuffle or sort them, or x0 and x1 in different ways? Row i of both is one token."
            )
        close_hinted(mine, right, "the ratio of 60 pairs", mistakes, exact)

    yield "by hand: of five pairs, 0 and 1 would change partners, so R = 2/5"
    by_hand = number(answer(*(x.clone() for x in HAND)), "the ratio")
    if not _alike(by_hand, 0.4):
        judge()  # more pairs say more about what is wrong
    close_hinted(by_hand, 0.4, "the ratio", {}, exact)
    yield "60 tokens"
    judge()

    yield "ties: exchanging equal states gains nothing, and does not count"
    generator = torch.Generator().manual_seed(3)
    word = torch.randint(12, (60,), generator=generator)
    starts = x0[word]
    want, plain = re_paired(optimal_assignment(starts, x1)), re_paired(_untied(cost_matrix(starts, x1)))
    mine = number(answer(starts.clone(), x1.clone()), "the ratio")
    if mine > want + 1e-6:
        raise Wrong(
            "Here 60 tokens start at 12 points, as at depth 0, where equal tokens have equal states. Yours is R = "
            f"{float(mine):.3f}, but with {float(want):.3f} the total distance is just as small: your solver exchanged "
            f"equal states (without a tie-break, scipy gives {float(plain):.3f}). Let ties go to the given pairs: "
            "subtract a tiny number such as 1e-9 from the diagonal of the distances, in float64."
        )
    close_hinted(mine, want, "the ratio of 60 tokens that start at 12 points", {}, (
        "Less is not possible at the least total distance. R is a fraction of *all* tokens, including those with equal "
        "states."
    ))  # fmt: skip
    small = number(answer(*(x / 1000 for x in HAND)), "the ratio")
    close_hinted(small, 0.4, "the ratio of the case by hand, a thousand times smaller", {}, exact)
    close(number(answer(starts, starts.clone()), "the ratio"), 0.0, "the ratio of tokens that stay where they are")


def _untied(cost: Tensor) -> Tensor:
    """Solve the assignment without a tie-break."""
    from scipy.optimize import linear_sum_assignment

    return torch.from_numpy(linear_sum_assignment(cost.numpy())[1]).long()


# --- 7.2 ----------------------------------------------------------------------------------------------------------


def among(x0: Tensor, x1: Tensor, draws: list[slice]) -> Tensor:
    """Return R of each subset of pairs."""
    cost = cost_matrix(x0, x1)
    return torch.stack([re_paired(assign(cost[d, d])) for d in draws])


def draws_of(n: int, size: int, step: int | None = None) -> list[slice]:
    return [slice(i, i + size) for i in range(0, n - size + 1, step or size)]


def _growth(x0: Tensor, x1: Tensor, sizes: list[int], use=torch.mean) -> Tensor:
    return torch.stack([use(among(x0, x1, draws_of(len(x0), size))) for size in sizes])


def _wrong_growths(x0: Tensor, x1: Tensor, sizes: list[int]) -> dict[str, Tensor]:
    """Return what common mistakes give instead of the mean over disjoint draws: message → value."""
    n, cost = len(x0), cost_matrix(x0, x1)
    right, moved_away = _growth(x0, x1, sizes), (assign(cost) != torch.arange(n)).double()
    rest = [among(x0, x1, draws_of(n, s) + ([slice(n - n % s, n)] if n % s else [])) for s in sizes]
    of = lambda draws: torch.stack([among(x0, x1, draws(s)).mean() for s in sizes])  # noqa: E731
    once = "You solved one assignment among all tokens. Then every end is available, and R is that of all: "
    return {
        "That is the first draw only. One draw of few tokens is mostly chance: average over all draws.":
            of(lambda s: [slice(0, s)]),
        "That is the last draw only: average over all.": of(lambda s: draws_of(n, s)[-1:]),
        "Drop the tokens that are left over: a smaller draw has a smaller R.":
            torch.stack([r.mean() for r in rest]),
        "Your draws overlap, so that tokens in the middle count many times. Make them disjoint: 0 … N−1, N … 2N−1, …":
            of(lambda s: draws_of(n, s, 1)),
        "Your draws take every k-th token. They are disjoint, too, but here neighbors in the list go together: "
        "0 … N−1, N … 2N−1, …, so that the result is reproducible.":
            of(lambda s: [slice(k, (n // s) * s, n // s) for k in range(n // s)]),
        f"{once}solve one within each draw.": moved_away.mean().expand(len(sizes)),
        f"{once}solve one within each draw, rows and columns.":
            torch.stack([moved_away[: n // s * s].mean() for s in sizes]),
        f"{once}solve one within each draw, not first and then cut.":
            torch.stack([moved_away[:s].mean() for s in sizes]),
        "Each draw of starts may choose among *all* ends. Cut both: x0[i : i + N] and x1[i : i + N].":
            torch.stack([_rows(cost, s) for s in sizes]),
        "Later draws get the ends of the first. Cut both alike: x0[i : i + N] and x1[i : i + N].":
            torch.stack([torch.stack([re_paired(assign(cost[d, :s])) for d in draws_of(n, s)]).mean() for s in sizes]),
        "These are sums over draws: take the mean.": _growth(x0, x1, sizes, torch.sum),
        "These are medians over draws: take the mean.": _growth(x0, x1, sizes, lambda r: r.quantile(0.5)),
        "That is the largest of all draws: take the mean.": _growth(x0, x1, sizes, torch.max),
        "You divided by the number of all tokens, also those left over.":
            torch.stack([r * (n // s * s) / n for r, s in zip(right, sizes, strict=True)]),
        "That is the fraction of pairs that are *kept*: R is 1 minus it.": 1 - right,
        "These are numbers of pairs: R is a fraction, divide by N.": right * torch.tensor(sizes),
        "The sizes were given in another order: one R for each, in the order given.":
            right[torch.tensor(sizes).argsort()],
        "The distance is squared. It is Euclidean.": torch.stack(
            [torch.stack([re_paired(assign(cost[d, d].square())) for d in draws_of(n, s)]).mean() for s in sizes]
        ),
    }  # fmt: skip


def _rows(cost: Tensor, size: int) -> Tensor:
    """Return the fraction of rows, in draws of this size, that are re-paired if all ends are available."""
    from scipy.optimize import linear_sum_assignment

    n = len(cost)
    shares = [
        (torch.from_numpy(linear_sum_assignment(cost[d].numpy())[1]) != torch.arange(n)[d]).double().mean()
        for d in draws_of(n, size)
    ]
    return torch.stack(shares).mean()


@exercise("7.2", "More tokens, more R", difficulty=1, minutes=8)
def growth(answer):
    x0, x1 = moved(100, 6, 0.9, 4)
    sizes = [8, 2, 64, 30, 100]
    yield "one number for each size"
    value = answer(x0.clone(), x1.clone(), list(sizes))
    if isinstance(value, dict):
        raise Wrong(f"You returned {describe(value)}: return the numbers alone, in the order of the sizes.")
    if isinstance(value, list) and value and all(isinstance(part, list) for part in value):
        raise Wrong("You returned lists in a list: average over the draws, so that one number is left for each size.")
    found = tensor(value, None, "the ratios")
    if tuple(found.shape) == ():
        raise Wrong("You returned one number; 5 sizes were given. Is `return` inside the loop?")
    mine = tensor(found, (5,), "the ratios", "one for each size")

    yield "by hand: a single token has R = 0, and all five of exercise 7.1 have 2/5"
    advice = (
        "For size N: draws x0[i : i + N], x1[i : i + N] for i = 0, N, 2N, … as long as they are whole; R of each; mean."
    )
    want, mistakes = _growth(x0, x1, sizes), _wrong_growths(x0, x1, sizes)
    by_hand = tensor(answer(HAND[0].clone(), HAND[1].clone(), [1, 5]), (2,), "the ratios", "one for each size")
    if not _alike(by_hand, [0.0, 0.4]):
        close_hinted(mine, want, "the ratios of 100 other pairs", mistakes, advice)
    close_hinted(by_hand, [0.0, 0.4], "the ratios", {}, advice)
    yield "100 tokens, in draws of 8, 2, 64, 30 and 100"
    close_hinted(mine, want, "the ratios", mistakes, advice)

    yield "random ends: one pair of N is kept by chance, R = 1 − 1/N"
    random = moved(512, 4, 0.0, 5)[0], moved(512, 4, 0.0, 6)[0]
    close_hinted(
        answer(*(x.clone() for x in random), [2, 4, 16]), _growth(*random, [2, 4, 16]), "the ratios", {}, advice
    )


# --- 7.3 ----------------------------------------------------------------------------------------------------------

# Two tokens, three depths: the first turns by 90°, then goes straight; the second goes straight, then turns by 60°.
TURNS = torch.tensor([
    [[2.0, 0.0], [0.0, 1.0]],
    [[0.0, 3.0], [0.0, 5.0]],
    [[0.0, 4.0], [3**0.5, 1.0]],
])  # fmt: skip


def angle_table(states: Tensor, of=None, last: int = 0, first: int = 0) -> Tensor:
    """Apply ``of`` (mean angle over π if None) to both ends of every span, (L+1, L+1); NaN where m ≥ n."""
    x, depths = states.double(), len(states)
    of = of or (lambda a, b: angles(a, b).mean() / math.pi)
    table = torch.full((depths, depths), torch.nan, dtype=torch.float64)
    for m in range(depths):
        for n in range(m + 1, depths):
            table[m, n] = of(x[min(m + first, depths - 1)], x[max(n + last, 0)])
    return table


def angles(a: Tensor, b: Tensor, dim: int = -1) -> Tensor:
    return cosine_similarity(a, b, dim=dim).clamp(-1, 1).arccos()


def _wrong_tables(states: Tensor) -> dict[str, Tensor]:
    """Return what common mistakes give instead of the mean angle: message → value."""
    table, mean = lambda of, **k: angle_table(states, of, **k), angle_table(states)
    share = lambda a, b: angles(a, b) / math.pi  # noqa: E731
    return {
        "These are radians. As a fraction of half a turn, divide by π.": mean * math.pi,
        "These are degrees. As a fraction of half a turn, divide them by 180.": mean * 180,
        "You divided by 2π. The largest angle is half a turn: divide by π.": mean / 2,
        "These are cosines. The angle is the arccos.": table(lambda a, b: cosine_similarity(a, b).mean()),
        "That is block influence, 1 − cosine. Here the angle is wanted: arccos, divided by π.":
            table(lambda a, b: 1 - cosine_similarity(a, b).mean()),
        "You averaged the cosines and took the angle of the average. arccos is not linear: take each token's "
        "angle first, then the mean.": table(lambda a, b: share(a, b).mul(math.pi).cos().mean().arccos() / math.pi),
        "You averaged the *states* and took the angle between two averages. Opposite turns would "
        "cancel. Take each token's angle first, then the mean.": table(lambda a, b: share(a.mean(0), b.mean(0))),
        "You took the angle between all states in one long row, in which large norms count more. Each token has an "
        "angle of its own.": table(lambda a, b: share(a.flatten(), b.flatten())),
        "You took angles along the tokens (dim=0): there are D of them. An angle belongs to a token: dim=-1.":
            table(lambda a, b: angles(a, b, 0).mean() / math.pi),
        "You subtracted the mean state first. Angles are seen from the origin here.":
            table(lambda a, b: share(a - a.mean(0), b - b.mean(0)).mean()),
        "That is the last token only (as in Gromov et al.). Take the mean.":
            table(lambda a, b: share(a, b)[-1]),
        "That is the first token only. Take the mean.": table(lambda a, b: share(a, b)[0]),
        "That is the sum over tokens. Take the mean.": mean * states.shape[1],
        "That is the median over tokens. Take the mean.": table(lambda a, b: share(a, b).quantile(0.5)),
        "That is the largest angle. Take the mean.": table(lambda a, b: share(a, b).max()),
        "That is 1 minus the fraction: no turn at all is 0.": 1 - mean,
        "Off by one: [m, n) is half open, and states[n] is the *output* of layer n − 1. You took states[n − 1].":
            table(None, last=-1),
        "Off by one: states[m] is the *input* of layer m. You began with states[m + 1].": table(None, first=1),
    }  # fmt: skip


def _table(value, depths: int, tokens: int) -> Tensor:
    """Return the answer as (L+1, L+1) with NaN below and on the diagonal, or explain what is wrong with it."""
    with suppress(TypeError, ValueError, RuntimeError):
        value = torch.as_tensor(value).detach().cpu().double()
    holes = value.isnan() if isinstance(value, Tensor) and value.device.type == "cpu" else torch.zeros(())
    found = tensor(value.masked_fill(holes, 0) if holes.any() else value, None, "the table")
    shape, size, lower = tuple(found.shape), (depths, depths), torch.ones(depths, depths).tril().bool()
    if shape == (depths - 1, depths - 1):
        raise Wrong(
            f"You returned {shape}: {depths - 1} layers have {depths} depths, 0 … {depths - 1}. Return a table {size}."
        )
    if len(shape) == 3 and set(shape[:2]) == {depths}:
        raise Wrong(f"You returned {shape}: an angle for each token. Take the mean over the {tokens} tokens.")
    if shape == (depths * (depths - 1) // 2,):
        raise Wrong(f"You returned a list of {shape[0]} spans. Put each in its place [m, n] of a table {size}.")
    tensor(found, size, "the table", "[m, n] is span [m, n)")
    if bool(holes[~lower].all()) and not bool(holes[lower.tril(-1)].any()):
        raise Wrong("Rows and columns are exchanged: [m, n] is the span from m to n. Transpose it.")
    if bool(holes[~lower].any()):
        m, n = (holes & ~lower).nonzero()[0].tolist()
        raise Wrong(
            f"NaN for span [{m}, {n}). Either it was left out, or rounding made a cosine of 1.0000001, and no angle "
            "has that cosine: .clamp(-1, 1) before .arccos()."
        )
    if not bool(holes[lower].all()):
        m, n = (~holes & lower).nonzero()[-1].tolist() if bool(holes[lower.tril(-1)].all()) else (1, 0)
        why = "no layers" if m == n else "its end before its start"
        raise Wrong(f"[{m}, {n}] is {float(found[m, n]):.3g}. That is a span with {why}: NaN where m ≥ n.")
    return found.masked_fill(lower, 0)


@exercise("7.3", "Another oracle by hand", difficulty=2, minutes=8)
def angular(answer):
    states = torch.randn(5, 7, 6, generator=torch.Generator().manual_seed(1)).cumsum(0) + 0.5
    upper = lambda x: x.nan_to_num(0.0)  # noqa: E731
    advice = "For each span and token: arccos of the cosine between states[m] and states[n]; mean over tokens; over π."

    def judged(x: Tensor, what: str) -> None:
        mistakes = {message: upper(table) for message, table in _wrong_tables(x).items()}
        close_hinted(_table(answer(x.clone()), *x.shape[:2]), upper(angle_table(x)), what, mistakes, advice)

    yield "a table (L+1, L+1), NaN where m ≥ n"
    _table(answer(states.clone()), 5, 7)
    yield "by hand: two tokens turn by 90° and 0°, then by 0° and 60°; [0, 1] is 45/180"
    judged(TURNS, "the table of the case by hand")
    yield "any states"
    judged(states, "the table")
    yield "norms do not matter, directions do: states that only grow have 0, reversed ones have 1"
    for seed in range(8):
        ray = torch.randn(4, 9, generator=torch.Generator().manual_seed(seed))
        path = torch.stack([ray, 7 * ray, ray / 3, -ray])
        found = _table(answer(path.clone()), 4, 4)
        close(found, upper(angle_table(path)), "the table of states on rays", tolerance=2e-3)
    yield "24 layers"
    long = torch.randn(25, 3, 8, generator=torch.Generator().manual_seed(2)).cumsum(0)
    close(_table(answer(long.clone()), 25, 3), upper(angle_table(long)), "the table of 24 layers")
