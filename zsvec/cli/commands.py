"""The application with all commands. Importing this module registers the commands."""

# ruff: noqa: F401, I001 - help lists the commands in the order of these imports and of the functions in each module.
from zsvec.cli import (
    demo,
    importing,
    categories,
    history,
    classify,
    inbox,
    serve,
    mcp,
    evaluate,
    quality,
    generate,
    maintenance,
    copying,
    archive,
    reembedding,
    syncing,
    attaching,
    encoders,
    docs,
)
from zsvec.cli.app import app as app
