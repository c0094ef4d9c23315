# %% [markdown]
# # Exercises 03 · Flow Walking
#
# Six exercises to the lesson [03 · Flow Walking](../../03_flow_walking.ipynb). 3.1 to 3.3 go beyond the lesson's code: its
# times, its walk and its loss, each with something changed; 3.5 and 3.6 train small networks, some ten seconds each.

# %%
import torch

import lft_edu as lft
from lft_edu.exercises import check

# %% [markdown]
# ## 3.1 · Times with a smallest step ●●○ 10 minutes
#
# Sorted uniform times may be as near to each other as they like, and an evaluation spent on a tiny step is wasted. Draw
# times $0 = t_0 < t_1 < \dots < t_k = 1$, for each point its own, whose steps all last at least `least` (at most 1/k).
# All such times must be equally likely.
#
# **Predict first.** Three steps: without a smallest one, the longest lasts 0.61 on average. If each must last at least
# 0.3, how long can the longest be, and how long is it on average? *My prediction: …*
#
# <details><summary>Hint 1</summary>
#
# Drawing until it fits takes forever if `least` is nearly 1/k. Draw something that always fits: how much of the time is
# still free when every step has its `least`?
#
# </details>
# <details><summary>Hint 2</summary>
#
# Cut the interval from 0 to 1 − k·least by chance, then make each of the pieces longer by `least`. By how much does that
# move the i-th cut?
#
# </details>


# %%
def my_spaced_times(k, batch, least):
    """Random times of a walk of k steps, none of them shorter than a given length.

    Args:
        k: number of steps.
        batch: number of rows, each another draw.
        least: the least length of a step, from 0 to 1/k.

    Returns:
        (batch, k + 1) float tensor; rows begin with 0, end with 1 and rise by `least` or more.
    """
    ### BEGIN SOLUTION
    cuts = (1 - k * least) * torch.rand(batch, k - 1).sort(dim=-1).values
    cuts = cuts + least * torch.arange(1, k)
    return torch.cat([torch.zeros(batch, 1), cuts, torch.ones(batch, 1)], dim=-1)
    ### END SOLUTION


# %%
check("3.1", my_spaced_times)

# %% [markdown]
# **And the prediction?** At most 0.4: two steps of 0.3 leave that much. On average 0.3 + 0.1 · 0.61 = 0.36, since only a tenth of the time is still cut by chance. Unequal steps force the walk to be right for long and short ones; the larger `least`, the more it is trained for one grid.

# %% [markdown]
# ## 3.2 · A test for a walk ●●○ 15 minutes
#
# Someone else has written `walk(velocity, x0, times)`: midpoint steps from `x0` through `times`, `(K + 1,)` for all points
# or `(B, K + 1)` for each, and the gradient flows through all steps. Write a test that says whether theirs is right. The
# check hands it two right walks and eight wrong ones. You may compare with `lft.flow.walk`; what needs thought is *on
# what*.
#
# **Predict first.** You test with the velocity $u = 2t$, at the times 0, ½, 1. Which of these mistakes would you miss:
# Euler steps; evaluating at t where it should be the middle of the step; every step starts at $x_0$; equal steps? *My
# prediction: …*
#
# <details><summary>Hint 1</summary>
#
# A mistake can be seen only where it makes a difference. Your velocity should change with x and with t, the times should
# not be equal, and different points should have different times.
#
# </details>
# <details><summary>Hint 2</summary>
#
# Two of the wrong walks end exactly where they should. `torch.autograd.grad(end.sum(), x0)` needs an `x0` with
# `requires_grad=True`; where nothing is connected it raises, and a test that raises counts as one that says no.
#
# </details>


# %%
def my_test(walk):
    """Whether a walk does what it should.

    Args:
        walk: walk(velocity, x0, times) → where the walk ends, shaped like x0 (B, D).

    Returns:
        True if it is right, False if not.
    """
    ### BEGIN SOLUTION
    x0 = torch.tensor([[1.0, -2.0], [0.5, 3.0]], requires_grad=True)
    times = torch.tensor([[0.0, 0.1, 0.7, 1.0], [0.0, 0.5, 0.6, 1.0]])

    def velocity(x, t):
        t = torch.as_tensor(t)
        return torch.sin(2 * x) + 2 * (t[:, None] if t.ndim else t) ** 2

    mine, theirs = lft.flow.walk(velocity, x0, times), walk(velocity, x0, times)
    (wanted,), (gradient,) = (torch.autograd.grad(end.sum(), x0) for end in (mine, theirs))
    return torch.allclose(mine, theirs, atol=1e-5) and torch.allclose(wanted, gradient, atol=1e-4)
    ### END SOLUTION


# %%
check("3.2", my_test)

# %% [markdown]
# **And the prediction?** The last one only. Euler ends at ½ instead of 1, and so does a step that evaluates at t. If every step starts at $x_0$, the last one alone counts: ¾. Equal steps are what these times ask for. With the velocity $u = 1$ you would miss the first two as well: where every method is exact, a test tests nothing.

