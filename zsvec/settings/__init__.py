"""Settings, profiles, and trust in settings files."""
