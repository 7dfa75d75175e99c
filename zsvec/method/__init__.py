"""The method: from similarities to a prediction, in pure functions of arrays; numpy and scipy only."""

DEFAULT_STRATEGY = "log_linear_gda"
"""Default name in `zsvec.method.predict.fusion.STRATEGIES`. Defined here because that module is slow to import."""
