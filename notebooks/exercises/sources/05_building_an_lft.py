# %% [markdown]
# # Exercises 05 · Building an LFT
#
# Seven exercises to the lesson [05 · Building an LFT](../../05_building_an_lft.ipynb). For each: write down what you
# expect, fill in the function, run the check. They take up pieces that the lesson has built, each with something changed.
# If you have time for one only, take 5.7, the training step. Spans `(m, n)` are half open: layers
# m … n − 1 are replaced.

# %%
import torch

from lft_edu.exercises import check
from lft_edu.flow import walk

# %% [markdown]
# ## 5.1 · Read the clock ●●○ 12 minutes
#
# The time embedding spreads a time over 64 cosines and 64 sines,
# $\cos(1000\,\omega_i\,t)$ and $\sin(1000\,\omega_i\,t)$ with $\omega_i = 10000^{-i/64}$, $i = 0, \dots, 63$: first all cosines, then
# all sines. Go the other way: read the time off the features. It must still be right to 0.01 when every feature has noise
# of up to 0.01. (The student has to read it off, too.)
#
# **Predict first.** The student `bundled/flow-walking-6-18` evaluates its velocity at t = 0, 1/6, …, 5/6. How similar
# (cosine) are the features of two neighboring times, without the factor 1000 and with it? *My prediction: …*
#
# <details><summary>Hint 1</summary>
#
# Each frequency is the hand of a clock. `torch.atan2(sine, cosine)` is where the hand stands, from −π to π. A fast hand
# goes round many times from t = 0 to 1, a slow one hardly moves.
#
# </details>
# <details><summary>Hint 2</summary>
#
# Which hand is the fastest of those that stay below half a turn? Solve $1000 \cdot 10000^{-i/64} \le \pi$ for i.
#
# </details>


# %%
def my_time(features):
    """Times, read off their sinusoidal features.

    Args:
        features: (N, 128): 64 cosines, then 64 sines.

    Returns:
        (N,), times from 0 to 1.
    """
    ### BEGIN SOLUTION
    i = 41  # the fastest frequency that turns by less than π from t = 0 to 1: by 2.74
    angle = torch.atan2(features[:, 64 + i], features[:, i])
    return angle / (1000 * 10_000 ** (-i / 64))
    ### END SOLUTION


# %%
check("5.1", my_time)

# %% [markdown]
# **And the prediction?** 0.999 without, 0.386 with. (The two ends, t = 0 and t = 1: 0.970 and 0.159.) How much the student makes of it: freeze its time at t = 0 and its KL from the teacher, on the 24 sequences of held-out code of lesson 05, rises from 0.23 to 0.97; frozen at t = 1/2, the best of the four times tried, to 0.33.

# %% [markdown]
# ## 5.2 · One after the other ●●○ 12 minutes
#
# Pythia's layers have a *parallel* residual: attention and MLP both read x. In Llama, GPT-2 and most others it is
# *sequential*: the MLP reads the state after attention. Write the velocity of a modulated layer of that kind, with the
# six modulations of the lesson, (1 + γ) ⊙ norm + β before each part and α ⊙ after it.
#
# **Predict first.** Forget the `1 +`, before any training (γ = β = 0, α = 1). What does attention read then, and in
# what do the velocities of two different tokens differ? *My prediction: …*
#
# <details><summary>Hint 1</summary>
#
# Write the layer itself first, with x, and subtract x at the end.
#
# </details>
# <details><summary>Hint 2</summary>
#
# What attention adds is scaled by α1 *before* the MLP sees it.
#
# </details>


# %%
def my_velocity(x, modulations, attend, mlp, norm1, norm2):
    """What a modulated layer with sequential residual adds to the states.

    Args:
        x: (B, T, D), states.
        modulations: (6, D): γ1, β1, α1 for attention, γ2, β2, α2 for the MLP.
        attend, mlp: functions from (B, T, D) to (B, T, D).
        norm1, norm2: the layer's norms, before attention and before the MLP; functions from (B, T, D) to (B, T, D).

    Returns:
        (B, T, D), a velocity.
    """

    ### BEGIN SOLUTION
    def modulate(x, gamma, beta):
        return (1 + gamma) * x + beta

    gamma1, beta1, alpha1, gamma2, beta2, alpha2 = modulations
    attended = alpha1 * attend(modulate(norm1(x), gamma1, beta1))
    return attended + alpha2 * mlp(modulate(norm2(x + attended), gamma2, beta2))
    ### END SOLUTION


