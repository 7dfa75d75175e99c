"""Learns temperatures, coefficients and thresholds from the stored references."""
