"""What bfloat16 would spoil, and what it saves: as on a GPU, but on the CPU."""

import pytest
import torch

import lft_edu as lft
from lft_edu.fitting import LatentLoss
from lft_edu.latents import span_latents
from lft_edu.objectives import FlowMatching
from lft_edu.runs import costs

SPAN = (2, 5)


def test_time_keeps_its_precision_in_bfloat16(teacher):
    """996 and 999 thousandths are one number in bfloat16, and must not be to the velocity."""
    modulation = lft.splice(teacher, SPAN, lft.Flow()).operator.velocity.modulation.bfloat16()
    with torch.no_grad():
        modulation.outer.weight.normal_(generator=torch.Generator().manual_seed(0))
        a, b = (modulation(torch.tensor(t)) for t in (0.996, 0.999))
    assert (a - b).abs().max() > 0.05
    seen = []
    x = torch.zeros(4, 8, dtype=torch.bfloat16)
    lft.objectives.flow_matching_loss(lambda x, t: seen.append(t.dtype) or x, x, x)
    lft.objectives.flow_walking_loss(lambda x, t: seen.append(t.dtype) or x, x, x)
    assert set(seen) == {torch.float32}


def test_small_changes_of_alpha_survive_autocast(teacher):
    """Near 1, where α starts, bfloat16 knows steps of 1/128 only: training could not turn that knob."""
    modulation = lft.splice(teacher, SPAN, lft.Flow()).operator.velocity.modulation
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        modulation.outer.bias.fill_(0.0035)
        alpha = modulation(torch.tensor(0.5))[2]
    assert torch.allclose(alpha, torch.tensor(1.0035), atol=1e-5)


def test_autocast_keeps_half_as_much_for_the_gradient():
    """The plan's count of what an evaluation keeps, against what PyTorch keeps."""
    teacher = lft.random_teacher("pythia-14m", device="cpu")
    student = lft.splice(teacher, (1, 4), lft.Flow())
    loss = LatentLoss(student.operator, FlowMatching())
    latents = span_latents(teacher, (1, 4), torch.randint(1, 1000, (8, 128)))
    parameters, kept = {p.data_ptr() for p in student.parameters()}, {}

    def keep(x):
        if x.data_ptr() not in parameters:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    numbers = 8 * 128 * 128
    for precision, size in (("bf16", 2), ("no", 4)):
        kept.clear()
        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x)
        with hooks, torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss(latents)
        assert sum(kept.values()) / numbers == pytest.approx(size * costs.ACTIVATIONS, rel=0.3)
    counted = costs.run_costs(teacher, (1, 4), "flow_matching", 1, "euler")
    whole, half = (counted.training_memory(10**6, torch.float32, precision) for precision in ("no", "bf16"))
    assert whole - half == 2 * 10**6 * counted.shape.width * costs.ACTIVATIONS
