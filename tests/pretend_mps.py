"""A stand-in for Apple's GPU: tensors that say they are on "mps", and compute on the CPU.

They refuse what a GPU refuses: float64, which MPS has not, and to be computed with tensors that are on the CPU.
"""

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

MPS = torch.device("mps", 0)
REFUSED = (torch.float64, torch.complex128)
# may have a tensor of each device; the last two are how a module moves its parameters
ACROSS = ("to", "copy_", "__getitem__", "__setitem__", "__set__", "_has_compatible_shallow_copy_type")


class OnMPS(torch.Tensor):
    """A tensor that says that it is on MPS. What is computed from one is one."""

    device = property(lambda self: MPS)

    def __deepcopy__(self, memo):
        same = self.detach().clone()
        memo[id(self)] = same = torch.nn.Parameter(same) if isinstance(self, torch.nn.Parameter) else same
        return same.requires_grad_(self.requires_grad)

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if getattr(function, "__name__", "") not in ACROSS:
            for x in tree_leaves((args, kwargs)):
                if isinstance(x, torch.Tensor) and not isinstance(x, OnMPS) and x.ndim:
                    raise RuntimeError("Expected all tensors to be on the same device, but found mps:0 and cpu!")
        result = super().__torch_function__(function, types, args, kwargs)
        return result if isinstance(result, torch.Size) else tree_map_only(OnMPS, _checked, result)


def _checked(x):
    if x.dtype in REFUSED:
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64.")
    return x


def _type(place) -> str:
    name = str(place) if isinstance(place, str | torch.device) else ""
    return name.partition(":")[0] if name.startswith(("mps", "cpu")) else ""


class PretendMPS(TorchFunctionMode):
    """Context manager in which ``device="mps"`` is there, and tensors get there by that name alone."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), getattr(function, "__name__", "")
        if name == "_parse_to":  # of nn.Module.to, which only reads its arguments
            return function(*args, **kwargs)
        places = [x for x in (*args[1:], *kwargs.values()) if _type(x)]
        args = args[:1] + tuple(torch.device("cpu") if _type(x) == "mps" else x for x in args[1:])
        kwargs = {k: torch.device("cpu") if _type(x) == "mps" else x for k, x in kwargs.items()}
        result = function(*args, **kwargs)
        if name == "cpu" or any(_type(place) == "cpu" for place in places):
            return tree_map_only(OnMPS, lambda x: x.as_subclass(torch.Tensor), result)
        if any(_type(place) == "mps" for place in places):
            return tree_map_only(torch.Tensor, lambda x: _checked(x.as_subclass(OnMPS)), result)
        return result
