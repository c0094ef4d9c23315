# %% [markdown]
# # Exercises 08 · Compressing a real language model
#
# Four exercises to the lesson [08 · Compressing a real language model](../../08_compressing_a_real_language_model.ipynb): what a run costs,
# counted before it starts, and which of many was the cheapest that served. For each: write down what you expect, fill
# in the function, run the check. Spans `(m, n)` are half open: layers m … n − 1 are replaced.

# %%
from lft_edu.exercises import check
from lft_edu.exercises.lesson08 import finished_runs

# %% [markdown]
# ## 8.1 · Operations, by hand ●○○ 10 minutes
#
# Multiply-adds per token of *training* an operator on Pythia-410M: 24 layers, width D = 1024, 12 D² numbers in the
# matrices of a layer, each multiplied once a token. Count matrices of layers only (attention proper, the time modulation
# and norms are a few per cent). The walk of Flow Walking takes midpoint steps. Gradients cost twice what the forward
# pass costs.
#
# **Predict first.** How many times as dear is a token of Flow Walking (layers 6–18, k = 3) as one of flow matching
# (layers 6–12)? *My prediction: …*
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
check("8.1", my_operations)

# %% [markdown]
# **And the prediction?** (18 + 18) ÷ (12 + 3) = 2.4 times. Half of it is the teacher.

# %% [markdown]
# ## 8.2 · Hours, before you start ●○○ 6 minutes
#
# From operations to time: tokens, the device's peak in FLOP/s (a multiply-add is two FLOP), and the fraction of the peak
# that real code reaches.
#
# **Predict first.** The lesson counted 0.7 hours for flow matching on an H200. How long on 40 % of an A100, whose maker
# promises 312 TFLOP/s? And how large a disk would keep x0 and x1 of every token for Pythia-1.4B, twice as wide as
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
check("8.2", my_hours)

# %% [markdown]
# **And the prediction?** 2.2 hours. The disk: 2 · 2048 · 2 bytes · 2.6 · 10⁹ = 21 TB.

# %% [markdown]
# ## 8.3 · Will it fit? ●●○ 10 minutes
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
check("8.3", my_memory)

# %% [markdown]
# **And the prediction?** The teacher: 0.81 GB; the student's kept layers 0.51 GB, the operator 0.30 GB. What grows with
# the batch are the activations: some 0.1 MB a token and evaluation. (And at *evaluation* the logits: 50,304 numbers a
# token, six times over.)

# %% [markdown]
# ## 8.4 · The cheapest that serves ●●○ 12 minutes
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
check("8.4", my_cheapest)

# %% [markdown]
# **And the prediction?** Flow Walking by *one* midpoint step, 3.2 million tokens: 0.249 nats, where the best of all
# reaches 0.239. The paper's three steps get there too, with as many tokens, for 1.5 times the operations. With a
# tolerance of 20 % half the tokens do. Flow matching and anything with a single evaluation never come within 10 %,
# whatever they are given.

# %% [markdown]
# Back to the lessons: [09 · Teacher versus flow](../../09_teacher_versus_flow.ipynb).
