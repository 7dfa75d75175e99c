"""Looks after what a store knows: finds what is wrong among its references. It knows no classifier."""
