# %% [markdown]
# # Exercises 02 · Flow matching
#
# Eight exercises to the lesson [02 · Flow matching](../../02_flow_matching.ipynb). For each: write down what you expect,
# fill in the function, run the check. A *velocity* is any function `velocity(x, t)` that returns a tensor shaped like
# `x`; `t` is a number, or one time per point, shape `(B,)`.

# %%
import math

import torch

import lft_edu as lft
from lft_edu.exercises import check

# %% [markdown]
# ## 2.1 · Tokens and padding ●●○ 12 minutes
#
# The flow-matching loss of the lesson, for *texts*. States are `(B, T, D)`; texts are shorter than T, and what follows
# them is padding. `real`, `(B, T)`, is True where a token is real; in the padding $x_0$ and $x_1$ hold anything. Give
# every token a time of its own, and take the mean over all real tokens and their dimensions.
#
# **Predict first.** A batch holds a text of 2 tokens and one of 200. Take the mean of each text, then the mean of both:
# how many times as much does a token of the short text count as one of the long text? *My prediction: …*
#
# <details><summary>Hint 1</summary>
#
# Which shapes can `velocity(x, t)` take? `t` may be a number, `(B,)` or `(B, T)`; `x` must be whole texts, since tokens
# attend to each other.
#
# </details>
# <details><summary>Hint 2</summary>
#
# A table of times `(B, T)` needs a third axis to multiply states. A table of truth values selects: `error[real]` is
# `(number of real tokens, D)`.
#
# </details>


# %%
def my_flow_matching_loss(velocity, x0, x1, real):
    """How far the velocity is from that of straight lines, at a random time for each real token.

    Args:
        velocity: velocity(x, t) for x (B, T, D) and t a number, (B,) or (B, T).
        x0, x1: (B, T, D), pairs of states.
        real: (B, T), True where a token is real, False in the padding.

    Returns:
        A scalar tensor.
    """
    ### BEGIN SOLUTION
    t = torch.rand(x0.shape[:2], dtype=x0.dtype)
    x_t = torch.lerp(x0, x1, t[..., None])
    return (velocity(x_t, t) - (x1 - x0))[real].square().mean()
    ### END SOLUTION


# %%
check("2.1", my_flow_matching_loss)

# %% [markdown]
# **And the prediction?** 100 times: each text has half of the weight, and the short one shares its half among 2 tokens. A mean of means is not the mean.

# %% [markdown]
# ## 2.2 · Heun's step ●○○ 8 minutes
#
# The lesson names a third method in half a sentence: **Heun's** averages the velocities at both ends of an Euler step.
# Make a step of it. It costs two evaluations, like the midpoint step.
#
# **Predict first.** For the velocity $2t$, from $x = 0$ and $t = 0$, one Heun step to $t = 1$ ends at 1, and that is
# exact. And for $3t^2$, where 1 is exact, too? Where does one midpoint step end there? *My prediction: …*
#
# <details><summary>Hint</summary>
#
# Where is the other end of an Euler step? It is a place *and* a time.
#
# </details>


# %%
def my_heun_step(velocity, x, t, s):
    """One step of Heun's method from time t to time s.

    Args:
        velocity: velocity(x, t).
        x: (B, D), where the points are at time t.
        t, s: numbers.

    Returns:
        (B, D), where they are at time s.
    """
    ### BEGIN SOLUTION
    first = velocity(x, t)
    last = velocity(x + (s - t) * first, s)
    return x + (s - t) * (first + last) / 2
    ### END SOLUTION


# %%
check("2.2", my_heun_step)

# %% [markdown]
# **And the prediction?** Heun ends at 1.5, the mean of 0 and 3; the midpoint step at 0.75. Both have order 2, and here their errors have opposite signs, Heun's twice as large: 2/3 of a midpoint step and 1/3 of a Heun step is exact here (Simpson's rule).

