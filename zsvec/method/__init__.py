"""The method: from similarities to a prediction, in pure functions of arrays; numpy and scipy only."""

DEFAULT_STRATEGY = "log_linear_gda"
"""Of the table in `zsvec.method.predict.fusion`, which is slow to import, and not needed to know this name."""
