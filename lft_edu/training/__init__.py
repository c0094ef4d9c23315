"""The training loop and what it needs. It knows modules, batches and losses, but no transformer.

===========  ====================================================================
settings     ``Training``: every option, written once
loop         ``optimize``: the loop
callbacks    history, progress bar, evaluation, checkpoints, graceful shutdown
optimizers   Muon, AdamW, the learning-rate schedule
sampling     which sequences and random numbers a step takes
checkpoints  one safetensors file per checkpoint
streams      text that can only be read forward
processes    several processes, on one machine or many
logs         metrics.jsonl, TensorBoard and other trackers
===========  ====================================================================
"""
