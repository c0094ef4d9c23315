# %% [markdown]
# # Exercises 04 · Hidden states as trajectories
#
# Six exercises to the lesson [04 · Hidden states as trajectories](../../04_hidden_states_as_trajectories.ipynb). For
# each: write down what you expect, fill in the function, run the check. States are `(S, T, D)`: S places along the
# model, T tokens, width D. A model of L layers has L + 1 places: before layer 0, between the layers, behind the last.
# The lesson has shown some of this; try it from memory before you look back.

# %%
import torch

import lft_edu as lft
from lft_edu.exercises import check

# %% [markdown]
# ## 4.1 · Catch the states ●●○ 12 minutes
#
# Run a GPT-NeoX model on one text and catch, with hooks, what enters layer 0 and what leaves every layer, before the
# final norm. Leave the model as you found it.
#
# **Predict first.** `model(…, output_hidden_states=True)` returns L + 1 tensors, too. How many of them are the same as
# yours? *My prediction: …*
#
# <details><summary>Hint 1</summary>
#
# The layers are `model.gpt_neox.layers`. A pre-hook sees what enters: `layer.register_forward_pre_hook(hook,
# with_kwargs=True)` calls `hook(module, args, kwargs)`. A hook sees what leaves: `layer.register_forward_hook(hook)`
# calls `hook(module, args, output)`. Both return a handle with a method `.remove()`.
#
# </details>
# <details><summary>Hint 2</summary>
#
# The state is the first positional argument, or `kwargs["hidden_states"]`; a layer's output is the state, or a tuple that
# begins with it. `lft.latents.layer_input(args, kwargs)[0]` and `lft.latents.layer_output(output)` know both.
#
# </details>


