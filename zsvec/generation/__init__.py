"""References from a language model and an image model (paper, section 3.1).

- `facet`: `clf.generation`, which plans a run, executes the plan and stores the images.
- `plan`: chooses the questions and images of a run within a `Budget`, with the costs of `prices`.
- `run`: executes a plan. The `manifest` on disk keeps all answers and images, so that a run can be resumed.
- `features`: describes and compares categories, with the questions of `prompts`.
- `client`: sends requests with the API key from `access`, and checks the responses.
- `gate`: flags images that should stay out of the store.
"""
