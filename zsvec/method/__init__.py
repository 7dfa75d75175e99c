"""The method: from similarities to a prediction, in pure functions of arrays; numpy and scipy only."""

DEFAULT_STRATEGY = "log_linear_gda"
"""A name in `zsvec.method.predict.fusion.STRATEGIES`, defined here because that module is slow to import."""
