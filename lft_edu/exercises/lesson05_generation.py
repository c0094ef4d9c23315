"""Check of exercise 5.6: greedy generation with a KV cache."""

import torch
from torch import Tensor

from .checking import Wrong, describe, exercise, tensor
from .lesson04 import hooks_on, small_model


def small_student(span, operator, seed: int):
    """Build a spliced model of six random layers in which every weight matters."""
    from ..splicing import splice

    teacher = small_model(6)
    teacher.generation_config.eos_token_id = None
    student = splice(teacher, span, operator)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in student.operator.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=generator))
    return student


@torch.no_grad()
def greedy_text(model, ids: Tensor, n: int) -> Tensor:
    """Generate greedily without a cache: (1, T) → (1, T + n)."""
    for _ in range(n):
        ids = torch.cat([ids, model(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    return ids


class RecordedModel:
    """Record a model's forward passes in ``calls``, each (tokens, length of the cache, kwargs)."""

    def __init__(self, model):
        self.model, self.calls = model, []

    def __enter__(self):
        self.hook = self.model.register_forward_pre_hook(self._note, with_kwargs=True)
        self.model.generate = self._refuse
        return self

    def __exit__(self, *exc):
        self.hook.remove()
        del self.model.generate

    def _refuse(self, *args, **kwargs):
        raise Wrong("model.generate does it all for you. Write the loop yourself, with calls to model(…).")

    def _note(self, module, args, kwargs):
        given = args[0] if args else kwargs.get("input_ids")
        if not isinstance(given, Tensor) or given.ndim != 2 or len(given) != 1:
            raise Wrong(f"You gave the model {describe(given)}: it takes token ids, (1, number of tokens).")
        cache = kwargs.get("past_key_values", kwargs.get("cache"))  # two names of the same argument
        cached = cache.get_seq_length() if hasattr(cache, "get_seq_length") else 0
        self.calls.append((given[0].tolist(), cached, kwargs))

    def complaint(self, text: list[int], prompt: int) -> str:
        """Explain the first pass that does not continue where the cache ends; empty if all do."""
        for i, (tokens, cached, kwargs) in enumerate(self.calls):
            here, end = f"Pass {i + 1} was given", cached + len(tokens)
            many = f"{len(tokens)} tokens" if len(tokens) > 1 else "1 token"
            if i == 0 and len(tokens) < prompt - 1:
                return f"{here} {many} of a prompt of {prompt}. The whole prompt goes in first: the cache must hold it."
            if i and not cached and len(tokens) == 1:
                return (
                    f"{here} 1 token and no cache: it does not see the tokens before. Keep what the model returns, "
                    "cache = out.past_key_values, and pass it on: past_key_values=cache."
                )
            if cached and len(tokens) > 1 and tokens[:prompt] == text[:prompt]:
                return (
                    f"{here} the whole text again, {many}, though the cache holds {cached} already: the model "
                    "reads it twice. With a cache, pass only the new token."
                )
            if cached and tokens != text[cached:end]:
                return (
                    f"{here} token {tokens[0]} and a cache of {cached}; the next token of the text is {text[cached]}. "
                    "Pass the token that was chosen last."
                )
            places, mask = kwargs.get("position_ids"), kwargs.get("attention_mask")
            if isinstance(places, Tensor) and places.flatten().tolist() != [*range(cached, end)]:
                return (
                    f"{here} position {places.flatten().tolist()[0]} for its first token, and a cache of {cached}. "
                    f"Positions continue: {cached}. Leave position_ids out, and the model counts for itself."
                )
            if isinstance(mask, Tensor) and mask.shape[-1] != end:
                return (
                    f"{here} a mask of {mask.shape[-1]} tokens; with what the cache holds there are {end}. Leave it "
                    "out: nothing here is padded."
                )
        return ""


def settings_of(model) -> dict:
    """Return the settings of a model that generation must not change, by name."""
    return {
        "training mode (model.training)": model.training,
        "model.config.use_cache": getattr(model.config, "use_cache", None),
        "text_config.use_cache": model.config.text_config.use_cache,
        "the solver": dict(model.operator.settings),
        "hooks": hooks_on(model),
        "attention": model.config._attn_implementation,
    }


@exercise("5.6", "The loop that writes", difficulty=3, minutes=20)
def generate(answer):
    from ..operators import Flow

    model, unused = small_student((2, 4), Flow("midpoint", 2), seed=16), 49
    prompt, before = torch.tensor([[3, 41, 7, 12, 20]]), settings_of(model)

    def run(model, prompt, n, eos=unused):
        given, grad = prompt.clone(), torch.is_grad_enabled()
        try:
            with RecordedModel(model) as watched:
                value = answer.uncopied(model, given, n, eos)
            switched = torch.is_grad_enabled() != grad
        finally:
            torch.set_grad_enabled(grad)
        if switched:
            raise Wrong("You disabled gradients globally. Use `with torch.no_grad():`, or leave them enabled.")
        if not torch.equal(given, prompt):
            raise Wrong("You changed input_ids themselves: make a new tensor, torch.cat([ids, new], 1).")
        return _shaped(value, n), watched

    yield "prompt and new tokens, (1, T + n)"
    mine, watched = run(model, prompt, 9)
    _length(mine, prompt, 9)
    yield "the model is left as it was"
    for name, setting in settings_of(model).items():
        if setting != before[name]:
            raise Wrong(f"You changed {name} from {before[name]} to {setting}. Leave the model as you got it.")
    yield "each new token is the most likely one, as without a cache"
    _greedy(mine, prompt, watched, lambda: run(model, prompt, 9)[0])
    yield "each token is run once"
    fed = sum(len(tokens) for tokens, *_ in watched.calls)
    if not fed:
        raise Wrong("The right text, but you never called model(…): call it, not a part of it.")
    if fed > 14:
        raise Wrong(
            f"The right text, but you ran {fed} tokens through the model. With a cache each is run once: 5 of the "
            "prompt and 8 new ones (the ninth is only returned)."
        )
    if len(watched.calls) > 10:
        raise Wrong(f"The right text, but {len(watched.calls)} passes for 9 tokens: pass the prompt at once.")
    yield "it stops after eos"
    for start in ([3, 41, 7, 12, 20], [33, 3, 41, 7, 12, 20]):  # the second prompt contains it
        start = torch.tensor([start])
        _ending(*run(model, start, 12, 33), greedy_text(model, start, 12), start, 33)
    yield "other models, prompts and lengths"
    for span, operator, prompt, n in (
        ((0, 3), Flow("euler", 3), torch.tensor([[9, 9, 30]]), 6),
        ((4, 6), Flow("midpoint", 1), torch.tensor([[17]]), 1),
    ):
        mine, watched = run(small_student(span, operator, seed=12), prompt, n)
        _length(mine, prompt, n)
        _greedy(mine, prompt, watched, lambda: None)


def _shaped(value, n: int) -> Tensor:
    found = tensor(value, None, "the text")
    if found.ndim == 1:
        raise Wrong(f"You returned {describe(found)}: keep the batch axis, (1, number of tokens).")
    if found.ndim != 2 or len(found) != 1:
        raise Wrong(f"You returned {describe(found)}; the text must have shape (1, T + {n}): prompt and new tokens.")
    if bool((found != found.round()).any()):
        raise Wrong("You returned numbers that are not token ids: argmax gives whole ones.")
    return found.long()


def _length(mine: Tensor, prompt: Tensor, n: int) -> None:
    long, found = prompt.shape[1], mine.shape[1]
    here = f"You returned {found} tokens for a prompt of {long} and n = {n}"
    if found != long + n:
        raise Wrong({
            n: f"{here}: the new ones alone. The prompt belongs to the text: torch.cat([ids, new], 1).",
            2 * long + n: f"{here}: it contains the prompt twice.",
            long: f"{here}: the prompt alone.",
            long + n - 1: f"{here}: one is missing. The last token belongs to the text, too.",
            long + n + 1: f"{here}: one too many.",
        }.get(found, f"{here}: they must be {long + n}."))  # fmt: skip


@torch.no_grad()
def _greedy(mine: Tensor, prompt: Tensor, watched: RecordedModel, again) -> None:
    """Require the greedy text; explain which pass or choice differs."""
    long, found = prompt.shape[1], mine[0].tolist()
    right = greedy_text(watched.model, prompt, mine.shape[1] - long)
    if torch.equal(mine, right):
        return
    if not torch.equal(mine[:, :long], prompt):
        after = torch.equal(mine[:, -long:], prompt)
        raise Wrong("The text must begin with the prompt." + " You put the new tokens before it." * after)
    if message := watched.complaint(found, long):
        raise Wrong(message)
    second = again()
    if second is not None and not torch.equal(second, mine):
        raise Wrong("Two calls gave two texts: yours draws tokens at random. Greedy means the most likely one: argmax.")
    place = next(i for i, (a, b) in enumerate(zip(found, right[0].tolist(), strict=True)) if a != b)
    said = watched.model(input_ids=mine[:, :place], use_cache=False).logits[0]
    here = f"New token number {place - long + 1} is {found[place]}; the most likely there is {right[0, place]}."
    if found[place] == said[-1].argmin():
        raise Wrong(f"{here} Yours is the least likely one: argmax, not argmin.")
    if place == long and found[place] == said[0].argmax():
        raise Wrong(f"{here} You read the logits after the prompt's *first* token: take those of its last, [:, -1].")
    if place > long and found[place] == found[place - 1] and len(watched.calls) == 1:
        raise Wrong(f"{here} You ran the model once: run it again for each new token.")
    raise Wrong(here)


def _ending(mine: Tensor, watched: RecordedModel, full: Tensor, start: Tensor, eos: int) -> None:
    """Require that the text ends with the first *new* eos."""
    long, found = start.shape[1], mine[0].tolist()
    new = full[0, long:].tolist()
    right = full[0].tolist()[: long + new.index(eos) + 1 if eos in new else None]
    here = f"With eos = {eos} you wrote {found[long:]}; it should be {right[long:]}."
    if found == right:
        if len(watched.calls) > len(right) - long + 2:
            raise Wrong(f"{here} But you continued after it and cut the text afterwards: leave the loop.")
        return
    if eos in start and len(found) < len(right):
        raise Wrong(f"{here} The prompt {start[0].tolist()} contains eos, too: only a new one ends the text.")
    if found[: len(right)] == right:
        filled = len(set(found[len(right) :])) == 1
        raise Wrong(f"{here} {'Do not fill it up' if filled else 'Do not continue after eos'}: the text ends there.")
    if found == right[:-1] and right[-1] == eos:
        raise Wrong(f"{here} The eos itself belongs to the text.")
    raise Wrong(here)
