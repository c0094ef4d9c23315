"""A transformer with a span of its layers replaced by one transport operator, as a real transformers model.

Layers [m, n) are removed. The rest runs in the teacher's own code, whose list of layers now reads ``head layers,
operator, tail layers``. The operator is called like a layer, so masks, rotary positions, attention kernels and the KV
cache are those of transformers. Two things must be adjusted: kept layers get new cache indices, and an operator owns
one KV-cache entry per velocity evaluation, since keys computed at another time are different keys.
"""

import copy
from functools import partial
from operator import index

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    DynamicCache,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)

from .families import by_name, cache_name, family_of, keep_layers, layers_of, renumber, widest_layer, with_layers
from .heads import check_parts
from .operators import OPERATORS, Flow, Operator, build_operator, operator_from_dict
from .support import checks
from .support.errors import reload_hint
from .support.files import make_folder
from .support.whole import require_no_adapters, require_one_device
from .transport import first_tokens


class SplicedConfig(PreTrainedConfig):
    """Config of a spliced model.

    Attributes:
        text_config: the teacher's config. Its ``num_hidden_layers`` is the number of *KV-cache entries* of this model,
            and its per-layer fields are per entry. (The inner ``model.config`` counts places in the list of layers.)
        span: ``[m, n]``, the teacher's layers that are replaced.
        depth: layers of the teacher.
        operator: :meth:`~lft_edu.operators.Operator.to_dict` of what replaces them.
    """

    model_type = "lft_spliced"
    sub_configs = {"text_config": AutoConfig}  # noqa: RUF012 (transformers reads a class attribute)

    text_config: dict | PreTrainedConfig | None = None
    span: list | None = None
    depth: int = 0
    operator: dict | None = None

    def __post_init__(self, **kwargs):
        if isinstance(self.text_config, dict):
            self.text_config = AutoConfig.for_model(**self.text_config)
        if self.text_config is not None:
            for name in (
                "bos_token_id",
                "eos_token_id",
                "pad_token_id",
                "tie_word_embeddings",
                "vocab_size",
                "hidden_size",
            ):
                kwargs.setdefault(name, getattr(self.text_config, name, None))
            self.tie_word_embeddings = self.text_config.tie_word_embeddings
        super().__post_init__(**kwargs)


