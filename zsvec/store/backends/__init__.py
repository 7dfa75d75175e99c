"""The places of a store behind one protocol: memory, a folder with the embedded engine, a server."""
