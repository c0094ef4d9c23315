"""Models that would be saved or loaded as other models, and classes that a reload has made strangers."""

import copy
import json

import pytest
import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

import lft_edu as lft
from lft_edu.families import cache_name, layers_of
from lft_edu.loading import assets, teachers
from lft_edu.operators import OPERATORS
from lft_edu.splicing import check_pair

SPAN = (2, 5)
IDS = torch.tensor([[5, 9, 2, 41, 7]])


@pytest.fixture
def saved(teacher, bundled, tmp_path):
    """A teacher's folder, with the config as JSON: what to change, and how to save it."""
    teacher.save_pretrained(tmp_path)
    bundled[1].save_pretrained(tmp_path)
    return tmp_path


def change(folder, **fields) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | fields), encoding="utf-8")


# weights that a config has no place for


@pytest.mark.parametrize("layers", [1, 4, 7])
def test_a_teacher_with_more_layers_than_its_config_is_refused(layers, saved):
    assert len(layers_of(lft.load_teacher(saved, device="cpu")[0])) == 8
    change(saved, num_hidden_layers=layers)
    with pytest.raises(ValueError, match="no place for"):
        lft.load_teacher(saved, device="cpu")


@pytest.mark.parametrize(
    "wrong", [{"span": [2, 6]}, {"operator": {"kind": "skip"}}, {"operator": {"kind": "regression"}}], ids=str
)
def test_a_student_with_weights_that_its_config_has_no_place_for_is_refused(wrong, teacher, tmp_path):
    lft.splice(teacher, SPAN, lft.Flow()).save_pretrained(tmp_path)
    change(tmp_path, **wrong)
    with pytest.raises((ValueError, FileNotFoundError), match=r"no place for|lacks weights"):
        lft.load_student(tmp_path, device="cpu")


def test_steps_without_measure_are_refused_before_memory_is_taken(teacher, tmp_path):
    lft.splice(teacher, SPAN, lft.Flow()).save_pretrained(tmp_path)
    change(tmp_path, operator={"kind": "flow", "solver": "euler", "num_steps": 10**9})
    with pytest.raises(ValueError, match="at most 10,000"):
        lft.load_student(tmp_path, device="cpu")


# what is saved can be loaded


def small(kind, config, **more):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
        ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
        model = kind(config(vocab_size=97, num_key_value_heads=2, **shape, **ends, **more))
    return model.eval().requires_grad_(False)


WINDOWS = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}  # in the last two layers
FAMILIES = {
    "llama": lambda: small(LlamaForCausalLM, LlamaConfig),
    "qwen2": lambda: small(
        Qwen2ForCausalLM, Qwen2Config, use_sliding_window=True, sliding_window=4, max_window_layers=2
    ),
    "qwen3": lambda: small(Qwen3ForCausalLM, Qwen3Config, head_dim=8),
    "smollm3": lambda: small(SmolLM3ForCausalLM, SmolLM3Config),
}


@pytest.mark.parametrize("operator", [lft.Skip(), lft.Ridge(), lft.Flow()], ids=lambda o: o.kind)
@pytest.mark.parametrize("span", [(0, 4), (0, 1), (3, 4)], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_students_of_all_families_and_edges_come_back(family, span, operator, tmp_path):
    student = lft.splice(FAMILIES[family](), span, operator)
    student.save_pretrained(tmp_path)
    again = lft.load_student(tmp_path, device="cpu")
    assert torch.equal(again(IDS).logits, student(IDS).logits)
    for model in (AutoModel, AutoModelForCausalLM):
        assert torch.equal(model.from_pretrained(tmp_path)(IDS).logits, student(IDS).logits)


@pytest.mark.parametrize("operator", [lft.Flow("midpoint", 3), lft.Skip()], ids=lambda o: o.kind)
@pytest.mark.parametrize("size", [304, 296])
def test_another_vocabulary_survives_wiring_and_saving(size, operator, teacher, tmp_path):
    student = lft.splice(teacher, SPAN, operator)
    student.resize_token_embeddings(size, mean_resizing=False)
    if operator.kind == "flow":
        student.set_solver("midpoint", 2)
    assert (student.config.vocab_size, student.config.text_config.vocab_size) == (size, size)
    student.save_pretrained(tmp_path)
    assert torch.equal(lft.load_student(tmp_path, device="cpu")(IDS).logits, student(IDS).logits)
    with pytest.raises(ValueError, match="another teacher"):
        check_pair(student, teacher)


def test_the_model_inside_is_not_saved_alone(teacher, tmp_path):
    student = copy.deepcopy(lft.splice(teacher, SPAN, lft.Skip()))
    with pytest.raises(ValueError, match=r"student\.save_pretrained"):
        student.model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
    student.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"student\.save_pretrained"):
        lft.load_student(tmp_path, device="cpu").model.save_pretrained(tmp_path)


def test_no_operator_is_split_over_devices(teacher):
    for kind in (lft.Flow(), lft.Regression(), lft.Ridge(), lft.Loop()):
        student = lft.splice(teacher, SPAN, kind)
        assert {type(student.operator).__name__, "GPTNeoXLayer"} <= set(student._no_split_modules)


# places


def test_a_file_in_the_place_of_the_folder_is_refused(teacher, tmp_path):
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(FileExistsError, match="is a file, not a folder"):
            lft.splice(teacher, SPAN, lft.Skip()).save_pretrained(place)
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


