"""Models that are not all in one place: adapters of PEFT beside the weights, or weights that accelerate has spread."""

from torch import nn


def has_adapters(model: object) -> bool:
    """Return whether PEFT has put adapters into a model: a layer of theirs keeps what it adapts as ``base_layer``."""
    return isinstance(model, nn.Module) and any(hasattr(module, "base_layer") for module in model.modules())


def unwrapped(model):
    """Return the model inside a ``PeftModel``, which computes with the adapters put into it; others as they are."""
    return model.get_base_model() if has_adapters(model) and hasattr(model, "get_base_model") else model


def require_no_adapters(model: nn.Module, why: str, advice: str) -> None:
    """Raise ValueError if a model has adapters.

    Args:
        why: what cannot be done with them, as the end of a sentence that begins with "This model has adapters, …".
        advice: what to type instead.
    """
    if has_adapters(model):
        raise ValueError(f"This model has adapters (PEFT), {why}. {advice}")


def require_one_device(model: nn.Module, what: str, advice: str = "") -> None:
    """Raise ValueError if accelerate has spread a model over devices, or keeps weights of it on the CPU or on disk.

    Args:
        what: the model's role, such as ``"teacher"``.
        advice: appended to what to type instead.
    """
    places = sorted({str(p.device) for p in model.parameters()})
    loaded_later = "meta" in places and any(hasattr(module, "_hf_hook") for module in model.modules())
    if len(places) > 1 or loaded_later:
        names = ", ".join("elsewhere until they are needed" if place == "meta" else f"on {place}" for place in places)
        raise ValueError(
            f"This {what} was loaded with a device_map, and its weights are {names}. Load it on one device: leave out "
            f"device_map. (To evaluate, capture and generate, it may be spread.){advice}"
        )