class SplicedForCausalLM(PreTrainedModel, GenerationMixin):
    """Head layers, one operator, tail layers. Made by :func:`splice` or :meth:`from_pretrained`."""

    config_class = SplicedConfig
    base_model_prefix = "model"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    supports_gradient_checkpointing = True
    _no_split_modules = [cls.__name__ for cls in OPERATORS.values()]  # noqa: RUF012 (transformers reads a class attribute)

    def __init__(self, config: SplicedConfig, model: PreTrainedModel | None = None):
        if config.span is None or config.operator is None or not isinstance(config.text_config, PreTrainedConfig):
            raise ValueError("Not a spliced model: load it with lft.load_teacher, then call lft.splice.")
        m, n = check_span(config.span, config.depth)
        super().__init__(config)
        if model is None:  # from_pretrained: allocate; weights follow
            bare = operator_from_dict(config.operator)
            first = m + bare.slots  # the tail's first slot; one layer stands for the operator, which may be made of it
            tail = range(first, first + config.depth - n)
            blank = with_layers(config.text_config, [*range(m), m, *tail])
            model = AutoModelForCausalLM.from_config(blank)
            layers_of(model)[m] = build_operator(config.operator, layers_of(model)[m], blank)
        else:  # from splice: every weight has its value, and post_init must not initialize it again
            for module in model.modules():
                module._is_hf_initialized = True  # type: ignore[assignment]  # to torch, all are tensors and modules
        self.model = model
        model.save_pretrained = _refuse_to_save  # type: ignore[method-assign,assignment]
        family = family_of(model.config)
        if family.positional:
            self.operator.register_forward_pre_hook(partial(_arguments_by_name, family), with_kwargs=True)
        if family.returns_tuple:
            self.operator.register_forward_hook(_as_the_model_expects, with_kwargs=True)
        self.wire()
        self.post_init()

    @property
    def operator(self) -> Operator:
        """The transport operator."""
        return layers_of(self.model)[self.config.span[0]]

    def wire(self) -> None:
        """Number the KV-cache entries: head layers, the operator's evaluations, tail layers."""
        m, operator = self.config.span[0], self.operator
        self.model.config.vocab_size = self.config.vocab_size = self.get_input_embeddings().weight.shape[0]
        layers, family = layers_of(self.model), family_of(self.model.config)
        operator.first_slot = m
        for i, layer in enumerate(layers):
            if i != m:
                renumber(layer, family, i if i < m else i - 1 + operator.slots)
        slots = [*range(m), *[m] * operator.slots, *range(m + 1, len(layers))]
        self.config.text_config = with_layers(self.model.config, slots)
        self.config.operator = operator.to_dict()
        if not slots:
            self.generation_config.use_cache = False  # no attention left: nothing to cache, nothing to count by

    @checks.takes(solver=checks.optional(checks.word), num_steps=checks.optional(checks.whole(1)))
    def set_solver(
        self, solver: str | None = None, num_steps: int | None = None, *, steps: int | None = None
    ) -> "SplicedForCausalLM":
        """Walk the same velocity with another solver or number of steps."""
        if not isinstance(self.operator, Flow):
            raise ValueError(f"A {self.operator.kind!r} operator has no solver; only lft.Flow has one.")
        now = self.operator.settings
        num_steps = steps if num_steps is None else num_steps  # its name before 1.0
        new = Flow(solver or now["solver"], num_steps or now["num_steps"], step_aware=now.get("step_aware", False))
        self.operator.settings = now | new.settings
        self.wire()
        return self

    def resize_token_embeddings(self, *args, **kwargs):
        """Change the size of the vocabulary; see transformers. The student then belongs to a teacher of that size."""
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        self.wire()
        return embeddings

    def save_pretrained(self, save_directory, *args, **options) -> None:
        """Save config and weights to a folder; see transformers.

        Raises:
            FileExistsError: a file has the folder's name.
            ValueError: the student has adapters (PEFT).
            OSError: it could not be written, such as for a full disk.
        """
        from safetensors import SafetensorError

        if not getattr(self, "_hf_peft_config_loaded", False):  # else transformers saves the adapters alone
            way = "Save the adapters, save_pretrained(folder) of the PEFT model, or merge them: its merge_and_unload()."
            require_no_adapters(self, "which a student's files have no place for", way)
        folder = make_folder(save_directory)
        try:
            super().save_pretrained(folder, *args, **options)
        except (OSError, SafetensorError) as error:
            size = sum(p.nbytes for p in self.parameters())
            raise OSError(
                f"The student ({size / 1e6:.0f} MB) could not be written to {folder} ({error}). Free disk space, then "
                "save it again; a run goes on with resume=True (--resume)."
            ) from error

    def push_to_hub(  # type: ignore[override]  # stricter on purpose: no student without tokenizer and card
        self, repo_id: str, tokenizer=None, card=None, **options
    ) -> str:
        """Upload this student with its tokenizer and a model card.

        Args:
            repo_id: ``"owner/name"`` on the hub.
            tokenizer: of the teacher.
            card: a results card (``lft.cards.Card``), such as ``run.card``; its ``publish`` does the upload.
            options: ``private`` and ``token``, see there.

        Returns:
            The student's address.

        Raises:
            ValueError: the tokenizer or the card is missing.
        """
        if tokenizer is None or not hasattr(card, "publish"):
            raise ValueError(
                "Give the tokenizer and the results card: run.card, lft.make_card(…), or lft.cards.Card.load(folder)."
            )
        return card.publish(self, repo_id, tokenizer, **options)

    def freeze(self) -> "SplicedForCausalLM":
        """Make only the operator trainable, if it can be trained at all."""
        self.requires_grad_(False)
        for p in self.operator.parameters():
            p.requires_grad_(self.operator.trainable)
        return self

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        labels=None,
        use_cache=None,
        logits_to_keep=0,
        cache=None,
        **kwargs,
    ):
        """Like the teacher's forward: token ids ``(B, T)`` → logits ``(B, T, V)``, loss with ``labels``, cache.

        ``cache`` is the name of ``past_key_values`` since transformers 5.24; both work.

        Raises:
            ValueError: hidden states or attentions are asked for, by argument or in a config, or a cache of another
                number of entries is given.
        """
        for name in ("output_hidden_states", "output_attentions"):
            given = kwargs.get(name)
            if given or (given is None and any(getattr(c, name, False) for c in (self.config, self.model.config))):
                raise ValueError(
                    "output_hidden_states and output_attentions are not supported for spliced models, by argument or "
                    "in student.config and student.model.config; use lft.latents.hidden_states_at_all_layers."
                )
        slots, cache = self.config.text_config, past_key_values if cache is None else cache
        entries = len(getattr(cache, "layers", None) or ())  # none yet in a cache that grows
        if entries not in (0, slots.num_hidden_layers):
            raise ValueError(
                f"This cache has {entries} entries, and this model fills {slots.num_hidden_layers}: a cache belongs to "
                "one model, and is not to be used after set_solver. Start with a new one."
            )
        if getattr(cache, "is_compileable", False) and not family_of(slots).static_cache:
            raise ValueError(
                f"{slots.model_type!r} models do not read a static cache rightly, in transformers' own code, and nor "
                "does this student. Use the cache that grows: leave out cache_implementation, or give a DynamicCache."
            )
        if cache is None and slots.num_hidden_layers and (slots.use_cache if use_cache is None else use_cache):
            cache = DynamicCache(config=slots)  # the model inside would count its layers, not its slots
        if self.operator.sink is not None:  # nothing else asks, and decoding comes here for every token
            tokens = inputs_embeds if input_ids is None else input_ids
            self.operator.first = first_tokens(tokens.shape[:2], attention_mask, cache, tokens.device)
        try:
            return self.model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                inputs_embeds=inputs_embeds,
                labels=labels,
                use_cache=use_cache,
                logits_to_keep=logits_to_keep,
                **{cache_name(): cache},
                **kwargs,
            )
        finally:
            self.operator.first = None

    def init_continuous_batching(self, *args, **kwargs):
        """Refuse a paged cache: it would give all evaluations of an operator one entry."""
        raise ValueError(
            "A student has no paged cache (continuous batching): use generate(ids, attention_mask=…), which takes a "
            "padded batch, without cache_implementation='paged'."
        )

    def get_input_embeddings(self):
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self):
        return self.model.get_output_embeddings()

    def set_output_embeddings(self, value):
        self.model.set_output_embeddings(value)