# %% [markdown]
# ## 2.3 · Any Runge–Kutta step ●●○ 15 minutes
#
# Euler, midpoint, Heun and hundreds of other methods differ in three lists of numbers. With $d = s - t$, the i-th
# evaluation is $u_i = u\big(x + d \sum_{j<i} a_{ij}\, u_j,\ t + c_i\, d\big)$, and the step is
# $x + d \sum_i b_i\, u_i$. Write the step that takes any such table.
#
# **Predict first.** Twelve evaluations for a quarter turn: 12 Euler steps, 6 midpoint steps, or 3 steps of the *classical*
# method, which has four evaluations and order 4. By what factor does each beat the one before? *My prediction: …*
#
# <details><summary>Hint 1</summary>
#
# Write down a, b and c of Euler's and of the midpoint step first. Midpoint: the second evaluation is half a step on, and
# it alone moves the point.
#
# </details>
# <details><summary>Hint 2</summary>
#
# One loop over the rows of a and the entries of c, and a list of the velocities so far. The sum over an empty row is 0.
#
# </details>


# %%
def my_step(velocity, x, t, s, a, b, c):
    """One step of the Runge–Kutta method with the table a, b, c.

    Args:
        velocity: velocity(x, t).
        x: (B, D), where the points are at time t.
        t, s: numbers.
        a: a list of rows; row i has i weights, one for each velocity before the i-th. The first row is empty.
        b: the weights of the velocities in the step.
        c: the times of the evaluations, as fractions of the step.

    Returns:
        (B, D), where they are at time s.
    """
    ### BEGIN SOLUTION
    d, seen = s - t, []
    for row, fraction in zip(a, c, strict=True):
        place = x + d * sum(weight * u for weight, u in zip(row, seen, strict=True))
        seen.append(velocity(place, t + fraction * d))
    return x + d * sum(weight * u for weight, u in zip(b, seen, strict=True))
    ### END SOLUTION


# %%
check("2.3", my_step)

# %% [markdown]
# **And the prediction?** The errors are 0.108, 0.018 and 0.00098: a sixth, and then an eighteenth. The more exact the field, the more a high order pays. A learned field has an error of its own, which no solver makes smaller.

# %% [markdown]
# ## 2.4 · Measure the order ●●○ 12 minutes
#
# A solver has *order* p if its error falls like $k^{-p}$ with the number of steps k. Measure it: walk a quarter turn, of
# which you know the exact end, with k and with 2k steps. `lft.flow.walk(velocity, x0, times, step)` walks.
#
# **Predict first.** Three midpoint steps cost six evaluations, like six Euler steps. Which ends nearer? *My prediction: …*
#
# <details><summary>Hint 1</summary>
#
# Velocity of a quarter turn in unit time: `lambda x, t: math.pi / 2 * torch.stack([-x[:, 1], x[:, 0]], -1)`. It takes
# (1, 0) to (0, 1).
#
# </details>
# <details><summary>Hint 2</summary>
#
# error(k) ≈ c·k^(−p), so p = log₂(error(k) / error(2k)). Compute in float64: `lft.flow.uniform_times(k, dtype=torch.float64)`.
#
# </details>


# %%
def my_order(step):
    """The measured order of a step.

    Args:
        step: step(velocity, x, t, s), such as your Heun step.

    Returns:
        A number, such as 1.02.
    """
    ### BEGIN SOLUTION
    x0 = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    exact = torch.tensor([[0.0, 1.0]], dtype=torch.float64)

    def spin(x, t):
        return math.pi / 2 * torch.stack([-x[:, 1], x[:, 0]], -1)

    def error(k):
        return (lft.flow.walk(spin, x0, lft.flow.uniform_times(k, dtype=torch.float64), step) - exact).norm().item()

    return math.log2(error(16) / error(32))
    ### END SOLUTION


# %%
check("2.4", my_order)

# %% [markdown]
# **And the prediction?** Midpoint, and clearly: its error falls with the square of the number of steps.

