"""Teachers, and the students that ship with the course."""

import difflib
from pathlib import Path

import torch
from torch import nn

from ..support.errors import reason, unknown_name_error
from ..support.machine import default_device
from . import hub
from .assets import ASSETS, DamagedAssetError, operator_notes, verify

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
    name: str | Path = "bundled", device=None, dtype: torch.dtype = torch.float32, revision: str | None = None
):
    """A causal language model to compress, in evaluation mode and frozen, and its tokenizer.

    Args:
        name: ``"bundled"`` (ships with the course, no network), a hub name such as ``"EleutherAI/pythia-410m"``, or a
            folder.
        device: where to put it; a GPU if there is one, if None.
        dtype: of the weights.
        revision: commit, tag or branch on the hub. Pin a commit for work that is to be repeated.

    Returns:
        ``(model, tokenizer)``, both transformers objects; the tokenizer pads on the left. ``model.lft_origin`` says
        where it came from: ``{"name": ..., "revision": commit or None}``.

    Raises:
        DamagedAssetError: the bundled teacher does not match its checksums.
        FileNotFoundError: a folder or hub model that is not there, or has no safetensors weights.
        PermissionError, ConnectionError, OSError: what can go wrong with the hub (:func:`lft_edu.loading.hub.fetch`).
        ValueError: a name that is neither, a damaged download, or a model of an unsupported family.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from ..families import family_of

    if str(name).startswith("bundled/"):
        raise ValueError(f"{str(name)!r} is a student: use load_student. The teacher is 'bundled'.")
    if str(name) == "bundled":
        verify(ASSETS / "teacher")
        source, origin = ASSETS / "teacher", {"name": "bundled", "revision": None}
    else:
        source, origin = _source(str(name), revision)
    model = _load_model(AutoModelForCausalLM, source, dtype)
    tokenizer = _from_pretrained(AutoTokenizer, source, padding_side="left")
    family_of(model.config)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.lft_origin = origin
    return model.to(device or default_device()).eval().requires_grad_(False), tokenizer


def _folder_or_hub_name(name: str) -> str | Path:
    """An existing folder, or what looks like a name on the hub; anything else is an error that helps."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    parts = name.split("/")
    if path.is_absolute() or name.startswith((".", "~")) or len(parts) > 2:
        raise FileNotFoundError(f"No folder {name!r}. Give an existing folder, a hub name, 'bundled' or 'bundled/…'.")
    known = ["bundled", *bundled_students(), *(f"EleutherAI/{shape}" for shape in SHAPES)]
    short = {option.split("/")[-1]: option for option in known}
    near = difflib.get_close_matches(parts[-1], short, n=1, cutoff=0.75)
    if len(parts) == 1 or difflib.get_close_matches(parts[0], ["bundled"], cutoff=0.75):
        hint = f" Did you mean {short[near[0]]!r}?" if near else ""
        raise ValueError(
            f"Unknown model {name!r}.{hint} Give 'bundled' (the teacher), 'bundled/…' (a student), "
            "'owner/name' on the hub, or a folder that exists."
        )
    return name


def _from_pretrained(kind, folder: Path, **options):
    """``kind.from_pretrained`` without any code of the folder's, with the disk's many errors made one."""
    if not Path(folder).joinpath("config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no config.json: it is no folder of a model. Give one that is.")
    try:
        return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **options)
    except MemoryError:
        raise
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ValueError(
            f"{folder} brings code of its own, which is never run here. Choose a model of a family that transformers "
            "knows, or convert it."
        ) from error
    except Exception as error:  # of transformers, safetensors and tokenizers, which share no class
        why = reason(error, 200)
        raise FileNotFoundError(
            f"{folder} holds no loadable model; it is incomplete or damaged ({why}). Save or copy it again."
        ) from error


def _load_model(kind, folder: Path, dtype: torch.dtype):
    """A model whose every weight comes from the folder's safetensors: what is missing would be random numbers."""
    model, loading = _from_pretrained(kind, folder, dtype=dtype, use_safetensors=True, output_loading_info=True)
    missing = sorted(str(key) for kind in ("missing_keys", "mismatched_keys") for key in loading[kind])
    if missing:
        raise FileNotFoundError(
            f"{folder} lacks weights that its config asks for, or has them in another shape ({len(missing)}, such as "
            f"{missing[0]}). It is incomplete or damaged: save or copy it again."
        )
    return model