# %% [markdown]
# ## 3.3 · There and back ●●○ 15 minutes
#
# A flow can be followed against time: put a point at $x_1$ at $t = 1$, walk the times from 1 down to 0, and it should end
# at $x_0$. Train the same field in both directions:
# $L = \mathbb{E}\,\lVert \hat x_1 - x_1\rVert^2 + \mathbb{E}\,\lVert \hat x_0 - x_0\rVert^2$, where $\hat x_1$ is the
# end of a walk from $x_0$ and $\hat x_0$ that of a walk back from $x_1$, each of k midpoint steps through random times of
# each point's own. First there, then back; mean over points and dimensions.
#
# **Predict first.** A field takes every $x_0$ exactly to its $x_1$, in the limit of many steps. How large is the second
# term? And if it does so in two large steps? *My prediction: …*
#
# <details><summary>Hint 1</summary>
#
# On the walk back the velocity is the same function, at the same places and times. What changes is the sign of s − t.
#
# </details>
# <details><summary>Hint 2</summary>
#
# `lft.flow.midpoint_step(velocity, x, t, s)` takes any t and s, one per point, shape `(B,)`. `lft.flow.random_times(k,
# batch)` is `(batch, k + 1)`, and `.flip(-1)` turns it around. (`lft.flow.walk` refuses times that fall.)
#
# </details>


# %%
def my_return_loss(velocity, x0, x1, k):
    """Walk there and back, and compare both ends.

    Args:
        velocity: velocity(x, t) for x (B, D), t (B,).
        x0, x1: (B, D), pairs.
        k: number of midpoint steps in each direction.

    Returns:
        A scalar tensor.
    """
    ### BEGIN SOLUTION
    times = lft.flow.random_times(k, len(x0))
    loss = 0.0
    for start, end, way in ((x0, x1, times), (x1, x0, times.flip(-1))):
        x = start
        for i in range(k):
            x = lft.flow.midpoint_step(velocity, x, way[:, i], way[:, i + 1])
        loss = loss + (x - end).square().mean()
    return loss
    ### END SOLUTION


# %%
check("3.3", my_return_loss)

# %% [markdown]
# **And the prediction?** Zero: through each place and time leads one path of a flow, so the path from $x_1$ back is the one that came from $x_0$. In two large steps it may be anything: a walk that *jumps* (3.5) is no flow, and nothing says that its steps can be undone. So the second term is small for free where the walk is a flow, and pulls toward one where it is not.

# %% [markdown]
# ## 3.4 · What a walk costs ●○○ 5 minutes
#
# In a transformer each evaluation of the velocity is one layer's worth of work. Layers m … n − 1 are replaced by a walk;
# how many layer-sized evaluations does the whole model then take per token?
#
# **Predict first.** 24 layers, 6–12 replaced by three midpoint steps: how much work is saved? *My prediction: …*
#
# <details><summary>Hint</summary>
#
# Layers that stay + k steps × evaluations a step (Euler 1, midpoint 2).
#
# </details>


# %%
def my_evaluations(layers, span, solver, k):
    """Layer-sized evaluations of a spliced model, per token.

    Args:
        layers: of the teacher.
        span: (m, n), half open: layers m … n − 1 are replaced.
        solver: "euler" or "midpoint".
        k: steps of the walk.

    Returns:
        A whole number.
    """
    ### BEGIN SOLUTION
    m, n = span
    return layers - (n - m) + k * {"euler": 1, "midpoint": 2}[solver]
    ### END SOLUTION


# %%
check("3.4", my_evaluations)

# %% [markdown]
# **And the prediction?** None: six evaluations for six layers. What is saved is parameters.

# %% [markdown]
# ## 3.5 · Jumped, not walked ●●● 20 minutes
#
# Flow Walking with k = 2 may have little to do with a flow: two large steps can *jump*. Find pairs for which a network
# trained with k = 2 takes nine points in ten to their own group in two steps, but loses at least a quarter when the same
# field is walked in two hundred. The check trains a network on your pairs.
#
# **Predict first.** For `lft.shapes.beams` it does not work. Why not? *My prediction: …*
#
# <details><summary>Hint 1</summary>
#
# In the plane two beams can avoid each other. Take that room away, or make the weaving harder.
#
# </details>
# <details><summary>Hint 2</summary>
#
# Try the shapes of `lft.shapes.SHAPES`. Or your own: `lft.couplings.Coupling(x0, x1, group)`.
#
# </details>


# %%
def my_hard_pairs():
    """Pairs that a walk trained with k = 2 jumps.

    Returns:
        A Coupling of at least 200 pairs in 2 to 20 groups, in the plane or on a line.
    """
    ### BEGIN SOLUTION
    return lft.shapes.moons(2000, torch.Generator().manual_seed(0))
    ### END SOLUTION


# %%
check("3.5", my_hard_pairs)

# %% [markdown]
# **And the prediction?** Two beams are easily led past each other, so that the network finds a real flow even with k = 2.

# %% [markdown]
# ## 3.6 · Straight and right ●●● 20 minutes
#
# $L = L_\text{FW} + \alpha\,L_\text{FM}$ (paper, eq. 9). On three clusters that change places in a cycle, flow matching
# goes straight and takes almost nobody to the right group; Flow Walking takes most and makes detours. Find an α that has
# both: in 100 steps at least 90 % reach their own group, on paths at most 5 % longer than the straight line.
#
# **Predict first.** Nearer to 0.001, to 0.03, or to 1? *My prediction: …*
#
# <details><summary>Hint</summary>
#
# Try powers of ten, then narrow it down.
#
# </details>


# %%
def my_alpha():
    """The weight of flow matching in the hybrid loss, a positive number."""
    ### BEGIN SOLUTION
    return 0.03
    ### END SOLUTION


# %%
check("3.6", my_alpha)

# %% [markdown]
# **And the prediction?** Nearer to 0.03, on the machine this was written on from about 0.02 to 0.05.

# %% [markdown]
# Back to the lessons: [06 · Compressing a transformer](../../06_compressing_a_transformer.ipynb), where the same loss
# replaces twelve layers.
