"""Event logs of a run for other programs' viewers: TensorBoard, Weights & Biases, MLflow (``--log``).

What a log holds follows from ``metrics.jsonl`` and ``samples.jsonl``: it is written anew from them where a run goes on
or goes back, so that each step stands once. Each log has a thread of its own, and no failure of one ends a run.
"""