# %%
check("5.2", my_velocity)

# %% [markdown]
# **And the prediction?** Zeros; and in nothing: every token, whatever its state, is moved by the same vector, made of biases. In one Euler step over layers 6–18 of the bundled teacher (whose residual is parallel), on the same 24 sequences, that is hardly better than leaving the twelve layers out: KL 1.46 against 1.48 (with the `1 +`, untrained: 1.27). In the trained student `bundled/flow-walking-6-18`, whose γ learned to be added to 1, forgetting it takes the KL from 0.23 to 1.04.

# %% [markdown]
# ## 5.3 · Several splices ●●○ 12 minutes
#
# One model, several operators: each replaces a span (m, n) of the *teacher's* layers. They are given in any order; spans do
# not overlap, but may touch, and there may be none. Then the final norm and the head. The layers are plain functions here.
#
# **Predict first.** Take the identity for an operator and replace a single layer of the bundled teacher's 24. Which
# layer costs most, and how many times as much as the second worst? *My prediction: …*
#
# <details><summary>Hint 1</summary>
#
# What goes wrong with `layers[m:n] = [operator]`, one span after the other?
#
# </details>
# <details><summary>Hint 2</summary>
#
# Walk through the teacher's layers with a counter: where a span begins, run its operator and jump to its end. Or
# replace from the last span to the first.
#
# </details>


# %%
def my_spliced(x, layers, operators, norm, head):
    """Run a model in which operators stand for several spans.

    Args:
        x: (T, D), embedded tokens.
        layers: the teacher's layers, a list of functions from (T, D) to (T, D).
        operators: a list of pairs ((m, n), operator) in any order: a function from (T, D) to (T, D) in place of the
            teacher's layers m … n − 1.
        norm: the final norm, from (T, D) to (T, D).
        head: from (T, D) to logits (T, V).

    Returns:
        (T, V), logits.
    """
    ### BEGIN SOLUTION
    starts = {m: (n, operator) for (m, n), operator in operators}
    i = 0
    while i < len(layers):
        i, part = starts.get(i, (i + 1, layers[i]))
        x = part(x)
    return head(norm(x))
    ### END SOLUTION


# %%
check("5.3", my_spliced)

# %% [markdown]
# **And the prediction?** Layer 0: KL 6.4 nats per token. The second worst is layer 5 with 0.20, a thirtieth of it; layer 17 costs 0.02. Every layer adds to what is there already, and nearly any one of them can be missed; not the first, which all others build on.

# %% [markdown]
# ## 5.4 · The budget of another family ●●○ 15 minutes
#
# The lesson counts GPT-NeoX. Count a model like SmolLM2: *grouped-query* attention, in which `heads` heads of D / heads
# numbers each ask, and only `kv_heads` heads of that size have keys and values; and a *gated* MLP of three matrices,
# $D \times F$ twice and $F \times D$. Neither biases nor norms count; the time embedding has $128 \times D$ and
# $D \times 6D$, as in the lesson.
#
# **Predict first.** SmolLM2-135M (30 layers, D = 576, 9 heads, 3 of keys and values, F = 1536), layers 10–20 replaced,
# two midpoint steps: by how many percent do weights, evaluations and cache fall? *My prediction: …*
#
# <details><summary>Hint 1</summary>
#
# Attention has four matrices. Queries and output are D × D. How wide is what `kv_heads` heads make of a token?
#
# </details>
# <details><summary>Hint 2</summary>
#
# Weights are counted once however often they are used; evaluations and keys are counted each time. What a token leaves in
# the cache is as wide as its keys and values together.
#
# </details>


