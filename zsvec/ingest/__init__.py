"""The write path: checks arguments, embeds references, writes them to the store and recalibrates the store."""
