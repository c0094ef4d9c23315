# %% [markdown]
# # Exercises 08 · Compressing a real language model
#
# Six exercises to the lesson [08 · Compressing a real language model](../../08_compressing_a_real_language_model.ipynb).
# The first two are about the model: which layer writes the attention sink, and how many skipped layers a KL is worth.
# The other four are about cost: what a run takes, counted before it starts, and which of many runs was the cheapest that
# served. For each: write down what you expect, fill in the function, run the check. Spans `(m, n)` are half open: layers
# m … n − 1 are replaced.

# %%
import math

from lft_edu.exercises import check
from lft_edu.exercises.lesson08_costs import finished_runs

# %% [markdown]
# ## 8.1 · Which layer writes the sink? ●○○ 8 minutes
#
# An **attention sink** is a token to which later layers attend when there is nothing to read, nearly always the first
# one. Its state is *massive*: its root mean square over the D features is many times that of other tokens. An operator
# that replaces the layer which writes it has to write it, too.
#
# `states[0]` are the embeddings, `states[i + 1]` is the output of layer i. With several sequences, take medians: the
# median of their first positions, and the median of all other positions of all sequences. The layer that writes the sink
# is the first after whose output the one exceeds `factor` times the other.
#
# **Predict first.** SmolLM2-135M has 30 layers of width 576. Is its sink built up by many of them or written by one? Is
# that an early, a middle or a late one? *My prediction: …*
#
# <details><summary>Hint</summary>
#
# `states.square().mean(-1).sqrt()` has shape (L+1, B, T). `(…).nonzero()` lists the places where a condition holds, and
# is empty where it never does.
#
# </details>


# %%
def my_sink_writer(states, factor=10):
    """The layer that writes the attention sink.

    Args:
        states: (L+1, B, T, D), the embeddings and the output of each of L layers, for B sequences of T tokens.
        factor: how many times the median of the other positions the first position must exceed.

    Returns:
        The number of the layer, 0 to L − 1, an int; None if no layer writes a sink.
    """
    ### BEGIN SOLUTION
    rms = states.square().mean(-1).sqrt()
    first = rms[:, :, 0].median(1).values
    others = rms[:, :, 1:].flatten(1).median(1).values
    massive = (first > factor * others).nonzero().flatten()
    return int(massive[0]) - 1 if len(massive) else None
    ### END SOLUTION


# %%
check("8.1", my_sink_writer)

# %% [markdown]
# **And the prediction?** By one, layer 11: on 16 sequences of package documentation, the median over first positions goes from 6 to 1,000, 168 times that of the other tokens. The layers after it leave it alone until layer 28 shrinks it to 399. But the factor is a choice. Layer 2 lifts the first position, too, to 33, *about* ten times the others, and layers 8 and 9 take it back: with factor 10 the answer may be 2 or 11, depending on the text; from 15 to 150 it is 11. The bundled teacher writes no sink; layer 12 brings its first position to three times the others. See for yourself, where the model has been fetched:
#
# ```python
# import torch
#
# import lft_edu as lft
# from lft_edu.latents import hidden_states_at_all_layers
#
# teacher, tokenizer = lft.load_teacher("smollm2-135m")
# ids = tokenizer("The river runs to the sea, and the sea does not fill.", return_tensors="pt")["input_ids"]
# with torch.no_grad():
#     states, _, _ = hidden_states_at_all_layers(teacher, ids.to(teacher.device))
# my_sink_writer(torch.stack(states).float(), factor=30)
# ```