# %% [markdown]
# ## 2.5 · The average arrow, exactly ●●● 20 minutes
#
# Two beams on a line. Half of the points start at $+1 + \varepsilon$ and go to $-1 + \varepsilon$, half start at
# $-1 + \varepsilon$ and go to $+1 + \varepsilon$, with $\varepsilon \sim N(0, \sigma^2)$: each keeps its own
# $\varepsilon$. The flow-matching loss is smallest for the *average* velocity of those who are at x at time t,
# $u^*(x, t) = \mathbb{E}[x_1 - x_0 \mid x_t = x]$. Work it out and write it down.
#
# **Predict first.** What is $u^*$ at t = ½, where the beams meet? *My prediction: …*
#
# <details><summary>Hint 1</summary>
#
# At time t the first beam is at $(1-2t) + \varepsilon$ with velocity −2, the second at $-(1-2t) + \varepsilon$ with
# velocity +2. Someone at x belongs to the first with probability p(x); the average is −2 p + 2 (1 − p).
#
# </details>
# <details><summary>Hint 2</summary>
#
# Bayes: p is the density of the first beam at x over the sum of both densities, two Gaussians of the same width σ around
# ±μ with μ = 1 − 2t. Divide by the numerator. And remember $\tanh(z) = 2/(1 + e^{-2z}) - 1$.
#
# </details>


# %%
def my_average_velocity(x, t, sigma):
    """The minimiser of the flow-matching loss for two crossing beams on a line.

    Args:
        x: (N,) places.
        t: a number from 0 to 1.
        sigma: width of the beams.

    Returns:
        (N,) velocities.
    """
    ### BEGIN SOLUTION
    mu = 1 - 2 * t  # where the first beam's centre is at time t; the second's is at −mu
    return -2 * torch.tanh(x * mu / sigma**2)
    ### END SOLUTION


# %%
check("2.5", my_average_velocity)

# %% [markdown]
# **And the prediction?** Zero everywhere: both beams are in the same place, one half goes left and one half right.

# %% [markdown]
# ## 2.6 · A walk that keeps every pair ●●○ 10 minutes
#
# Two narrow beams, of spread σ = 0.15. Follow their average arrow exactly, and every point bounces back: no pair is
# kept. And yet there *are* ways to walk this very field that keep at least 95 of 100. Find one, solver and number of
# steps. Then say why it works, and why it would be a poor excuse for calling flow matching a success.
#
# **Predict first.** Many steps, or few? *My prediction: …*
#
# <details><summary>Hint</summary>
#
# At which times do all points still know who they are? Look there, and nowhere else.
#
# </details>


# %%
def my_walk_that_keeps():
    """Solver ("euler" or "midpoint") and number of steps."""
    ### BEGIN SOLUTION
    # At t = 0 no points have met: the average at x0 is over one partner only. One Euler step looks there and never
    # again. It is a one-layer regression of x1 on x0; that the network also learned a field for t > 0 plays no part.
    # ("euler", 3) does it, too, but only for beams as narrow as these: it looks at t = 0, 1/3 and 2/3, and jumps over
    # the meeting at 1/2. With the lesson's σ = 0.4 the beams overlap at 1/3 as well, and three steps keep half.
    return "euler", 1
    ### END SOLUTION


# %%
check("2.6", my_walk_that_keeps)

# %% [markdown]
# **And the prediction?** Few: one Euler step looks at t = 0 only. For beams this narrow three Euler steps work, too: they look at 0, ⅓ and ⅔, never near ½, and keep 97 %. With σ = 0.4, as on the line of the lesson, the beams overlap at ⅓ already: one step keeps 99 %, three keep 47 %. So what works whatever the spread is not to walk at all.