def _source(name: str, revision: str | None) -> tuple[Path, dict]:
    """The folder to load from, and what to remember of where it came from."""
    place = _folder_or_hub_name(name)
    if isinstance(place, Path):
        if revision is not None:
            raise ValueError(f"revision={revision!r}: {name} is a folder; only a model of the hub has revisions.")
        return place, {"name": str(place), "revision": None}
    folder = hub.fetch(place, revision)
    return folder, {"name": place, "revision": folder.name}


def random_teacher(
    shape: str, layers: int | None = None, device=None, dtype: torch.dtype = torch.float32, seed: int = 0
):
    """A model of a published shape with random weights, for memory and speed; it knows nothing.

    Args:
        shape: one of ``SHAPES``, such as ``"pythia-410m"``.
        layers: fewer layers than published, for a quick look.
        device: ``"meta"`` gives the shape alone, without any weights: for counting.
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


def bundled_students() -> list[str]:
    """Names that :func:`load_student` knows, ``bundled/…``."""
    folder = ASSETS / "operators"
    return sorted(f"bundled/{p.stem}" for p in folder.glob("*.safetensors"))


def load_student(
    name: str | Path, teacher=None, device=None, dtype: torch.dtype = torch.float32, revision: str | None = None
):
    """A student: the bundled teacher with a trained operator that ships with the course, or a saved spliced model.

    Args:
        name: ``"bundled/flow-walking-6-18"`` and so on (:func:`bundled_students`), or a folder that
            ``student.save_pretrained`` wrote, or a hub name.
        teacher: the bundled teacher, if it is loaded already; ``device`` and ``dtype`` are then its own.

    Returns:
        A :class:`~lft_edu.splicing.SplicedForCausalLM`.

    Raises:
        ValueError: unknown name (with the nearest known one); DamagedAssetError: checksums differ.
    """
    from ..splicing import SplicedForCausalLM

    name = str(name)
    if name == "bundled" or not name.startswith("bundled/"):
        model = _load_model(SplicedForCausalLM, _source(name, revision)[0], dtype)
        return model.to(device or default_device()).eval().freeze()
    if name not in bundled_students():
        raise unknown_name_error("student", name, bundled_students(), ", or a folder")
    return _bundled_student(name.removeprefix("bundled/"), teacher or load_teacher("bundled", device, dtype)[0])


def _bundled_student(name: str, teacher):
    """The teacher with one of ``assets/operators`` spliced in."""
    from safetensors.torch import load_file

    from ..operators import operator_from_dict
    from ..splicing import splice

    path = ASSETS / "operators" / f"{name}.safetensors"
    if path.name not in verify(ASSETS / "operators")["sha256"]:
        raise DamagedAssetError(f"operators/{path.name} has no checksum. Run `python -m lft_edu.recipes.operators`.")
    notes = operator_notes(path)
    student = splice(teacher, notes["span"], operator_from_dict(notes["operator"]))
    weights, expected = load_file(path), student.operator.state_dict()
    if any(weights[k].shape != expected[k].shape for k in weights):
        raise ValueError(f"Student 'bundled/{name}' fits the bundled teacher only; this one has other widths.")
    student.operator.load_state_dict(weights)
    return student


def blank_teacher(name: str, revision: str | None = None):
    """A teacher without weights (on torch's meta device), and the bytes that loading it would download.

    Raises:
        ValueError, OSError: a teacher that is not there; ConnectionError, the hub is out of reach.
    """
    from huggingface_hub import hf_hub_download
    from transformers import AutoConfig, AutoModelForCausalLM

    from .assets import ASSETS

    place = ASSETS / "teacher" if name == "bundled" else _folder_or_hub_name(name)
    download = 0
    if not isinstance(place, Path):
        try:
            found = hub.look_up(place, revision)
            download, commit, cached = found.missing, found.commit, False
        except ConnectionError:
            commit, cached = revision, True  # it may be on this disk
        with hub.explained(name, revision):
            place = Path(hf_hub_download(name, "config.json", revision=commit, local_files_only=cached)).parent
    config = AutoConfig.from_pretrained(place, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config), download


def build_model(width: int, vocabulary: int, layers: int = 24, seed: int = 0):
    """A GPT-NeoX with rotary positions on half of each 32-wide head, as Pythia's layers but small."""
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
        for layer in model.gpt_neox.layers:  # what a layer adds starts small: 24 of them add up
            for projection in (layer.attention.dense, layer.mlp.dense_4h_to_h):
                nn.init.normal_(projection.weight, std=0.02 / (layers / 2) ** 0.5)
    return model
