"""Results cards: what a student is and what was measured of it, as JSON, Markdown, and a model card for the hub."""

import importlib.metadata
import json
import platform
import re
import tempfile
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData, get_token, hf_hub_download
from huggingface_hub.utils import validate_repo_id

from ..loading.corpora import HUB
from ..loading.hub import explained
from ..metrics import Evaluation
from ..operators import operator_title
from ..support.files import atomic_write
from ..support.machine import device_name
from .costs import latencies

PACKAGES = ("lft_edu", "torch", "transformers", "datasets", "accelerate")
METRICS = {"kl": "KL(teacher ‖ student), nats per token", "perplexity": "Perplexity", "nmse": "NMSE of the states"}


class Card(dict):
    """Everything worth knowing of one student, as JSON values. Made by :meth:`of`, or of the JSON that a card was."""

    @classmethod
    def of(
        cls, student, teacher, found: Evaluation, corpus: str, split: str = "test", training: dict | None = None,
        skips: dict | None = None, latency: bool = True,
    ) -> "Card":  # fmt: skip
        """Describe a student and what was measured of it.

        Args:
            found: what :func:`lft_edu.evaluate` measured on ``split`` of ``corpus``.
            training: how it was trained, if known.
            skips: number of layers → ``{"span", "kl", "kl_interval"}`` of the best skip of so many, to compare with
                (:func:`best_skips`).
            latency: time teacher and student in turn (some seconds).
        """
        (m, n), depth = student.config.span, student.config.depth
        timed = latencies({"teacher": teacher, "student": student}, rounds=3) if latency else None
        return cls({
            "teacher": {
                **getattr(teacher, "lft_origin", {"name": "unknown", "revision": None}),
                "layers": depth, "parameters": sum(p.numel() for p in teacher.parameters()),
            },
            "span": [m, n],
            "operator": student.operator.to_dict(),
            "layers_evaluated": {"teacher": depth, "student": depth - (n - m) + found.nfe},
            "training": training,
            "held_out": {
                "corpus": corpus, "split": split, "block": found.tokens // len(found.sequence_kl),
                "first_token": found.first_token,
            },
            "results": {**found.to_dict(), "kl_interval": list(found.kl_interval)},
            "skips": {str(j): skip for j, skip in skips.items()} if skips else None,
            "latency_ms_per_token": timed,
            "device": "CPU" if teacher.device.type == "cpu" else device_name(teacher.device),
            "dtype": str(teacher.dtype).removeprefix("torch."),
            "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        })  # fmt: skip

    @classmethod
    def load(cls, path: str | Path) -> "Card":
        """Read a card that :meth:`save` wrote: its file, or the folder."""
        path = Path(path)
        return cls(json.loads((path / "card.json" if path.is_dir() else path).read_text(encoding="utf-8")))

    def save(self, folder: str | Path) -> None:
        """Write ``card.json`` and ``card.md``."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in (("card.json", json.dumps(self, indent=1)), ("card.md", self.markdown())):
            with atomic_write(folder / name) as partial:
                partial.write_text(text, encoding="utf-8")

    def rows(self) -> list[tuple[str, str]]:
        """Names and values, for people."""
        results, teacher, held, (m, n) = self["results"], self["teacher"], self["held_out"], self["span"]
        low, high = results["kl_interval"]
        name, at = _shown(teacher["name"]), f" at {_word(teacher['revision'][:12])}" if teacher["revision"] else ""
        rows = [
            ("Teacher", f"{name}{at}, {teacher['layers']} layers, {teacher['parameters']:,} parameters"),
            ("Replaced", f"layers {m}–{n} (half open) by {_word(operator_title(self))}"),
            ("Parameters", f"{results['parameters']:,}, {results['operator_parameters']:,} of them the operator"),
            ("Layer evaluations per token", "{student} (teacher: {teacher})".format(**self["layers_evaluated"])),
            ("Held-out text", f"{results['tokens']:,} tokens of {_shown(held['corpus'])}, {_word(held['split'])}"),
            ("Tokens a sequence", f"{held['block']:,}{_beginning(held)}"),
            ("KL(teacher ‖ student)", f"{results['kl']:.4f} nats per token (95 %: {low:.4f} to {high:.4f})"),
            ("Perplexity", f"{results['perplexity']:.2f} (teacher: {results['teacher_perplexity']:.2f})"),
            ("NMSE of the states", f"{results['nmse']:.4f}"),
        ]
        if self["operator"].get("sink"):
            rows.insert(2, ("Attention sink", "written by these layers; its state is stored with the operator"))
        for j, skip in (self["skips"] or {}).items():
            rows.append((f"Skipping the best {j}", f"{skip['kl']:.4f} (layers {skip['span'][0]}–{skip['span'][1]})"))
        if self["training"]:
            t = self["training"]
            text = f"{t['tokens']:,} tokens of {_shown(t['corpus'])}"
            rows.append(("Trained on", f"{text} by {_word(t['objective'])}, {t['seconds']:,} s"))
        if self["latency_ms_per_token"]:
            for what in ("prefill", "decode"):
                ms = {who: times[what] for who, times in self["latency_ms_per_token"].items()}
                rows.append((f"Milliseconds per token, {what}", f"{ms['student']:.3f} (teacher: {ms['teacher']:.3f})"))
        rows.append(("Measured on", f"{_word(self['device'])}, {_word(self['dtype'])}"))
        rows.append(("Versions", ", ".join(f"{name} {v}" for name, v in self["versions"].items() if v)))
        return rows

    def markdown(self) -> str:
        """The card as a Markdown table."""
        lines = ["| | |", "|---|---|", *(f"| {_escaped(name)} | {_escaped(value)} |" for name, value in self.rows())]
        return "\n".join(lines) + "\n"

    def model_card(self, name: str, license: str | None = None) -> ModelCard:
        """The README.md of this student on the hub: what it is, how to load it, what was measured.

        Args:
            name: ``"owner/name"`` on the hub.
            license: of the teacher, which is the student's too; None: not known.
        """
        teacher, results, (m, n) = self["teacher"], self["results"], self["span"]
        trained_on, held = (self["training"] or {}).get("corpus"), self["held_out"]
        published = "/" in teacher["name"] and teacher["revision"]
        source = HUB.get(held["corpus"])
        measured = [
            EvalResult(
                task_type="text-generation", dataset_type=source.repository if source else "text",
                dataset_name=Path(held["corpus"]).name, dataset_config=source.configuration if source else None,
                dataset_split=held["split"], metric_type=metric, metric_name=title, metric_value=results[metric],
            )
            for metric, title in METRICS.items()
        ]  # fmt: skip
        header = ModelCardData(
            library_name="transformers", pipeline_tag="text-generation", license=license,
            tags=["latent-flow-transformer", "lft_edu", "arxiv:2505.14513"],
            base_model=teacher["name"] if published else None, base_model_relation="finetune" if published else None,
            datasets=[HUB[trained_on].repository] if trained_on in HUB else None,
            metrics=list(METRICS), model_name=name.split("/")[-1], eval_results=measured,
        )  # fmt: skip
        return ModelCard(f"""---
{header.to_yaml()}
---

# {_escaped(name)}

A [Latent Flow Transformer](https://arxiv.org/abs/2505.14513): layers {m} … {n - 1} of
{_escaped(_shown(teacher["name"]))} are
gone, and one learned transport operator, {_escaped(_word(operator_title(self)))}, stands in for them. Its KL to the
teacher is {results["kl"]:.3f} nats per token on held-out text. Made with lft_edu.

```python
import lft_edu as lft
from transformers import AutoTokenizer

student = lft.load_student("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
ids = tokenizer("The", return_tensors="pt").to(student.device)
print(tokenizer.decode(student.generate(**ids, max_new_tokens=20)[0]))
```

{self.markdown()}
It is not better than its teacher at anything; it is smaller. Where its teacher errs, expect it to err too.
""")

    def without_folders(self) -> "Card":
        """This card, with the folders of this computer left out of its names."""
        card = Card(json.loads(json.dumps(self)))
        for part, key in (("teacher", "name"), ("held_out", "corpus"), ("training", "corpus")):
            if card.get(part):
                card[part][key] = _without_folders(card[part][key])
        return card

    def publish(self, student, name: str, tokenizer, private: bool | None = None, token: str | None = None) -> str:
        """Upload a student with its tokenizer, this card and a model card.

        Args:
            student: the model that this card describes.
            name: ``"owner/name"`` on the hub; made if it is not there.
            private: make the new repository private; None: as the account's settings say.
            token: of an account that may write; that of ``hf auth login``, if None.

        Returns:
            The student's address.

        Raises:
            ValueError: ``name`` is not ``owner/name``.
            PermissionError: not logged in.
        """
        require_login(name, token)
        api, teacher = HfApi(token=token), self["teacher"]
        with tempfile.TemporaryDirectory() as folder, explained(name, instead="keep it: save_pretrained"):
            student.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            self.without_folders().save(folder)
            (Path(folder) / "card.md").unlink()  # the same table is in the model card
            license = _license_of(teacher["name"], teacher["revision"], token)
            self.model_card(name, license).save(Path(folder) / "README.md")
            api.create_repo(name, exist_ok=True, private=private)
            api.upload_folder(repo_id=name, folder_path=folder, commit_message="A Latent Flow Transformer")
            return f"{api.endpoint}/{name}"


make_card = Card.of


def require_login(name: str, token: str | None = None) -> None:
    """Raise an error unless ``name`` is one that the hub takes and an account is there to upload with.

    Raises:
        ValueError: not ``owner/name``.
        PermissionError: not logged in.
    """
    try:
        validate_repo_id(name)
        if name.count("/") != 1:
            raise ValueError("no owner")
    except ValueError as error:
        raise ValueError(f"{name!r} is no name of a repository on the hub ({error}): give owner/name.") from None
    if not (token or get_token()):
        raise PermissionError(f"To upload {name!r}, log in first: `hf auth login`, with a token that may write.")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def training_of(student: str) -> dict | None:
    """How the card in a run's folder says that it was trained; None: there is no card.

    Raises:
        ValueError: the card is damaged.
    """
    card = Path(student).expanduser() / "card.json"
    try:
        training = json.loads(card.read_text(encoding="utf-8")).get("training") if card.exists() else None
        if training is not None:
            "{tokens:,} {seconds:,} {corpus} {objective}".format(**training)  # what the card's table shows
        return training
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{card} is damaged ({error}). Delete it to evaluate without what it says.") from error


def table(cards: list[dict]) -> str:
    """Several cards as one Markdown table, a row each."""
    lines = ["| operator | layers | tokens | evaluations | parameters | KL (95 %) | perplexity |", "|" + "---|" * 7]
    for card in cards:
        results, (m, n) = card["results"], card["span"]
        low, high = results["kl_interval"]
        tokens = f"{card['training']['tokens']:,}" if card["training"] else ""
        lines.append(
            f"| {operator_title(card)} | {m}–{n} | {tokens} | {results['nfe']} | {results['parameters']:,} | "
            f"{results['kl']:.3f} ({low:.3f}–{high:.3f}) | {results['perplexity']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def _beginning(held: dict) -> str:
    """How the sequences begin, for people; cards of before do not say."""
    if "first_token" not in held:
        return ""
    token = held["first_token"]
    return ", beginning with text" if token is None else f", each beginning with token {token}"


def _escaped(text: str) -> str:
    """Names of models and corpora are text from outside: no cell of a table may end early, no tag or link may begin."""
    text = text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
    return re.sub(r"(`[^`]*`)|\[", lambda found: found[1] or "\\[", text)  # code is shown as it stands


def _without_folders(name: str) -> str:
    """A name; of a path, whose folders are nobody else's business, the end."""
    path = Path(name)
    return path.name if path.is_absolute() or path.exists() else name


def _shown(name: str) -> str:
    """A name as code, in which no link or picture begins."""
    return "`" + _without_folders(name).replace("`", "'").replace("\n", " ") + "`"


def _word(text: str) -> str:
    """A word of ours, such as an objective's name; as code if it is something else, which others wrote."""
    return text if re.fullmatch(r"[\w./:+,×() -]*", text) else _shown(text)


def _license_of(name: str, revision: str | None, token: str | None) -> str | None:
    """The license in a teacher's model card; None for a teacher that is not on the hub, or whose card has none."""
    if not ("/" in name and revision):
        return None
    try:
        readme = hf_hub_download(name, "README.md", revision=revision, token=token)
        return ModelCard.load(readme, ignore_metadata_errors=True).data.license
    except (OSError, ValueError, yaml.YAMLError):  # gone, private or damaged: no reason not to upload
        return None
