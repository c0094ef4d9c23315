# %% [markdown]
# # Exercises 04 · Hidden states as trajectories
#
# Six exercises to the lesson [04 · Hidden states as trajectories](../../04_hidden_states_as_trajectories.ipynb). For
# each: write down what you expect, fill in the function, run the check. States are `(S, T, D)`: S places along the
# model, T tokens, width D. A model of L layers has L + 1 places: before layer 0, between the layers, behind the last.

# %%
import torch

from lft_edu.exercises import check

# %% [markdown]
# ## 4.1 · Who adds what ●●○ 15 minutes
#
# A layer adds to the residual stream twice: $h_{l+1} = h_l + \mathrm{Attn}_l + \mathrm{MLP}_l$. Catch both, for every
# layer of a GPT-NeoX model that reads one text. Leave the model as you found it.
#
# **Predict first.** In the bundled teacher, whose update is longer on average, attention's or the MLP's: in layer 0? In
# the first half of the others? In the last layers? *My prediction: …*
#
# <details><summary>Hint 1</summary>
#
# The layers are `model.gpt_neox.layers`; `print` one to see its parts. `part.register_forward_hook(hook)` calls
# `hook(module, args, output)` and returns a handle with a method `.remove()`.
#
# </details>
# <details><summary>Hint 2</summary>
#
# The output of attention is a tuple that begins with what it adds; that of the MLP is a tensor. Check yourself: the
# embeddings plus all updates must be what the last layer returns.
#
# </details>


# %%
def my_updates(model, input_ids):
    """Catch what attention and MLP of every layer add to the states of one text.

    Args:
        model: a GPT-NeoX for causal language modeling, with L layers.
        input_ids: (1, T).

    Returns:
        (L, 2, T, D): for each layer what attention adds, then what the MLP adds.
    """
    ### BEGIN SOLUTION
    updates, hooks = [], []

    def note(module, args, output):
        updates.append((output[0] if isinstance(output, tuple) else output)[0])

    for layer in model.gpt_neox.layers:
        hooks += [part.register_forward_hook(note) for part in (layer.attention, layer.mlp)]
    try:
        model(input_ids=input_ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(updates).unflatten(0, (-1, 2))
    ### END SOLUTION


# %%
check("4.1", my_updates)

# %% [markdown]
# **And the prediction?** On 24 sequences of held-out code, without position 0: in layer 0 the MLP's is three times as long; in layers 1 to 14 attention's is longer in all but layer 4; from layer 15 on the MLP's is, in every layer. A flow has to stand in for both at once.

# %% [markdown]
# ## 4.2 · What the frozen picture hides ●●○ 12 minutes
#
# The lesson prints what fraction of the squared distance between teacher and student a picture hides. Compute it: fit two
# principal axes to the first argument, freeze them, and see how much of the difference of the other two lies outside.
#
# **Predict first.** If every depth had axes of its own, what would the film of a text from depth 0 to 24 no longer show?
# *My prediction: …*
#
# <details><summary>Hint 1</summary>
#
# `torch.linalg.svd(states - mean, full_matrices=False)` returns U, S, Vh; the rows of Vh are the axes, largest first.
# Which mean? And does a mean matter for a *difference* of two states?
#
# </details>
# <details><summary>Hint 2</summary>
#
# Shown and hidden squares add up to the whole. Sum the squares of all states first, then divide.
#
# </details>


# %%
def my_hidden(fitted, teacher, student):
    """How much of the distance of two sets of states a picture hides.

    Args:
        fitted: (N, D), states that choose the two axes.
        teacher, student: (M, D), states that are drawn with these axes.

    Returns:
        The fraction, from 0 to 1, of the sum of squared distances of teacher and student that the picture lacks.
    """
    ### BEGIN SOLUTION
    axes = torch.linalg.svd(fitted - fitted.mean(0), full_matrices=False).Vh[:2]
    apart = student - teacher  # the mean that a projection subtracts cancels
    return 1 - (apart @ axes.T).square().sum() / apart.square().sum()
    ### END SOLUTION


# %%
check("4.2", my_hidden)

# %% [markdown]
# **And the prediction?** Movement. Every depth's cloud would be centered and turned to its own axes, so what looks like motion would be the camera's, and motion that all states share would be gone. Axes that were fitted to the difference itself would be no better: they hide the least of it, and look like proof that the picture hides little.

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
# ## 4.4 · When can it be read? ●●○ 12 minutes
#
# Read all depths with the logit lens at once, from what transformers returns as `hidden_states`: which probability does
# each depth give to the token that the model chooses *in the end*? Mind the trap of the lesson's first section.
#
# **Predict first.** Forget the trap: the last state goes through the final norm twice. For how many of 100 tokens of
# held-out code does that change the bundled teacher's choice, and do its favorites get more probability, or less? *My
# prediction: …*
#
# <details><summary>Hint 1</summary>
#
# Which of the L + 1 states has gone through the final norm already?
#
# </details>
# <details><summary>Hint 2</summary>
#
# `probabilities[..., choice]` would pair everything with everything; `torch.gather`, or `[:, torch.arange(T), choice]`,
# takes one number per token.
#
# </details>


# %%
def my_lens(states, norm, head):
    """The probability of the model's final choice, read at every depth.

    Args:
        states: a tuple of L + 1 tensors (1, T, D), the hidden_states that a model of L layers returns for one text.
        norm: the model's final norm, a function of (..., D).
        head: from (..., D) to logits (..., V).

    Returns:
        (L + 1, T): for each depth and token, the probability of what the model finds most likely there in the end.
    """
    ### BEGIN SOLUTION
    read = torch.stack([norm(state[0]) for state in states[:-1]] + [states[-1][0]])
    probabilities = head(read).softmax(-1)
    choice = probabilities[-1].argmax(-1)
    return probabilities[:, torch.arange(len(choice)), choice]
    ### END SOLUTION


# %%
check("4.4", my_lens)

# %% [markdown]
# **And the prediction?** On 24 sequences of held-out code: for 15 of 100, and the probability of the true favorites rises from 0.47 to 0.52. A wrong reading can look *more* certain; what gives it away is a KL of 0.12 nats from the model's own output, where there should be 0.

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
