"""All commands of `zsvec`: importing this registers them with the application."""

# ruff: noqa: I001 - help lists the commands in the order of these imports, and of the functions in each module:
# people need the first ones first.
from zsvec.cli import (
    demo,
    categories,
    mending,
    history,
    classify,
    inbox,
    serve,
    evaluate,
    calibrate,
    audit,
    generate,
    maintenance,
    encoders,
    trust,
    docs,
)
from zsvec.cli.app import app

__all__ = [
    "app",
    "audit",
    "calibrate",
    "categories",
    "classify",
    "demo",
    "docs",
    "encoders",
    "evaluate",
    "generate",
    "history",
    "inbox",
    "maintenance",
    "mending",
    "serve",
    "trust",
]
