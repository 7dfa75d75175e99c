"""Settings: where each value comes from, which of them need trust, and what they say of a store."""
