"""All commands of `zsvec`: importing this registers them with the application, in the order that help shows."""

from zsvec.cli import categories, classify, docs, evaluate, generate, store
from zsvec.cli.app import app

__all__ = ["app", "categories", "classify", "docs", "evaluate", "generate", "store"]