# %%
def my_budget(model, span, solver, steps):
    """What a model costs in which a flow stands for a span of layers.

    Args:
        model: a dict with the teacher's "layers", "width" D, "heads", "kv_heads" and "inner" F, the width of its MLP.
        span: (m, n), half open.
        solver: "euler" or "midpoint".
        steps: k.

    Returns:
        (weights in layers and operator, layer evaluations per token, numbers in the cache per token), whole numbers.
    """
    ### BEGIN SOLUTION
    width, (m, n) = model["width"], span
    keys = width // model["heads"] * model["kv_heads"]  # numbers in a token's keys; as many in its values
    layer = 2 * width**2 + 2 * width * keys + 3 * width * model["inner"]
    kept = model["layers"] - (n - m)
    evaluations = kept + steps * {"euler": 1, "midpoint": 2}[solver]
    weights = layer * (kept + 1) + 128 * width + 6 * width**2
    return weights, evaluations, 2 * keys * evaluations
    ### END SOLUTION


# %%
check("5.4", my_budget)

# %% [markdown]
# **And the prediction?** Weights in the layers from 106 to 76 million, 28 % less; evaluations from 30 to 24 and the cache from 11,520 numbers per token to 9,216, 20 % less. With keys for all nine heads the cache would be three times as large, in teacher and student alike.

# %% [markdown]
# ## 5.5 · A test for a cache ●●○ 12 minutes
#
# Someone else has spliced a flow into a model and given it a KV cache. `run(pieces)` reads a text piece by piece, with an
# empty cache at first, and returns the states of all its tokens. Is the cache right? The check hands your test two right
# models and eight wrong ones.
#
# **Predict first.** `bundled/flow-walking-6-18` evaluates its velocity six times. On the 24 sequences of held-out code of
# lesson 05 its KL from the teacher is 0.23, and leaving out the twelve layers costs 1.48. What if its six evaluations
# share one cache entry? And if the two of each midpoint step do? *My prediction: …*
#
# <details><summary>Hint 1</summary>
#
# What must never depend on how a text is cut in pieces? And how exactly can two sums of floats agree that run in
# different order?
#
# </details>
# <details><summary>Hint 2</summary>
#
# Some mistakes need a third piece to show; others a later piece of more than one token. `text.split(1, dim=1)`,
# `text[:, :3]`.
#
# </details>


# %%
def my_test(run, text):
    """Whether a model's cache is right.

    Args:
        run: run(pieces), a list of (1, tokens, D) that make up a text, → the states of all tokens, (1, T, D).
        text: (1, T, D) with T = 7, the embedded tokens of a text.

    Returns:
        True if it is right, False if not.
    """
    ### BEGIN SOLUTION
    whole = run([text])
    one_by_one = run(text.split(1, dim=1))
    in_three = run([text[:, :3], text[:, 3:5], text[:, 5:]])
    return all(torch.allclose(whole, other, atol=1e-4) for other in (one_by_one, in_three))
    ### END SOLUTION


# %%
check("5.5", my_test)

# %% [markdown]
# **And the prediction?** One entry for all: 0.61, and the logits after `for i, name in enumerate(names):\n    print(` differ by up to 3.7; where the student writes `name, name)`, it now writes `str(name, name, name, name, name, name, …`. An entry for each step: 0.256 instead of 0.231. The less it costs, the longer it stays unnoticed: measure a cached model against an uncached one, not by its text.

# %% [markdown]
# ## 5.6 · The loop that writes ●●● 20 minutes
#
# Write greedily with a cache: the prompt goes in at once, then one token at a time, each the most likely one. Stop
# after `eos`, or after n new tokens. Use the model as it is, by calls of `model(…)`; the text must be the one it
# writes without a cache.
#
# **Predict first.** A prompt of 20 tokens and 400 new ones. How many tokens are run through the model, with a cache and
# without? And how many times as fast is it on a CPU with the bundled student? *My prediction: …*
#
# <details><summary>Hint 1</summary>
#
# `out = model(input_ids=…, past_key_values=cache, use_cache=True)` returns `out.logits`, (1, tokens given, V), and
# `out.past_key_values`, the cache to pass on. At first there is none. The model counts positions by the cache.
#
# </details>
# <details><summary>Hint 2</summary>
#
# Two variables: the whole text, and what the model has not seen yet.
#
# </details>