# %%
def my_states(model, input_ids):
    """Catch the states of one text.

    Args:
        model: a GPT-NeoX for causal language modelling, with L layers.
        input_ids: (1, T).

    Returns:
        (L + 1, T, D).
    """
    ### BEGIN SOLUTION
    states = []

    def enter(module, args, kwargs):
        states.append(lft.latents.layer_input(args, kwargs)[0][0])

    def leave(module, args, output):
        states.append(lft.latents.layer_output(output)[0])

    layers = model.gpt_neox.layers
    hooks = [layers[0].register_forward_pre_hook(enter, with_kwargs=True)]
    hooks += [layer.register_forward_hook(leave) for layer in layers]
    try:
        model(input_ids=input_ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(states)
    ### END SOLUTION


# %%
check("4.1", my_states)

# %% [markdown]
# **And the prediction?** All but one: L of L + 1. The last one has gone through the final norm, so that it does not lie in the space of the others.

# %% [markdown]
# ## 4.2 · One frozen picture ●●○ 12 minutes
#
# PCA by hand: centre the fitted states, take the two right singular vectors with the largest singular values, and place
# *other* states along them. Mean and axes come from the fitted states alone. The sign of an axis is free.
#
# **Predict first.** If every depth had axes of its own, what would the film of a text from depth 0 to 24 no longer show?
# *My prediction: …*
#
# <details><summary>Hint</summary>
#
# `torch.linalg.svd(states - mean, full_matrices=False)` returns U, S, Vh; the rows of Vh are the axes, largest first.
#
# </details>


# %%
def my_picture(fitted, other):
    """Fit two principal axes on some states and place others along them.

    Args:
        fitted: (N, D), states that choose mean and axes.
        other: (M, D), states to place.

    Returns:
        (M, 2), points.
    """
    ### BEGIN SOLUTION
    mean = fitted.mean(0)
    axes = torch.linalg.svd(fitted - mean, full_matrices=False).Vh[:2]
    return (other - mean) @ axes.T
    ### END SOLUTION


# %%
check("4.2", my_picture)

# %% [markdown]
# **And the prediction?** Movement. Every depth's cloud would be centred and turned to its own axes, so what looks like motion would be the camera's, and motion that all states share would be gone.

# %% [markdown]
# ## 4.3 · Find the sink ●○○ 8 minutes
#
# In most transformers the state of some token is far longer than the others: attention that has nothing to look for
# goes there. Find the token and the depth at which the norm is largest *relative to the median norm of the tokens at that
# depth*.
#
# **Predict first.** The bundled teacher reads `for name in names:\n    print(name, len(name))\n`. Which token, at which of
# 25 depths, and how many times the median? *My prediction: …*
#
# <details><summary>Hint</summary>
#
# `norms.median(dim=1, keepdim=True).values` has one number for each depth. `argmax()` counts through the whole table, row
# by row: `divmod(i, T)`.
#
# </details>


# %%
def my_sink(states):
    """Where a norm stands out most.

    Args:
        states: (S, T, D).

    Returns:
        (token, depth), two whole numbers.
    """
    ### BEGIN SOLUTION
    norms = states.norm(dim=-1)
    ratios = norms / norms.median(dim=1, keepdim=True).values
    depth, token = divmod(int(ratios.argmax()), norms.shape[1])
    return token, depth
    ### END SOLUTION


# %%
check("4.3", my_sink)

# %% [markdown]
# **And the prediction?** Token 0, `for`, at depth 14: 3.5 times the median. At depth 0 it is like the others; it grows from depth 10 to 13 and is back to 1.1 times at depth 22. See for yourself: `my_sink(lft.capture(*lft.load_teacher(), text).states)`.

# %% [markdown]
# ## 4.4 · The logit lens ●●○ 8 minutes
#
# What would the model say if it ended here? Read a state of *any* depth with the model's last norm and head:
# $\mathrm{softmax}(W\,\mathrm{norm}(h))$.
#
# **Predict first.** For half of the tokens of held-out code, the lens names the model's final favourite from some depth
# on and never changes its mind. Is that depth nearer to 6, 12 or 20, of 24? *My prediction: …*
#
# <details><summary>Hint</summary>
#
# One line. Along which dimension do probabilities sum to 1?
#
# </details>


# %%
def my_lens(state, norm, head):
    """Probabilities of the next token, read off hidden states.

    Args:
        state: (T, D), at some depth, before the final norm.
        norm: the model's final norm, a function of (T, D).
        head: from (T, D) to logits (T, V).

    Returns:
        (T, V), rows that sum to 1.
    """
    ### BEGIN SOLUTION
    return head(norm(state)).softmax(-1)
    ### END SOLUTION


# %%
check("4.4", my_lens)

# %% [markdown]
# **And the prediction?** 20, measured on twenty pieces of held-out code. For a quarter of the tokens it is 15 or less, for another quarter 23 or more. Most of the way, the states move without a word of the answer to be read off them.

# %% [markdown]
# ## 4.5 · How a path bends ●●○ 10 minutes
#
# A state takes one step a layer. At each place between two steps the path turns by an angle: 0 is straight on, π is back
# again. Measure it.
#
# **Predict first.** From one layer to the next, by how much do the bundled teacher's states turn on average: 10°, 45° or
# 75°? *My prediction: …*
#
# <details><summary>Hint 1</summary>
#
# Steps are differences: `path.diff(dim=0)`. The cosine of the angle between two is their product over their lengths.
#
# </details>
# <details><summary>Hint 2</summary>
#
# Rounding can make a cosine 1.0000001: `.clamp(-1, 1)` before `.arccos()`.
#
# </details>


# %%
def my_turns(path):
    """By how much a path turns at each inner state.

    Args:
        path: (S, D), one token's states.

    Returns:
        (S − 2,) angles in radians, from 0 to π.
    """
    ### BEGIN SOLUTION
    steps = torch.nn.functional.normalize(path.diff(dim=0), dim=-1)
    return (steps[1:] * steps[:-1]).sum(-1).clamp(-1, 1).arccos()
    ### END SOLUTION


# %%
check("4.5", my_turns)

# %% [markdown]
# **And the prediction?** 76° on held-out code, some 60° to 90° at all places but the last. Directions that know nothing of each other would be at 90°, so that is little smoother than chance. A flow need not follow the bends; it has to arrive.

# %% [markdown]
# ## 4.6 · Where the flow fails ●●● 20 minutes
#
# The student `bundled/flow-walking-6-18` walks through layers 6 to 17 in one motion. On the 96 sequences of held-out code
# of lesson 06's table its mean KL(teacher ‖ student) is 0.24 nats per token. Find a text of 10 to 64 tokens on which it is at least 0.5, though the
# teacher knows its way: its own loss, the mean of −log p over the tokens that follow, is at most 1.3 (on held-out code:
# 2.7). Then say what kind of text it is.
#
# **Predict first.** Which of these is the hardest for the student: a list of zeros, a licence, counting up, a line of
# documentation that the teacher knows by heart? *My prediction: …*
#
# <details><summary>Hint 1</summary>
#
# Run the check often: it says both numbers, and after which tokens the student differs most. Keep what is there, and give
# it more of the same. What must a model *recall*, because nothing in the text says it?
#
# </details>
# <details><summary>Hint 2</summary>
#
# Or let the machine search. `lft.load_corpus("python-packages", split="validation", tokenizer=tokenizer, block_size=32,
# max_tokens=48_000)` gives 1500 windows of held-out code. Evaluate teacher and student on each, fifty at a time: on the
# machine this was written on that took six seconds, and 8 windows pass.
#
# </details>
# <details><summary>Hint 3</summary>
#
# How do documents of plotly describe what a colour may be?
#
# </details>


# %%
def my_text():
    """A text of 10 to 64 tokens that the teacher reads well and the student does not."""
    ### BEGIN SOLUTION
    # A line that stands in more than 500 files of the corpus: the teacher knows it by heart. After the second "hsl(0" it
    # gives "deg" 77 %; the student repeats the comma of the first one and gives "deg" 0.1 %. With other names or numbers
    # the teacher is less sure, and the student follows better. But not all that is known by heart is hard: the words of
    # the Apache licence, in five times as many files, are not. Perhaps the operator has met them often enough; I have
    # not tested that.
    return "- hsl (e.g. 'hsl(0, 100%, 50%)', 'hsl(0deg 100% 50%)')"
    ### END SOLUTION


# %%
check("4.6", my_text)

# %% [markdown]
# **And the prediction?** The documentation, KL 0.67. The list of zeros has 0.05, counting from 1 to 19 0.10, the licence 0.12. Put `hsl(7, 31%, 84%)` and `hsl(7deg 31% 84%)` into the same line: the KL falls to 0.37, the teacher's loss rises from 0.95 to 2.5.

# %% [markdown]
# Back to the lessons: [05 · Building an LFT](../../05_building_an_lft.ipynb), where a flow takes over a stretch of such a path.
