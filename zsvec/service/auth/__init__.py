"""Who is let in: addresses, pages, and keys with rights."""
