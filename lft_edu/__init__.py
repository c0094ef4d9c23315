"""lft_edu: a course on Latent Flow Transformers, and the small library under it.

Names are imported on first use, so that ``import lft_edu`` takes milliseconds.
"""

import importlib

__version__ = "0.1.0"

_HOMES = {
    "couplings": ("Coupling",),
    "recoupling": ("recoupling_ratio",),
    "spans": ("scan_spans", "SpanScan"),
    "operators": ("Skip", "MeanShift", "Procrustes", "Ridge", "Loop", "Regression", "Flow"),
    "splicing": ("SplicedForCausalLM", "SplicedConfig", "splice"),
    "teachers": ("load_teacher", "load_student", "random_teacher"),
    "corpora": ("load_corpus",),
    "metrics": ("evaluate",),
    "fitting": ("fit",),
    "training": ("History",),
    "plans": ("RunSettings", "plan"),
    "runs": ("train",),
    "cards": ("Card", "make_card"),
    "trajectories": ("capture",),
    "projections": ("PCA", "UMAP"),
    "failures": ("worst_tokens",),
    "explorer": ("TrajectoryExplorer",),
}
_MODULES = (
    *(
        "flow",
        "objectives",
        "shapes",
        "plane",
        "families",
        "latents",
        "criteria",
        "costs",
        "hub",
        "plots",
        "exercises",
        "export",
    ),
    *("cli", "doctor", *_HOMES),
)
_HOME = {name: module for module, names in _HOMES.items() for name in names}
__all__ = sorted({*_HOME, *_MODULES})


def __getattr__(name: str):
    if name in _HOME:
        value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return __all__
