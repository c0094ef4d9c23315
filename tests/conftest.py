"""A tiny teacher for every test, so that none waits for the real one."""

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
# Properties that are cheap to try name no number of examples: --hypothesis-profile=thorough tries 10,000 of each.
settings.register_profile("quick", max_examples=25, deadline=None)
settings.register_profile("thorough", max_examples=10_000, deadline=None)
settings.load_profile("quick")
pytest_plugins = ["browsing"]


@pytest.fixture(scope="session")
def teacher():
    """Eight random layers, width 64, weights large enough that every layer matters."""
    from lft_edu.loading.teachers import build_model

    model = build_model(64, 300, layers=8, seed=1).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    model.generation_config.eos_token_id = None  # random models end their text at once otherwise
    return model


@pytest.fixture(scope="session")
def ids():
    return torch.randint(1, 300, (3, 12), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="session")
def blocks():
    """A corpus of 40 blocks with some structure: each token is often its predecessor plus one."""
    generator = torch.Generator().manual_seed(4)
    steps = torch.randint(0, 3, (40, 16), generator=generator)
    return (steps.cumsum(1) + torch.randint(0, 200, (40, 1), generator=generator)) % 299 + 1


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def bundled():
    """The bundled teacher and its tokenizer, on the CPU."""
    import lft_edu as lft

    return lft.load_teacher("bundled", device="cpu")


@pytest.fixture(scope="module")
def states():
    """States of 60 tokens at seven depths, which drift."""
    return torch.randn(7, 60, 5, generator=torch.Generator().manual_seed(0)).cumsum(0)


@pytest.fixture(scope="module")
def scan(states):
    """A scan of all their spans."""
    import lft_edu as lft

    return lft.scan_spans(states, ["recoupling", "angular", "cka"], progress=False)