# %%
def my_generate(model, input_ids, n, eos):
    """Greedy text with a cache.

    Args:
        model: a spliced model for causal language modeling.
        input_ids: (1, T), the prompt.
        n: new tokens, at most.
        eos: the token that ends a text. It belongs to the text.

    Returns:
        (1, T + new tokens), the prompt and what follows.
    """
    ### BEGIN SOLUTION
    text, unseen, cache = input_ids, input_ids, None
    for _ in range(n):
        with torch.no_grad():
            out = model(input_ids=unseen, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        unseen = out.logits[:, -1:].argmax(-1)
        text = torch.cat([text, unseen], 1)
        if unseen.item() == eos:
            break
    return text
    ### END SOLUTION


# %%
check("5.6", my_generate)

# %% [markdown]
# **And the prediction?** 419 with, 87,800 without: 210 times as many. But it is only three times as fast (2.6 against 8.1 seconds on one slow core): in a model this small, a pass with a single token takes nearly as long as one with a hundred. The larger the model and the longer the text, the more of the 210 is left. See for yourself: `my_generate(lft.load_student("bundled/flow-walking-6-18"), ids, 40, 0)`, with `import lft_edu as lft` and ids from `lft.load_teacher()[1]("def area(", return_tensors="pt")["input_ids"]`.

# %% [markdown]
# ## 5.7 · Train it yourself ●●○ 15 minutes
#
# One step of the training loop. The teacher is given as two functions with weights: `head` (the layers before the span)
# and `span` (the layers that the operator replaces). The loss is Flow Walking's: walk from x0 through the given times by
# midpoint steps, compare the *end* with x1; the mean over all tokens but position 0, and over dimensions. The optimizer
# was made with the weights of the whole model, as `student.parameters()` has them; only the operator may change.
#
# **Predict first.** In the lesson's loop (200 steps), make one mistake at a time: never clear the gradient; detach the
# walk between its steps; compare every state of the path with x1; count position 0. Which one ruins the student, and
# which one would you not notice? *My prediction: …*
#
# <details><summary>Hint 1</summary>
#
# Two lines under `torch.no_grad()`, a walk (`walk(velocity, x0, times)`, imported above), a loss, three calls.
#
# </details>
# <details><summary>Hint 2</summary>
#
# Position 0 walks along, since the other tokens attend to it. `[:, 1:]` comes after the walk.
#
# </details>


# %%
def my_train_step(head, span, velocity, optimizer, ids, times):
    """Take one training step on a batch.

    Args:
        head: ids (B, T) → x0 (B, T, D), the states that enter the span. Has weights, the teacher's.
        span: x0 → x1 (B, T, D), the states that leave it. Has weights, the teacher's.
        velocity: velocity(x, t) → (B, T, D), the operator, an nn.Module.
        optimizer: a torch.optim.Optimizer of all these weights.
        ids: (B, T), tokens.
        times: from 0 to 1, the times of this walk, a list of numbers.

    Returns:
        The loss before the step, a number.
    """
    ### BEGIN SOLUTION
    with torch.no_grad():
        x0 = head(ids)
        x1 = span(x0)
    loss = (walk(velocity, x0, times) - x1)[:, 1:].square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()
    ### END SOLUTION


# %%
check("5.7", my_train_step)

# %% [markdown]
# **And the prediction?** Never clearing the gradient ruins it: the loss explodes, and the KL ends at 7.9 nats per token (untrained: 1.28; done right: 0.39). The other three you would not notice, unless you had the right one to compare: 0.46 if the walk is detached, 0.51 if the whole path is compared with $x_1$, 0.40 with position 0. (One run each, the same seed.) Position 0 matters this little because the bundled teacher's sink is weak. In SmolLM2-135M, the model of lesson 08, its root mean square is 1,000 where other tokens have 6.

# %% [markdown]
# Back to the lessons: [06 · Compressing a transformer](../../06_compressing_a_transformer.ipynb), where such models are
# compared.
