"""References from a language model and an image model (paper, section 3.1).

A run, in the order of its modules:

- `facet` is what a classifier offers: plan, then run.
- `plan` says what a run will ask, buy and cost; `prices` says what an answer and an image cost, and `budget` keeps a
  run to its limit.
- `run` carries a plan out over a folder, the `manifest`, from which it can be resumed.
- `features` finds out what categories look like and which are alike, by the questions of `prompts`.
- `client` asks and draws, with the key of `access`; `retries` says when a request is tried again, `failures` what a
  failed one means, `responses` what came back.
- `gate` flags images that are better left out; `synthesis` stores the others.
"""

from zsvec.generation.budget import Budget
from zsvec.generation.plan import Plan

__all__ = ["Budget", "Plan"]
