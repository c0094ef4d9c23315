# %% [markdown]
# # Exercises 06 · Compressing a transformer
#
# Three exercises with checks and two open ones to the lesson
# [06 · Compressing a transformer](../../06_compressing_a_transformer.ipynb). For each: write down what you expect, fill in the
# function, run the check.

# %%
import math

import torch

import lft_edu as lft
from lft_edu.exercises import check

# %% [markdown]
# ## 6.1 · KL by hand ●○○ 8 minutes
#
# How far is a student's next-token distribution $q$ from its teacher's, $p$? The *Kullback–Leibler divergence*, in nats:
#
# $$\mathrm{KL}(p \,\|\, q) = \sum_i p_i \,(\log p_i - \log q_i)$$
#
# Given are logits, for each sequence and each token. Return one number per token.
#
# **Predict first.** The teacher says ½, ½ and the student ¼, ¾. Is KL(teacher ‖ student) larger or smaller than KL(student ‖
# teacher), or are they the same? *My prediction: …*
#
# <details><summary>Hint</summary>
#
# `x.float().log_softmax(-1)` gives log-probabilities in float32; `.exp()` of them are probabilities.
#
# </details>


# %%
def my_kl(teacher_logits, student_logits):
    """KL(teacher ‖ student) of each token.

    Args:
        teacher_logits, student_logits: (B, T, V), of any floating type.

    Returns:
        (B, T), in nats.
    """
    ### BEGIN SOLUTION
    log_p, log_q = (x.float().log_softmax(-1) for x in (teacher_logits, student_logits))
    return (log_p.exp() * (log_p - log_q)).sum(-1)
    ### END SOLUTION


# %%
check("6.1", my_kl)

# %% [markdown]
# **And the prediction?** Larger, a little: 0.144 against 0.131. A divergence is not a distance: it depends on who does the weighing. KL(teacher ‖ student) counts where the *teacher* puts its probability, so a student pays for what it does not foresee.

# %% [markdown]
# ## 6.2 · How many layers is it worth? ●●○ 10 minutes
#
# A KL of 0.27 nats: is that good? The lesson compares with layers that are simply skipped. `curve[j]` is the KL of skipping the
# best $j$ layers. Find $j^*$, the number of skipped layers that cost as much as the student does. Between two numbers of layers
# the curve is a straight line; where it falls, take its running maximum (skipping more must not count as better); above its
# last point nothing was measured: infinity.
#
# **Predict first.** Skipping 1, 2, 3 layers costs 0.1, 0.4 and 1.0 nats. What is $j^*$ of a student with KL = 0.25? *My
# prediction: …*
#
# <details><summary>Hint</summary>
#
# Go through the points in order. As soon as one costs at least `kl`, you know the piece of the curve: it began at the point
# before. Which fraction of the piece is used up?
#
# </details>


# %%
def my_skipped_layers(kl, curve):
    """The number of skipped layers that cost as much.

    Args:
        kl: a number, nats per token.
        curve: a dictionary from number of layers, 0 … J, to KL; curve[0] is 0.

    Returns:
        A number from 0 to J, or infinity.
    """
    ### BEGIN SOLUTION
    before_j, before = 0, 0.0
    for j in sorted(curve):
        cost = max(curve[j], before)
        if kl <= cost:
            return before_j + (j - before_j) * (kl - before) / max(cost - before, 1e-12)
        before_j, before = j, cost
    return math.inf
    ### END SOLUTION


# %%
check("6.2", my_skipped_layers)

# %% [markdown]
# **And the prediction?** 1.5: halfway between the costs of one and two layers. A student in the place of twelve layers with $j^*$ = 1.5 has kept 10.5 of them, if you count what they do for this text.

