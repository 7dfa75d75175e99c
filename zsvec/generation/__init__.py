"""References from a language model and an image model (paper, section 3.1).

The pieces, each of use by itself: `client.Client` asks and draws, `features.analyse` finds out what categories
look like and which are alike, `confusions.confusions` asks the references of a store which are mistaken for
which, `plan.make_plan` says what a run will cost, and `run.carry_out` runs it over a folder that it can be
resumed from.
"""

from zsvec.generation.plan import Budget, Plan

__all__ = ["Budget", "Plan"]
