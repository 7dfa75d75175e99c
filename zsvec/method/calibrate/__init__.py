"""What the stored references teach: temperatures, coefficients, thresholds."""