def test_a_full_disk_is_said_in_words(teacher, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", full)
    with pytest.raises(OSError, match=r"could not be written .*No space left.* Free disk space"):
        lft.splice(teacher, SPAN, lft.Skip()).save_pretrained(tmp_path)


# what is asked for and not there


@pytest.mark.parametrize("name", ["output_hidden_states", "output_attentions"])
def test_states_are_refused_by_argument_and_by_config(name, teacher):
    for place in (lambda s: s.config, lambda s: s.model.config):
        student = lft.splice(teacher, SPAN, lft.Skip())
        with pytest.raises(ValueError, match="not supported"):
            student(IDS, **{name: True})
        place(student)._attn_implementation = "eager"  # transformers gives attentions with no other
        setattr(place(student), name, True)
        with pytest.raises(ValueError, match="not supported"):
            student(IDS)
        assert student(IDS, **{name: False}).logits.shape == (1, 5, 300)


def test_a_cache_of_other_steps_is_refused(teacher):
    student = lft.splice(teacher, SPAN, lft.Flow("midpoint", 3))
    for fresh in (DynamicCache(config=student.config.text_config), DynamicCache()):
        student(IDS, **{cache_name(): fresh})
        student.set_solver("euler", 1)
        with pytest.raises(ValueError, match="not to be used after set_solver"):
            student(IDS[:, :1], **{cache_name(): fresh})
        student.set_solver("midpoint", 3)
        assert student(IDS[:, :1], **{cache_name(): fresh}).logits.shape == (1, 1, 300)


def test_a_teacher_of_another_family_is_another_teacher():
    llama, qwen = FAMILIES["llama"](), FAMILIES["qwen3"]()
    check_pair(lft.splice(llama, (1, 3), lft.Skip()), llama)
    with pytest.raises(ValueError, match="qwen3"):
        check_pair(lft.splice(llama, (1, 3), lft.Skip()), qwen)


def test_a_subclass_is_not_taken_for_its_base(teacher, monkeypatch):
    class Louder(lft.Skip):
        def forward(self, x, **context):
            return 2 * x

    with pytest.raises(ValueError, match=r"OPERATORS\[kind\] = Louder"):
        lft.splice(teacher, SPAN, Louder())
    monkeypatch.setattr(Louder, "kind", "louder")
    monkeypatch.setitem(OPERATORS, "louder", Louder)
    assert isinstance(lft.splice(teacher, SPAN, Louder()).operator, Louder)


def test_classes_of_a_reloaded_module_say_so(teacher, monkeypatch):
    before = lft.Skip()
    reloaded = type("Skip", (lft.operators.Operator,), {"__module__": "lft_edu.operators"})
    monkeypatch.setitem(OPERATORS, "skip", reloaded)
    with pytest.raises(ValueError, match="restart the kernel"):
        lft.splice(teacher, SPAN, before)
    model = type("SplicedForCausalLM", (nn.Module,), {"__module__": "lft_edu.splicing"})()
    with pytest.raises(ValueError, match="restart the kernel"):
        check_pair(model, teacher)


def test_trajectories_of_a_reloaded_module_say_so(bundled):
    found = lft.capture(*bundled, "x = 1")
    stranger = type("Trajectory", (), {"__module__": "lft_edu.trajectories"})()
    fitted = lft.PCA().fit(found)
    for ask in (lft.PCA().fit, lambda x: lft.PCA().fit([x]), fitted.transform):
        with pytest.raises(ValueError, match=r"states of type Trajectory.* restart the kernel"):
            ask(stranger)
        with pytest.raises(ValueError, match=r"states of type (object|NoneType): give what lft\.capture returns"):
            ask(object())
    assert fitted.transform(found).shape == (25, 3, 2)


def test_a_teachers_name_is_no_students():
    with pytest.raises(ValueError, match=r"'bundled' is a teacher: use load_teacher\. Its students: bundled/"):
        lft.load_student("bundled")


def test_a_folder_without_a_tokenizer_says_so(teacher, tmp_path):
    teacher.save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.save_pretrained"):
        lft.load_teacher(tmp_path, device="cpu")


def test_an_installation_that_does_not_fit_is_no_damage(tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise ModuleNotFoundError("Could not import module 'GPTNeoXForCausalLM'.")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", broken)
    monkeypatch.setattr("importlib.metadata.version", {"torch": "2.13.0", "torchvision": "0.20.1"}.get)
    with pytest.raises(ImportError, match=r"torch 2\.13\.0, torchvision 0\.20\.1.*pip uninstall -y torchvision"):
        lft.load_teacher("bundled", device="cpu")


def test_doctor_imports_what_lessons_import(monkeypatch):
    import transformers

    from lft_edu.doctor import FAIL, OK, _models

    assert _models().status == OK

    def broken(self, name):
        raise ModuleNotFoundError(f"Could not import module {name!r}.")

    monkeypatch.delitem(transformers.__dict__, "GPTNeoXForCausalLM", raising=False)
    monkeypatch.setattr(type(transformers), "__getattr__", broken)
    found = _models()
    assert found.status == FAIL
    assert "torch 2" in found.remedy


def test_lost_assets_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(teachers, "ASSETS", tmp_path)
    with pytest.raises(assets.DamagedAssetError, match=r"operators/PROVENANCE\.json is missing"):
        lft.load_student("bundled/ridge-6-18")
    (tmp_path / "operators").mkdir()
    note = tmp_path / "operators" / "PROVENANCE.json"
    note.write_text('{"sha256": {"ridge-6-18.safetensors": "0"}}', encoding="utf-8")
    with pytest.raises(assets.DamagedAssetError, match=r"operators/ridge-6-18\.safetensors is missing"):
        lft.load_student("bundled/ridge-6-18")
    note.write_text('{"sha256": []}', encoding="utf-8")
    with pytest.raises(assets.DamagedAssetError, match="no checksums"):
        assets.verify(tmp_path / "operators")
