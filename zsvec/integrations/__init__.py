"""zsvec inside other programs: data pipelines, scikit-learn, assistants, annotation tools.

Each module is imported by its users, never by ``import zsvec``.
"""
