"""How much the service takes at once: bodies, images at work, answers that nobody reads."""
