"""The method: from similarities to a prediction, in pure functions of arrays; numpy and scipy only."""