AutoConfig.register("lft_spliced", SplicedConfig)
AutoModel.register(SplicedConfig, SplicedForCausalLM)  # there is no model without the head
AutoModelForCausalLM.register(SplicedConfig, SplicedForCausalLM)


def _refuse_to_save(*args, **kwargs):
    """In place of the inner model's ``save_pretrained``: its architecture has no place for an operator."""
    raise ValueError(
        "This is the model inside a student: saved alone, it would be loaded with a random layer in the operator's "
        "place. Save the student: student.save_pretrained(folder)."
    )


def _arguments_by_name(family, operator, args, kwargs) -> tuple[tuple, dict]:
    return args[:1], by_name(family, args, kwargs)


def _as_the_model_expects(operator, args, kwargs, output):
    """A tuple, for a model that takes the first of what a layer returns; it alone says whether there is a cache."""
    return (output, None) if "use_cache" in kwargs else output


def check_span(span, depth: int) -> tuple[int, int]:
    """``span`` as (m, n) with 0 ≤ m < n ≤ depth, or a ValueError."""
    try:
        m, n = (index(edge) for edge in span)
    except (TypeError, ValueError):
        raise ValueError(f"span={span!r}: give two layer numbers (m, n), such as (6, 18).") from None
    if not 0 <= m < n <= depth:
        raise ValueError(
            f"span=({m}, {n}) does not fit a teacher of {depth} layers: layers m … n−1 are replaced, "
            f"so 0 ≤ m < n ≤ {depth} must hold."
        )
    return m, n


