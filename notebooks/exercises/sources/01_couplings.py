# %% [markdown]
# # Exercises 01 · Couplings
#
# Five exercises to the lesson [01 · Couplings](../../01_couplings.ipynb), from warm-up (●○○) to open-ended (●●●). For
# each: write down what you expect, fill in the function, run the check below it. A check tells you *what* is not right
# yet; run it as often as you like. Hints and solutions fold out.

# %%
import torch

import lft_edu as lft
from lft_edu.exercises import check

# %% [markdown]
# ## 1.1 · Pair by optimal transport ●○○ 5 minutes
#
# Give every point of `x0` a partner in `x1`, each used exactly once, so that the lines between partners are as short as
# possible in total. You need not invent an algorithm: `scipy.optimize.linear_sum_assignment` finds the best permutation
# for a table of costs. Your part is the table, and reading the answer the right way round.
#
# **Predict first.** Is it enough to give each point its nearest neighbour? *My prediction: …* (double-click to write)
#
# <details><summary>Hint 1</summary>
#
# The cost of pairing point i with point j is their distance: `torch.cdist(x0, x1)` is the whole `(N, N)` table.
#
# </details>
# <details><summary>Hint 2</summary>
#
# `linear_sum_assignment(cost)` returns two arrays: rows 0, 1, 2, … and for each of them the chosen column.
#
# </details>


# %%
def my_assignment(x0, x1):
    """The optimal partner of each point.

    Args:
        x0, x1: (N, D) float tensors.

    Returns:
        (N,) long tensor: point i of x0 goes to point number result[i] of x1.
    """
    ### BEGIN SOLUTION
    from scipy.optimize import linear_sum_assignment

    cost = torch.cdist(x0, x1)  # (N, N): row i, column j
    _, columns = linear_sum_assignment(cost.cpu().numpy())
    return torch.from_numpy(columns).long()
    ### END SOLUTION


# %%
check("1.1", my_assignment)

# %% [markdown]
# **And the prediction?** No: in the first case both starts are nearest to the same end, which can be used only once.

# %% [markdown]
# ## 1.2 · The recoupling ratio ●○○ 5 minutes
#
# $R = 1 - \mathbb{E}[\mathrm{Tr}(M)/N]$ (paper, eq. 7): the share of points that optimal transport would pair with
# somebody else than the partner they were given, where the given partner of `x0[i]` is `x1[i]`.
#
# **Predict first.** Two pairs only: what values can R have at all? *My prediction: …*
#
# <details><summary>Hint</summary>
#
# Compare your assignment of 1.1 with 0, 1, 2, …, N − 1.
#
# </details>


# %%
def my_recoupling_ratio(x0, x1):
    """The share of re-paired points, a number from 0 to 1.

    Args:
        x0, x1: (N, D) float tensors; x0[i] was given the partner x1[i].
    """
    ### BEGIN SOLUTION
    given = torch.arange(len(x0))
    return (my_assignment(x0, x1) != given).float().mean().item()
    ### END SOLUTION


# %%
check("1.2", my_recoupling_ratio)

# %% [markdown]
# **And the prediction?** 0 or 1: with two pairs optimal transport either keeps both or swaps both. With N pairs, the smallest value other than 0 is 2/N, since one pair alone cannot be changed.

# %% [markdown]
# ## 1.3 · Which lines cross? ●●○ 12 minutes
#
# Count the pairs of lines $x_0^i \to x_1^i$ and $x_0^j \to x_1^j$ that cross in the plane.
#
# **Predict first.** Two clouds paired by optimal transport: how many of the lines cross? *My prediction: …*
#
# <details><summary>Hint 1</summary>
#
# On which side of the line a → b is a point p? The sign of
# $(b_x-a_x)(p_y-a_y)-(b_y-a_y)(p_x-a_x)$ says it: positive to the left, negative to the right.
#
# </details>
# <details><summary>Hint 2</summary>
#
# Two segments cross when the ends of each lie on different sides of the other. Compute the side of every start and
# every end as seen from every line, two `(N, N)` tables, and multiply them.
#
# </details>


