# %% [markdown]
# # Exercises 09 · Teacher versus flow
#
# One exercise with a check and an open one to the lesson
# [09 · Teacher versus flow](../../09_teacher_versus_flow.ipynb).

# %%
from lft_edu.exercises import check

# %% [markdown]
# ## 9.1 · A clean test set ●●○ 20 minutes
#
# The lesson's texts grow with their depth: the deeper ones have more lines, more tokens and other words. So what fails there may be
# depth, or length, or a word. Build at least 8 pairs of texts that differ in *nesting only*. Both texts of a pair begin a
# function, use the same lines in another arrangement, end with the same last line and have the same number of tokens. In the
# shallow one the last line stands at least two blocks less deep.
#
# **Predict first.** With length and words held fixed, will Flow Walking still do worse on the deep texts? *My prediction: …*
#
# <details><summary>Hint 1</summary>
#
# Lines such as `x = 0` may stand in a block, or before it.
#
# </details>
# <details><summary>Hint 2</summary>
#
# Shallow: a function with one block that holds `x = 0`, another that holds `x = 0`, and then the last line. Deep: both `x = 0` first,
# then the three heads, each inside the one before.
#
# </details>


# %%
def my_pairs():
    """Pairs of texts that differ in nesting only.

    Returns:
        A list of at least 8 pairs (shallow, deep) of Python code that ends with a colon.
    """
    ### BEGIN SOLUTION
    heads = ("if x:", "for name in names:", "while True:", "with open(path) as file:")
    pairs = []
    for i, first in enumerate(heads):
        for name in ("load", "check"):
            second, last = heads[(i + 1) % 4], heads[(i + 2) % 4]
            start = f"def {name}(self, value):"
            shallow = [start, f"    {first}", "        x = 0", f"    {second}", "        x = 0", f"    {last}"]
            deep = [start, "    x = 0", "    x = 0", f"    {first}", f"        {second}", f"            {last}"]
            pairs.append(("\n".join(shallow), "\n".join(deep)))
    return pairs
    ### END SOLUTION


# %%
check("9.1", my_pairs)

# %% [markdown]
# **And the prediction?** Yes. With the solution's texts it agrees with its teacher after all eight shallow ones and after none of the deep ones. So neither length nor words explain the cliff. What is left is the depth, and what comes with it: the next line break has sixteen spaces instead of eight. Exercise 9.2 goes on from there.

# %% [markdown]
# ## 9.2 · Refute me ●●● 40 minutes, open
#
# Three explanations of the cliff at three blocks. For one of them, design the control that could kill it, say beforehand which result
# would, and run it.
#
# * *Length.* Deep texts are longer, and errors add up over tokens.
# * *The newline token.* A line break with sixteen spaces is a rarer token than one with eight, and rare tokens are harder.
# * *Copying.* The student cannot look back at the width of the line before.
#
# Grade yourself, one point each:
# 1. The control changes what the explanation names, and nothing else (9.1 checks such a set of texts).
# 2. You wrote down, before the run, which result would refute the explanation.
# 3. Teacher and at least two students were measured on the same texts, 20 or more.
# 4. The result comes with an interval, or with all single values.
# 5. Your last sentence says what remains possible.

# %% [markdown]
# Back to the lessons: [10 · Beyond the paper](../../10_beyond_the_paper.ipynb)
