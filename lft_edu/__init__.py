"""lft_edu: a course on Latent Flow Transformers, and the small library under it.

Names are imported on first use, so that ``import lft_edu`` takes milliseconds. ``_HOMES`` is the map of the house, in
reading order: the core first, then the wings.
"""

import importlib

__version__ = "1.0.0"

_HOMES = {  # module → the names that are public as lft_edu.name
    # the core: points
    "flow": (),
    "objectives": ("FlowMatching", "FlowWalking", "Hybrid", "LogitKL"),
    "couplings": ("Coupling", "recoupling_ratio"),
    "shapes": (),
    "plane": (),
    # the model
    "families": (),
    "velocity": ("VelocityEstimator",),
    "transport": (),
    "closed_forms": (),
    "operators": ("Skip", "MeanShift", "Procrustes", "LinearPatch", "Ridge", "Loop", "Regression", "Flow"),
    "heads": ("logits_of",),
    "splicing": ("SplicedForCausalLM", "SplicedConfig", "splice"),
    "plain": ("export_plain",),
    "latents": (),
    "sinks": (),
    "sources": (),
    "fitting": ("fit",),
    # how good, and where to cut
    "metrics": ("evaluate", "worst_tokens"),
    "skipping": (),
    "drafting": ("draft", "acceptance"),
    "criteria": (),
    "spans": ("scan_spans", "SpanScan"),
    # to look at
    "text": (),
    "trajectories": ("capture",),
    "projections": ("PCA", "UMAP"),
    # the wings
    "support": (),
    "training": (),
    "training.callbacks": ("History",),
    "training.settings": ("Training",),
    "loading": (),
    "loading.teachers": ("load_teacher", "load_student", "random_teacher"),
    "loading.corpora": ("load_corpus",),
    "loading.hub": (),
    "runs": (),
    "runs.settings": ("RunSettings",),
    "runs.plans": ("plan",),
    "runs.run": ("train",),
    "runs.costs": (),
    "runs.cards": ("Card", "make_card"),
    "plots": (),
    "explorer": ("TrajectoryExplorer",),
    "exercises": (),
    "lessons": (),
    "lessons.claims": ("claim",),
    "lessons.predictions": ("predict", "my_predictions"),
    "lessons.overview": ("my_progress",),
    "lessons.sources": ("show_source",),
    "lessons.tables": ("table",),
    "export": (),
    "doctor": (),
    "cli": (),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}
_MODULES = {module.rpartition(".")[2]: module for module in _HOMES}
_MODULES |= {"recoupling": "couplings", "failures": "metrics"}  # where what they held has gone
__all__ = sorted({*_HOME, *_MODULES})


def __getattr__(name: str):
    if name in _HOME:
        value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{_MODULES[name]}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return __all__