def check_pair(student: SplicedForCausalLM, teacher: PreTrainedModel) -> None:
    """ValueError unless the student was spliced from a model of the teacher's family and shape."""
    if not isinstance(student, SplicedForCausalLM):
        raise ValueError(
            "The student is not a spliced model: make one with lft.splice or load one with lft.load_student."
            + reload_hint(student, SplicedForCausalLM)
        )
    if isinstance(checks.model("teacher", teacher), SplicedForCausalLM):
        raise ValueError("The teacher is a spliced model: give the model the student was spliced from.")
    pairs = (student.config.depth, student.config.text_config), (len(layers_of(teacher)), teacher.config)
    wanted, found = (
        {"family": c.model_type, "layers": n, "width": c.hidden_size, "vocabulary": c.vocab_size} for n, c in pairs
    )
    if wanted != found:
        raise ValueError(f"The student belongs to another teacher: it was made from {wanted}, this one has {found}.")


def splice(
    teacher: PreTrainedModel,
    span: tuple[int, int],
    operator: Operator,
    generator: torch.Generator | None = None,
) -> SplicedForCausalLM:
    """Make a new model in which ``operator`` replaces the teacher's layers m … n−1. The teacher is not changed.

    Args:
        teacher: a causal language model of a declared family (:mod:`lft_edu.families`).
        span: ``(m, n)``, half-open.
        operator: such as ``lft.Flow(solver="euler", steps=1)``; copied, so one object may serve several splices. What
            is trained starts from its ``init_layer``, or from the first layer of the span; in a model that mixes kinds
            of attention, from the first that reaches every earlier token (``student.operator.settings``).
        generator: for the few weights that no teacher layer provides (time embedding); None: seed 0.

    Raises:
        ValueError: a span that does not fit, an unsupported family, a teacher with adapters (PEFT) or spread by a
            device_map, or an ``operator`` that is not one of ``lft_edu.operators.OPERATORS``.
    """
    if not isinstance(operator, Operator):
        hint = reload_hint(operator, *OPERATORS.values())
        raise ValueError(f"operator={operator!r}: give an operator object, such as lft.Flow() or lft.Skip().{hint}")
    if type(operator) is not OPERATORS.get(operator.kind):
        name, hint = type(operator).__name__, reload_hint(operator, *OPERATORS.values())
        raise ValueError(
            f"{name} is not the operator that is known as {operator.kind!r}, and would be made and loaded as that one. "
            f"Give it a kind of its own, and enter it: lft_edu.operators.OPERATORS[kind] = {name}.{hint}"
        )
    if isinstance(teacher, SplicedForCausalLM):
        raise ValueError("This model is already spliced: splice the teacher it came from.")
    way = "Merge them first: teacher = teacher.merge_and_unload()."
    require_no_adapters(teacher, "which a spliced model has no place for", way)
    if not isinstance(teacher, PreTrainedModel):
        raise ValueError(f"The teacher is a {type(teacher).__name__}: give a transformers model, as load_teacher does.")
    require_one_device(teacher, "teacher", " A saved student may be loaded with one.")
    layers = layers_of(teacher)
    check_parts(teacher)
    m, n = check_span(span, len(layers))
    described, chosen = operator.to_dict(), operator.layer_to_copy(m, n)
    if operator.trainable and chosen == m and "init_layer" not in described:
        chosen = widest_layer(teacher.config, m, n)
        described |= {"init_layer": chosen} if chosen != m else {}
    # Copy everything but the span: deepcopy takes what its memo holds for a copy already made.
    spare = {id(layer): nn.Identity() for i, layer in enumerate(layers) if m <= i < n and i != chosen}
    model = copy.deepcopy(teacher, memo=spare)
    kept = layers_of(model)
    generator = generator or torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):  # nn.Linear draws from the global generator before we overwrite it
        built = build_operator(described, kept[chosen], model.config, generator)
    owned = built.to(device=teacher.device, dtype=teacher.dtype)
    new = [*kept[:m], owned, *kept[n:]]
    del kept[:]
    kept.extend(new)
    keep_layers(model.config, [*range(m), chosen, *range(n, len(layers))])
    config = SplicedConfig(
        text_config=copy.deepcopy(model.config), span=[m, n], depth=len(layers), operator=owned.to_dict()
    )
    student = SplicedForCausalLM(config, model)
    student.generation_config = copy.deepcopy(teacher.generation_config)
    student.wire()
    return student.freeze().eval()