# %%
def my_crossings(x0, x1):
    """How many pairs of lines cross.

    Args:
        x0, x1: (N, 2) float tensors; line i runs from x0[i] to x1[i].

    Returns:
        A whole number; the crossing of lines i and j counts once.
    """

    ### BEGIN SOLUTION
    def side(p):  # of point j, seen from line i: (N, N)
        along, to = (x1 - x0)[:, None], p[None] - x0[:, None]
        return along[..., 0] * to[..., 1] - along[..., 1] * to[..., 0]

    parted = side(x0) * side(x1) < 0  # line i has the two ends of line j on different sides
    return int((parted & parted.T).sum()) // 2
    ### END SOLUTION


# %%
check("1.3", my_crossings)

# %% [markdown]
# **And the prediction?** None, as long as the plain distance is what is made small.

# %% [markdown]
# ## 1.4 · Crossed and yet optimal ●●○ 12 minutes
#
# With plain distances, optimal transport in the plane never leaves a crossing: uncrossing an X makes both lines together
# shorter (why? look for two triangles). With *squared* distances it may. Find two pairs of points whose lines cross and
# which optimal transport with squared distances nevertheless keeps.
#
# **Predict first.** Will the two lines have the same length? *My prediction: …*
#
# <details><summary>Hint 1</summary>
#
# The squares of kept minus swapped come to $-2\,(a-b)\cdot(c-d)$ for $a\to c$, $b\to d$. It is negative when $a-b$ and
# $c-d$ point the same way.
#
# </details>
# <details><summary>Hint 2</summary>
#
# One long line from (0, 0) to (10, 0). Let a short one begin *behind* its start, below it, and end above it.
#
# </details>


# %%
def my_crossed_pairs():
    """Two pairs whose lines cross and that the squared distance keeps.

    Returns:
        x0, x1: two (2, 2) float tensors.
    """
    ### BEGIN SOLUTION
    x0 = torch.tensor([[0.0, 0.0], [-2.0, -1.0]])
    x1 = torch.tensor([[10.0, 0.0], [6.0, 1.0]])
    return x0, x1
    ### END SOLUTION


# %%
check("1.4", my_crossed_pairs)

# %% [markdown]
# **And the prediction?** They need not, but it is easiest with one long line and one short one that begins behind it.

# %% [markdown]
# ## 1.5 · R near 1, and nobody meets ●●● 15 minutes
#
# The recoupling ratio asks who would be better off with another partner. A velocity field has another worry: that two
# points are at *one place at one time* and want to go different ways. Build 64 pairs for which R is above 0.9, and of
# which no two, going straight, ever come closer than a fifth of the distance at which they started.
#
# **Predict first.** Is that possible at all? *My prediction: …*
#
# <details><summary>Hint 1</summary>
#
# Move all points by one and the same linear map A. At time t they are at ((1 − t) I + t A) x: when is that matrix
# invertible for every t between 0 and 1?
#
# </details>
# <details><summary>Hint 2</summary>
#
# `lft.shapes.turn(x, degrees)` turns points about the origin. Half a turn sends everybody through the centre.
#
# </details>


# %%
def my_busy_clouds(n):
    """Pairs with R > 0.9 that keep their distance on the way.

    Returns:
        x0, x1: two (n, 2) float tensors, all points different.
    """
    ### BEGIN SOLUTION
    x0 = torch.randn(n, 2, generator=torch.Generator().manual_seed(0))
    return x0, lft.shapes.turn(x0, 120)  # half-way the map is a turn by 60° that shrinks to one half: invertible
    ### END SOLUTION


# %%
check("1.5", my_busy_clouds)

# %% [markdown]
# **And the prediction?** Yes. A turn by less than 180° re-pairs nearly everybody, and no two points ever share a place at one time.

# %% [markdown]
# Keep this one in mind: **R says how far the pairing is from optimal, not whether straight paths meet.** In lesson 02
# you can train a flow on your clouds and see whether it minds.
#
# Back to the lessons: [02 · Flow matching](../../02_flow_matching.ipynb)
