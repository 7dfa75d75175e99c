"""References from a language model and an image model (paper, section 3.1).

A run, in the order of its modules:

- `facet` is what a classifier offers: plan, run, and store the images.
- `plan` says what a run will ask, buy and cost, within a `Budget`; `prices` says what an answer and an image cost.
- `run` carries a plan out over a folder, the `manifest`, from which it can be resumed.
- `features` finds out what categories look like and which are alike, by the questions of `prompts`.
- `client` asks and draws, with the key of `access`; `responses` checks the answers.
- `gate` flags images that are better left out.
"""

from zsvec.generation.plan import Budget, Plan

__all__ = ["Budget", "Plan"]