# %% [markdown]
# ## 8.2 · Recovery, and layers ●●○ 10 minutes
#
# Two ways to say what an operator's KL from the teacher is worth. **Recovery**, 1 − KL ÷ KL of skipping the same layers,
# compares with leaving its own span out. **Equivalent skipped layers**, j\*, asks how many layers you could have skipped
# for the same KL. The paper's two claims on Pythia-410M read j\* < 2 for one layer in the place of six, and j\* < 3 for one
# in the place of twelve.
#
# The curve j → KL of skipping the best j contiguous layers is measured at some whole numbers j. Skipping none costs 0.
# Between two points the curve is a line. Where it falls, its running maximum takes its place. Above it, j\* is infinite.
#
# **Predict first.** On the bundled teacher one trained layer (regression) recovers 79 % over layers 6–12, and another
# 80 % over layers 6–18. Which j\* has each? *My prediction: …*
#
# <details><summary>Hint</summary>
#
# Walk along the points in the order of j, and keep the last point: `before_j, before = 0, 0.0`. In the first segment that
# reaches kl, what share of it lies below kl?
#
# </details>


# %%
def my_equivalent_layers(kl, curve):
    """How many skipped layers cost as much as an operator.

    Args:
        kl: of the operator, nats per token, at least 0.
        curve: a dictionary, j → KL of skipping the best j layers; its keys may have gaps, and come in any order.

    Returns:
        j*, a number from 0 to the largest j; math.inf if kl is above the curve.
    """
    ### BEGIN SOLUTION
    before_j, before = 0, 0.0
    for j in sorted(curve):
        cost = max(before, curve[j])  # the running maximum
        if before < cost and kl <= cost:
            return before_j + (j - before_j) * (kl - before) / (cost - before)
        before_j, before = j, cost
    return math.inf
    ### END SOLUTION


# %%
check("8.2", my_equivalent_layers)

# %% [markdown]
# **And the prediction?** j\* = 2.3 over layers 6–12 and 5.1 over 6–18. Recovery compares each with its own span, and twelve layers cost four times what six cost: 1.52 against 0.38 nats. The same share of a larger loss is a larger loss. The first skipped layers are cheap: one costs 0.02, two cost 0.06, three 0.12. So even 87 % over 6–18, the best of the bundled students (Flow Walking, fine-tuned on logits), is still 3.8 layers; the paper's claim, fewer than three, would need 92 % here.

# %% [markdown]
# ## 8.3 · Operations, by hand ●○○ 10 minutes
#
# Multiply-adds per token of *training* an operator on Pythia-410M: 24 layers, width D = 1024, 12 D² numbers in the
# matrices of a layer, each multiplied once per token. Count matrices of layers only (attention proper, the time modulation
# and norms are a few per cent). The walk of Flow Walking takes midpoint steps. Gradients cost twice what the forward
# pass costs.
#
# **Predict first.** How many times as expensive is a token of Flow Walking (layers 6–18, k = 3) as one of flow
# matching (layers 6–12)? *My prediction: …*
#
# <details><summary>Hint</summary>
#
# Which layers of the teacher must run to know x0 and x1? Which of all these layers get a gradient?
#
# </details>


# %%
def my_operations(objective, span, k):
    """Multiply-adds per token of a training step.

    Args:
        objective: "flow_matching" or "flow_walking".
        span: (m, n).
        k: midpoint steps of the walk.

    Returns:
        A number.
    """
    ### BEGIN SOLUTION
    layer = 12 * 1024**2
    _, n = span
    evaluations = 2 * k if objective == "flow_walking" else 1
    return layer * (n + 3 * evaluations)
    ### END SOLUTION


# %%
check("8.3", my_operations)

# %% [markdown]
# **And the prediction?** (18 + 18) ÷ (12 + 3) = 2.4 times. Half of it is the teacher.

# %% [markdown]
# ## 8.4 · Hours, before you start ●○○ 6 minutes
#
# From operations to time: tokens, the device's peak in FLOP/s (a multiply-add is two FLOP), and the fraction of the peak
# that real code reaches.
#
# **Predict first.** How long does flow matching over layers 6–12 (8.3) take for a run of 2.6 billion tokens, on 40 % of an
# A100, rated at 312 TFLOP/s? And how large a disk would keep x0 and x1 of every token for Pythia-1.4B, twice as wide as
# Pythia-410M: 2048 numbers of two bytes each? *My prediction: …*
#
# <details><summary>Hint</summary>
#
# Work over speed is seconds.
#
# </details>


