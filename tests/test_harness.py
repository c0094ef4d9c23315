"""lm-evaluation-harness takes a student as it takes any transformers model."""

import pytest
import torch

import lft_edu as lft

pytest.importorskip("lm_eval")


def test_the_harness_scores_a_saved_student(bundled, tmp_path):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    student = lft.load_student("bundled/flow-walking-6-18", bundled[0])
    tokenizer = bundled[1]
    student.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    pairs = [("def f(x):\n    return", " x"), ("import", " os"), ("for i in range(", "10):")]
    instances = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    model = HFLM(pretrained=str(tmp_path), device="cpu", batch_size=2)  # by name: AutoModelForCausalLM finds the type
    scores = model.loglikelihood(instances, disable_tqdm=True)
    for (context, text), (score, greedy) in zip(pairs, scores, strict=True):
        first, rest = model._encode_pair(context, text)
        whole, at = torch.tensor([first + rest]), len(first)
        with torch.no_grad():
            logs = student(whole).logits.log_softmax(-1)[0, at - 1 : -1]
        wanted = logs.gather(1, whole[0, at:, None]).sum().item()
        assert score == pytest.approx(wanted, abs=1e-3)
        assert greedy == bool((logs.argmax(-1) == whole[0, at:]).all())
