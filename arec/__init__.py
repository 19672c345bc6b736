"""Sequential recommendation with adaptive contrastive learning (AdaptiveRec) and its baselines.

The programs are `python -m arec.train`, `arec.evaluate`, `arec.recommend` and `arec.report`; data
flows `arec.data` -> `arec.models` -> `arec.objectives` -> `arec.trainer` -> `arec.ranking`.
"""
