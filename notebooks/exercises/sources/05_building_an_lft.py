# %% [markdown]
# # Exercises 05 · Building an LFT
#
# Seven exercises to the lesson [05 · Building an LFT](../../05_building_an_lft.ipynb). For each: write down what you
# expect, fill in the function, run the check. The lesson has built every one of these pieces; write them from memory
# before you look back. If you have time for one only, take 5.7, the training step. Spans `(m, n)` are half open: layers
# m … n − 1 are replaced.

# %%
import torch

from lft_edu.exercises import check
from lft_edu.flow import walk

# %% [markdown]
# ## 5.1 · A time embedding ●○○ 8 minutes
#
# Spread a time over 128 features, as the library does it: multiply by 1000, then cosines and sines at 64 frequencies,
#
# $$\cos(1000\,\omega_i\,t),\ \sin(1000\,\omega_i\,t), \qquad \omega_i = 10000^{-i/64},\quad i = 0, \dots, 63.$$
#
# Order: all 64 cosines, then all 64 sines, each from i = 0 to 63. A new network would learn either order; the
# weights of the bundled students were trained with this one.
#
# **Predict first.** The student `bundled/flow-walking-6-18` evaluates its velocity at t = 0, 1/6, …, 5/6. How similar
# (cosine) are the features of two neighboring times, without the factor 1000 and with it? *My prediction: …*
#
# <details><summary>Hint</summary>
#
# `t[:, None] * frequencies` is a table (N, 64): one row per time. `torch.cat([…, …], -1)` puts two tables side by side.
#
# </details>


# %%
def my_features(t):
    """Sinusoidal features of times.

    Args:
        t: (N,), times from 0 to 1.

    Returns:
        (N, 128): 64 cosines, then 64 sines.
    """
    ### BEGIN SOLUTION
    frequencies = 10_000 ** (-torch.arange(64) / 64)
    angles = 1000 * t[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], -1)
    ### END SOLUTION


# %%
check("5.1", my_features)

# %% [markdown]
# **And the prediction?** 0.999 without, 0.386 with. (The two ends, t = 0 and t = 1: 0.970 and 0.159.) How much the student makes of it: freeze its time at t = 0 and its KL from the teacher, on the 24 sequences of held-out code of lesson 05, rises from 0.23 to 0.97; frozen at t = 1/2, the best of the four times tried, to 0.33.

# %% [markdown]
# ## 5.2 · Six modulations ●●○ 12 minutes
#
# The velocity of a layer with parallel residual, as Pythia's:
#
# $$u = \alpha_1 \odot \mathrm{Attn}\big((1+\gamma_1) \odot \mathrm{LN}_1 x + \beta_1\big) + \alpha_2 \odot \mathrm{MLP}\big((1+\gamma_2) \odot \mathrm{LN}_2 x + \beta_2\big)$$
#
# **Predict first.** Forget the `1 +`, before any training (γ = β = 0, α = 1). What does attention read then, and in
# what do the velocities of two different tokens differ? *My prediction: …*
#
# <details><summary>Hint</summary>
#
# `gamma1, beta1, alpha1, gamma2, beta2, alpha2 = modulations`. A helper of one line says what modulating is; use it twice.
#
# </details>