# %% [markdown]
# ## 2.7 · The floor ●●○ 15 minutes
#
# Where lines of different partners meet, even the exact average velocity has an error: the loss has a *floor*. Find it
# by drawing. Two beams on a line, as in 2.5: half of the points start at +1 and go to −1, half the other way, and each
# keeps its offset σz, z normal, on the whole path. The least loss is the mean of $(v - u(x_t, t))^2$ over $t \sim U(0, 1)$
# and all points, where $v$ is the velocity of the point's own line and $u$ the average velocity of exercise 2.5.
#
# **Predict first.** Make the beams narrower, σ → 0, so that they overlap for an ever shorter time. Does the floor go to
# zero, and does it get there? *My prediction: …*
#
# <details><summary>Hint</summary>
#
# One draw: `t = torch.rand(n)`, `s = ±1`, `z = torch.randn(n)`. The point is at `s * (1 - 2 * t) + sigma * z`, and its own
# velocity is `-2 * s`.
#
# </details>


# %%
def my_floor(sigma):
    """The least possible flow-matching loss for two crossing beams on a line.

    Args:
        sigma: width of the beams.

    Returns:
        A single number, the mean squared error of the exact average velocity.
    """
    ### BEGIN SOLUTION
    n = 1_000_000
    t, z = torch.rand(n), torch.randn(n)
    s = torch.randint(2, (n,)) * 2 - 1
    x_t = s * (1 - 2 * t) + sigma * z
    u = -2 * torch.tanh(x_t * (1 - 2 * t) / sigma**2)
    return (-2 * s - u).square().mean()
    ### END SOLUTION


# %%
check("2.7", my_floor)

# %% [markdown]
# **And the prediction?** It goes to zero like σ: beams half as wide overlap for half the time, and while they overlap the error is the same. It gets there only at σ = 0. So a loss *at its floor* says that the network has learned the average velocity; only a floor near zero says that this keeps the pairs.

# %% [markdown]
# ## 2.8 · A curved path ●●○ 15 minutes
#
# Nothing says that the path from $x_0$ to $x_1$ must be straight. Diffusion models use a quarter circle:
#
# $$x_t = \cos(\tfrac{\pi}{2} t)\, x_0 + \sin(\tfrac{\pi}{2} t)\, x_1$$
#
# (an *interpolant*: Albergo and Vanden-Eijnden, [arXiv 2209.15571](https://arxiv.org/abs/2209.15571)). Write the
# flow-matching loss for it: a random time per point, the point $x_t$ on its path, and the velocity that the network
# should have there.
#
# **Predict first.** At which time does this path move slowest: at the start, in the middle, at the end, or never? *My
# prediction: …*
#
# <details><summary>Hint</summary>
#
# The velocity of a path is its derivative in t. The derivative of $\cos(\frac{\pi}{2} t)$ is
# $-\frac{\pi}{2} \sin(\frac{\pi}{2} t)$.
#
# </details>


# %%
def my_curved_loss(velocity, x0, x1):
    """The flow-matching loss on a quarter circle.

    Args:
        velocity: a function (x, t) → velocities shaped like x; t has shape (N,).
        x0, x1: (N, D), pairs.

    Returns:
        A single number: the mean squared error over points and dimensions.
    """
    ### BEGIN SOLUTION
    t = torch.rand(len(x0))
    angle = math.pi / 2 * t[:, None]
    x_t = angle.cos() * x0 + angle.sin() * x1
    target = math.pi / 2 * (angle.cos() * x1 - angle.sin() * x0)
    return (velocity(x_t, t) - target).square().mean()
    ### END SOLUTION


# %%
check("2.8", my_curved_loss)

# %% [markdown]
# **And the prediction?** If $x_0$ and $x_1$ are at right angles and equally long, never: the speed is constant, as on a circle. In general it depends on the pair; where $x_1 = x_0$, the point goes out and comes back, fastest at both ends. A straight line would stay where it is.

# %% [markdown]
# Back to the lessons: [03 · Flow Walking](../../03_flow_walking.ipynb)
