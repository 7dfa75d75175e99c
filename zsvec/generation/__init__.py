"""References from a language model and an image model (paper, section 3.1).

- `facet`: the interface of a classifier: plan, run, and store the images.
- `plan`: questions, images and cost of a run, within a `Budget`; `prices`: costs of answers and images.
- `run`: executes a plan over a folder, the `manifest`, from which an interrupted run is resumed.
- `features`: describes and compares categories, with the questions of `prompts`.
- `client`: sends requests with the key of `access`, and checks the responses.
- `gate`: flags images that should stay out of the store.
"""

from zsvec.generation.plan import Budget, Plan

__all__ = ["Budget", "Plan"]