# %%
def my_velocity(x, modulations, attend, mlp, norm1, norm2):
    """What a modulated layer adds to the states.

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
    return attended + alpha2 * mlp(modulate(norm2(x), gamma2, beta2))
    ### END SOLUTION


# %%
check("5.2", my_velocity)

# %% [markdown]
# **And the prediction?** Zeros; and in nothing: every token, whatever its state, is moved by the same vector, made of biases. In one Euler step over layers 6–18 of the bundled teacher, on the same 24 sequences, that is hardly better than leaving the twelve layers out: KL 1.46 against 1.48 (with the `1 +`, untrained: 1.27). In the trained student `bundled/flow-walking-6-18`, whose γ learned to be added to 1, forgetting it takes the KL from 0.23 to 1.04.

# %% [markdown]
# ## 5.3 · The splice ●○○ 8 minutes
#
# Head layers, the operator in the place of layers m … n − 1, tail layers, the final norm, the head. The layers are plain
# functions here.
#
# **Predict first.** Take the identity for an operator and replace a single layer of the bundled teacher's 24. Which
# layer costs most, and how many times as much as the second worst? *My prediction: …*
#
# <details><summary>Hint</summary>
#
# `layers[:m]` and `layers[n:]`.
#
# </details>


# %%
def my_spliced(x, layers, span, operator, norm, head):
    """Run a spliced model.

    Args:
        x: (T, D), embedded tokens.
        layers: the teacher's layers, a list of functions from (T, D) to (T, D).
        span: (m, n), half open.
        operator: a function from (T, D) to (T, D).
        norm: the final norm, from (T, D) to (T, D).
        head: from (T, D) to logits (T, V).

    Returns:
        (T, V), logits.
    """
    ### BEGIN SOLUTION
    m, n = span
    for layer in [*layers[:m], operator, *layers[n:]]:
        x = layer(x)
    return head(norm(x))
    ### END SOLUTION


# %%
check("5.3", my_spliced)

# %% [markdown]
# **And the prediction?** Layer 0: KL 6.4 nats per token. The second worst is layer 5 with 0.20, a thirtieth of it; layer 17 costs 0.02. Every layer adds to what is there already, and nearly any one of them can be missed; not the first, which all others build on.

# %% [markdown]
# ## 5.4 · The budget ●●○ 10 minutes
#
# What does a spliced model cost? Count a layer as $12 D^2$ weights (no biases, no norms), the time embedding's network as two
# matrices, $128 \times D$ and $D \times 6D$. Each attention that is evaluated keeps a key and a value of D numbers for each
# token.
#
# **Predict first.** Pythia-410M (24 layers, D = 1024), layers 6–12 replaced, three midpoint steps: by how much does each
# of the three fall? *My prediction: …*
#
# <details><summary>Hint</summary>
#
# Weights are counted once however often they are used; evaluations and keys are counted each time.
#
# </details>


# %%
def my_budget(layers, width, span, solver, steps):
    """What a model costs in which a flow stands for a span of layers.

    Args:
        layers: of the teacher.
        width: D.
        span: (m, n), half open.
        solver: "euler" or "midpoint".
        steps: k.

    Returns:
        (weights in layers and operator, layer evaluations per token, numbers in the cache per token), whole numbers.
    """
    ### BEGIN SOLUTION
    m, n = span
    kept = layers - (n - m)
    evaluations = kept + steps * {"euler": 1, "midpoint": 2}[solver]
    weights = 12 * width**2 * (kept + 1) + 128 * width + 6 * width**2
    return weights, evaluations, 2 * width * evaluations
    ### END SOLUTION


# %%
check("5.4", my_budget)

# %% [markdown]
# **And the prediction?** Weights in the layers from 302 to 245 million, 19 % less. Evaluations from 24 to 24 and the cache from 49,152 numbers per token to 49,152: not at all. Over layers 6–18 with one Euler step it is 170 million, 13 evaluations and 26,624 numbers.

# %% [markdown]
# ## 5.5 · A cache entry for each evaluation ●●○ 12 minutes
#
# Walk from t = 0 to 1 inside a model that has a KV cache. Each velocity evaluation is an attention: it writes the keys
# and values of the tokens it is given into one entry of the cache, and reads what that entry holds of earlier tokens.
# You say which entry: a number, the *slot*. Slots below `first_slot` belong to the head layers; the tail continues with
# the slot you return.
#
# **Predict first.** `bundled/flow-walking-6-18` evaluates its velocity six times. On the 24 sequences of held-out code of
# lesson 05 its KL from the teacher is 0.23, and leaving out the twelve layers costs 1.48. What if its six evaluations
# share one slot? And if the two of each midpoint step do? *My prediction: …*
#
# <details><summary>Hint 1</summary>
#
# A midpoint step: evaluate at x and t, go half a step, evaluate again there, then take the whole step from x with that
# second velocity.
#
# </details>
# <details><summary>Hint 2</summary>
#
# Step i evaluates at t = i / k, and, if midpoint, at t = (i + ½) / k. How many evaluations were there before?
#
# </details>


# %%
def my_walk(velocity, x, first_slot, solver, steps):
    """Walk in equal steps, each evaluation with its slot.

    Args:
        velocity: velocity(x, t, slot) is (B, T, D) at states x (B, T, D) and time t, a number.
        x: (B, T, D), the states at t = 0.
        first_slot: the first slot that is the operator's.
        solver: "euler" or "midpoint".
        steps: k.

    Returns:
        (x, slot): the states at t = 1, (B, T, D), and the first slot that is free for the tail.
    """
    ### BEGIN SOLUTION
    slot = first_slot
    for i in range(steps):
        u = velocity(x, i / steps, slot)
        slot += 1
        if solver == "midpoint":
            u = velocity(x + u / (2 * steps), (i + 0.5) / steps, slot)
            slot += 1
        x = x + u / steps
    return x, slot
    ### END SOLUTION


# %%
check("5.5", my_walk)

# %% [markdown]
# **And the prediction?** One slot for all: 0.61, and the logits after `for i, name in enumerate(names):\n    print(` differ by up to 3.7; where the student writes `name, name)`, it now writes `str(name, name, name, name, name, name, …`. A slot for each step: 0.256 instead of 0.231. The less it costs, the longer it stays unnoticed: measure a cached model against an uncached one, not by its text.

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
