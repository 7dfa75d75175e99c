"""HTTP service of a classifier: an API for programs and pages for people (the extra ``serve``)."""

from zsvec.service.admission.queue import Limits
from zsvec.service.app import create_app
from zsvec.service.auth.keys import Key, Keys

__all__ = ["Key", "Keys", "Limits", "create_app"]