# %%
def my_hours(operations, tokens, peak, fraction):
    """Hours that training takes.

    Args:
        operations: multiply-adds per token.
        tokens: how many.
        peak: FLOP/s by the maker.
        fraction: of the peak that is reached, from 0 to 1.

    Returns:
        A number.
    """
    ### BEGIN SOLUTION
    seconds = 2 * operations * tokens / (peak * fraction)
    return seconds / 3600
    ### END SOLUTION


# %%
check("8.4", my_hours)

# %% [markdown]
# **And the prediction?** 2.2 hours. The disk: 2 · 2048 · 2 bytes · 2.6 · 10⁹ = 21 TB.

# %% [markdown]
# ## 8.5 · Will it fit? ●●○ 10 minutes
#
# Bytes at the peak of a training step. Teacher and student are both there; the student's kept layers are copies of the
# teacher's, and frozen. The operator is trained in float32 by Adam. What the evaluations keep for the gradient (the
# activations) is given.
#
# **Predict first.** Pythia-410M in bfloat16, twelve layers replaced by one operator of 19 million weights: which part is
# the largest? *My prediction: …*
#
# <details><summary>Hint</summary>
#
# Adam keeps two moments of every gradient. How many float32 numbers are there for each weight that is trained?
#
# </details>


# %%
def my_memory(teacher, kept, operator, bytes_per_weight, activations):
    """Bytes at the peak of a training step.

    Args:
        teacher: its number of weights.
        kept: weights that the student keeps of it (without the operator).
        operator: weights of the operator.
        bytes_per_weight: of teacher and student: 4 for float32, 2 for bfloat16.
        activations: bytes.

    Returns:
        A number.
    """
    ### BEGIN SOLUTION
    frozen = bytes_per_weight * (teacher + kept)
    trained = 4 * 4 * operator  # weight, gradient and two moments, float32
    return frozen + trained + activations
    ### END SOLUTION


# %%
check("8.5", my_memory)

# %% [markdown]
# **And the prediction?** The teacher: 0.81 GB; the student's kept layers 0.51 GB, the operator 0.30 GB. What grows with
# the batch are the activations: some 0.1 MB a token and evaluation. (And at *evaluation* the logits: 50,304 numbers a
# token, six times over.)

# %% [markdown]
# ## 8.6 · The cheapest that serves ●●○ 12 minutes
#
# Thirty kinds of finished runs on the bundled teacher, layers 6–18: five operators, six budgets. Each row says how many
# tokens such a run saw, how many multiply-adds each of them took (teacher included), and the KL it ended with (a mean
# over seeds). Of those within 10 % of the best KL, which took the fewest operations in all?

# %%
rows = finished_runs()
for row in rows[::5]:
    print(row)

# %% [markdown]
# **Predict first.** Which operator, and about how many tokens? *My prediction: …*
#
# <details><summary>Hint</summary>
#
# First the bar, then those under it, then `min(…, key=…)`.
#
# </details>


# %%
def my_cheapest(rows, tolerance):
    """The run that took the fewest operations among those whose KL is within a tolerance of the best.

    Args:
        rows: dictionaries with "kl", "tokens" and "operations" (multiply-adds a token).
        tolerance: 0.10 allows a KL of 1.1 times the least.

    Returns:
        One of the rows.
    """
    ### BEGIN SOLUTION
    bar = (1 + tolerance) * min(row["kl"] for row in rows)
    serve = [row for row in rows if row["kl"] <= bar]
    return min(serve, key=lambda row: row["tokens"] * row["operations"])
    ### END SOLUTION


# %%
check("8.6", my_cheapest)

# %% [markdown]
# **And the prediction?** Flow Walking by *one* midpoint step, 3.2 million tokens: 0.249 nats, where the best of all
# reaches 0.239. Three midpoint steps get there, too, with as many tokens, for 1.5 times the operations. With a
# tolerance of 20 % half the tokens do. Flow matching and anything with a single evaluation never come within 10 %,
# whatever they are given.

# %% [markdown]
# Back to the lessons: [09 · Teacher versus flow](../../09_teacher_versus_flow.ipynb).
