# %% [markdown]
# # Exercises 03 · Flow Walking
#
# Six exercises to the lesson [03 · Flow Walking](../../03_flow_walking.ipynb). 3.1 to 3.3 build the paper's algorithm 2
# piece by piece; 3.5 and 3.6 train small networks, some ten seconds each.

# %%
import torch

import lft_edu as lft
from lft_edu.exercises import check

# %% [markdown]
# ## 3.1 · Random times ●○○ 6 minutes
#
# A walk of k steps goes through $0 = t_0 < t_1 < \dots < t_k = 1$. Draw the k − 1 times in between uniformly, for each
# walker its own, and sort them.
#
# **Predict first.** Of three steps with random times, how long is the longest on average: 1/3, 1/2, or more? *My
# prediction: …*
#
# <details><summary>Hint</summary>
#
# `torch.rand(batch, k - 1).sort(dim=-1).values`, then a column of zeros in front and one of ones behind: `torch.cat`.
#
# </details>


# %%
def my_random_times(k, batch):
    """Times of a walk of k steps, each row another draw.

    Returns:
        (batch, k + 1) float tensor; rows begin with 0, end with 1 and never fall.
    """
    ### BEGIN SOLUTION
    inner = torch.rand(batch, k - 1).sort(dim=-1).values
    return torch.cat([torch.zeros(batch, 1), inner, torch.ones(batch, 1)], dim=-1)
    ### END SOLUTION


# %%
check("3.1", my_random_times)

# %% [markdown]
# **And the prediction?** About 0.61, that is (1 + ½ + ⅓) / 3. Random steps are uneven, so that the walk has to be right for long steps and for short ones.

# %% [markdown]
# ## 3.2 · The walk ●●○ 10 minutes
#
# From `x0`, midpoint step after midpoint step, through the given times; each step starts where the last one ended. Let
# the gradient through: no `detach`, no `no_grad`.
#
# **Predict first.** How often does a walk of k midpoint steps evaluate the velocity? *My prediction: …*
#
# <details><summary>Hint 1</summary>
#
# `lft.flow.midpoint_step(velocity, x, t, s)` takes numbers, or one time a walker, shape `(B,)`.
#
# </details>
# <details><summary>Hint 2</summary>
#
# `times` is `(K + 1,)` for all or `(B, K + 1)` for each: `times[..., i]` is right for both.
#
# </details>


# %%
def my_walk(velocity, x0, times):
    """Follow the velocity from x0 through the times.

    Args:
        velocity: velocity(x, t).
        x0: (B, D).
        times: (K + 1,) or (B, K + 1), from 0 to 1.

    Returns:
        (B, D), where the walk ends.
    """
    ### BEGIN SOLUTION
    x = x0
    for i in range(times.shape[-1] - 1):
        x = lft.flow.midpoint_step(velocity, x, times[..., i], times[..., i + 1])
    return x
    ### END SOLUTION


# %%
check("3.2", my_walk)

# %% [markdown]
# **And the prediction?** 2k times.

# %% [markdown]
# ## 3.3 · The Flow Walking loss ●●○ 10 minutes
#
# $L_\text{FW} = \mathbb{E}\,\lVert \hat x_1 - x_1\rVert^2$ (paper, eq. 8): draw times, walk, and compare the end, and
# only the end, with the partner. Mean over points and dimensions.
#
# **Predict first.** Which of these can be seen from the loss: that the path is straight, that it is short, that it ends
# right? *My prediction: …*
#
# <details><summary>Hint</summary>
#
# Your two functions above, and a mean of squares: two lines.
#
# </details>


# %%
def my_flow_walking_loss(velocity, x0, x1, k):
    """Walk k steps through random times and compare the end.

    Args:
        velocity: velocity(x, t) for x (B, D), t (B,).
        x0, x1: (B, D), pairs.
        k: number of midpoint steps.

    Returns:
        A scalar tensor.
    """
    ### BEGIN SOLUTION
    times = my_random_times(k, len(x0)).to(x0)
    return (my_walk(velocity, x0, times) - x1).square().mean()
    ### END SOLUTION


# %%
check("3.3", my_flow_walking_loss)

# %% [markdown]
# **And the prediction?** Only that it ends right. A detour costs nothing.

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