# %% [markdown]
# ## 6.3 · Which of the two is better? ●●○ 15 minutes
#
# Two students, measured on the *same* texts: `kl_a` and `kl_b` hold the KL of each text. Give the 95 % interval of the difference of
# their means, a minus b, by the *paired bootstrap*: draw texts with replacement, as many as there are; take both students' values
# *of the texts drawn*; keep the difference of the means; do this 2,000 times; take the quantiles 0.025 and 0.975.
#
# **Predict first.** The students' own 95 % intervals overlap: 0.47 to 0.53 and 0.49 to 0.55. Can the difference still be certain?
# *My prediction: …*
#
# <details><summary>Hint</summary>
#
# `rows = torch.randint(len(kl_a), (2000, len(kl_a)))` draws all samples at once, and `kl_a[rows].mean(1)` is the mean of each.
#
# </details>


# %%
def my_difference(kl_a, kl_b):
    """The 95 % interval of mean(kl_a) − mean(kl_b), by paired bootstrap.

    Args:
        kl_a, kl_b: (N,), KL of two students on the same N texts.

    Returns:
        (low, high).
    """
    ### BEGIN SOLUTION
    rows = torch.randint(len(kl_a), (2000, len(kl_a)))
    differences = kl_a[rows].mean(1) - kl_b[rows].mean(1)
    tails = torch.tensor([0.025, 0.975], dtype=differences.dtype)
    return tuple(differences.quantile(tails).tolist())
    ### END SOLUTION


# %%
check("6.3", my_difference)

# %% [markdown]
# **And the prediction?** Yes. Texts differ much more than students do: some are hard for both. That spread is in both intervals, and cancels in the difference. The reverse happens as well: with few texts, two students far apart may not be told apart. The next cell shows it with two students of the course.

# %%
teacher, tokenizer = lft.load_teacher("bundled")
text = lft.load_corpus("python-stdlib", tokenizer, "test", max_tokens=64 * 128)
found = {
    name: lft.evaluate(lft.load_student(f"bundled/{name}-6-18", teacher), teacher, text)
    for name in ("regression", "flow-walking-euler")
}
for name, one in found.items():
    print(f"{name}: KL {one.kl:.3f}, interval {one.kl_interval[0]:.3f} to {one.kl_interval[1]:.3f}")
a, b = (one.sequence_kl for one in found.values())
low, high = lft.support.statistics.interval(lft.support.statistics.bootstrap_means(a - b))
print(f"difference, paired: {low:.4f} to {high:.4f}")

# %% [markdown]
# ## 6.4 · The control ●●● 45 minutes, open
#
# Flow Walking with three midpoint steps evaluates its layer six times. How much of what it gains is due to the flow, and how much to
# six evaluations? Design the control, run it on layers 6–18 with a few minutes of training, and say what you found.
# `lft.Regression(repeats=6)` is one layer without time, applied six times and trained end to end.
#
# Grade yourself (or let a neighbor do it), one point each:
# 1. Equal evaluations, equal tokens of training, the same text for both, the same optimizer.
# 2. The rate of learning was tried for both, not for your favorite only.
# 3. At least two seeds, or a sentence on why one is not enough.
# 4. A paired interval of the difference (6.3).
# 5. The conclusion says what was *not* shown: other spans, other teachers, longer training.
# 6. You wrote down what you expected before you ran it.
#
# [Lesson 10](../../10_beyond_the_paper.ipynb) has our answer.

# %% [markdown]
# ## 6.5 · Why is flow matching worse at one step? ●●● 40 minutes, open
#
# At t = 0 flow matching has the same target as regression, and yet it is worse. Write down an explanation, and what it *forbids*: a
# result that would refute it. Then run the experiment. `lft.fit(…, objective="flow_matching", beta=b)` draws t from Beta(1, b): b = 1
# is uniform, large b stays near t = 0. `lft.Flow(layers=2)` has two layers, `lft.Flow(conditional=True)` is given x0 besides x_t.
#
# Grade yourself, one point each:
# 1. The explanation forbids something that the experiment could have shown.
# 2. One thing was changed at a time.
# 3. The comparison is with regression at equal tokens (and equal layers, where you changed those).
# 4. The experiment was run, with a number and its interval.
# 5. If the result went against you, you say so, and what you would ask next.
#
# [Lesson 10](../../10_beyond_the_paper.ipynb) tests five explanations; four of them fail.

# %% [markdown]
# Back to the lessons: [07 · Where to cut](../../07_where_to_cut.ipynb)
