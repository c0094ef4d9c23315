# %% [markdown]
# # Exercise 00 · Start here
#
# One exercise to the lesson [00 · Start here](../../00_start_here.ipynb), and a first look at how exercises work: write
# down what you expect, fill in the function, run the check. A wrong answer costs nothing; the check says what is wrong.

# %%
from lft_edu.exercises import check

# %% [markdown]
# ## 0.1 · Read the abstract ●○○ 10 minutes
#
# The abstract of [the paper](https://arxiv.org/abs/2505.14513) gives these figures for Pythia-410M, which has 24 layers.
# KL is the student's distance from its teacher, as in the lesson.
#
# | student | KL |
# |---|---|
# | 6 layers replaced by one operator, trained by flow matching | 0.407 |
# | 2 layers skipped | 0.529 |
# | 12 layers replaced by one operator, trained by Flow Walking | 0.736 |
# | 3 layers skipped | 0.932 |
#
# Work out what they say, and keep it apart from what they seem to promise. Which of these statements **follow**?
#
# * **A** A student with one operator in place of 6 layers is nearer to its teacher than one that lacks 2.
# * **B** Flow Walking is the better method: it replaces more layers.
# * **C** The student with 12 layers replaced is faster than its teacher.
# * **D** A student of 13 layers, one of them an operator, is nearer to its teacher than one of 21 layers.
# * **E** It is the flow that helps: one ordinary layer, trained as long, would do worse.
# * **F** Replacing 12 layers by an operator is better than skipping the same 12.
# * **G** Large language models have layers to spare.
#
# And which figure, **absent** here, would show whether a *flow* is needed?
#
# * **P** the KL of the teacher from itself
# * **Q** the KL with one ordinary layer, trained on the same text, in place of the 6 or 12
# * **R** the KL of skipping 4 layers
#
# **Predict first.** Beside what it is compared with, which of the two students does better: 6 layers → 1, or 12 → 1? *My
# prediction: …*
#
# <details><summary>Hint</summary>
#
# For each statement, name the two figures that it compares. Are both in the table, and do they differ in one thing only?
#
# </details>


# %%
def my_reading():
    """What the figures say.

    Returns:
        A dict. Pairs are for flow matching first, then Flow Walking.
        "replaced": two fractions of the teacher's layers, those that the operator stands for.
        "fewer": two numbers, by how many layers the student is smaller than its teacher; the operator is one layer.
        "ratio": two numbers, the operator's KL over that of the skipping below it.
        "follows": the letters of the statements that follow, such as "AB".
        "absent": the letter of the figure that is absent.
    """
    ### BEGIN SOLUTION
    return {
        "replaced": (6 / 24, 12 / 24),
        "fewer": (5, 11),
        "ratio": (0.407 / 0.529, 0.736 / 0.932),
        "follows": "AD",
        "absent": "Q",
    }
    ### END SOLUTION


# %%
check("0.1", my_reading)

# %% [markdown]
# **And the prediction?** Both have a little over three quarters of the KL that they are compared with: 0.77 and 0.79. The second is the bolder claim, since eleven layers are gone instead of five, and the bar is only one layer higher. The course measures B, C, E and F on a small teacher in lesson 06, and the whole table on another real model in lesson 08.

# %% [markdown]
# Back to the lessons: [01 · Couplings](../../01_couplings.ipynb)
