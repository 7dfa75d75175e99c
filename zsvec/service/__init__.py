"""A classifier behind HTTP: an API for programs, and pages for people (the extra ``serve``)."""

from zsvec.service.app import create_app
from zsvec.service.keys import Key, Keys
from zsvec.service.work import Limits

__all__ = ["Key", "Keys", "Limits", "create_app"]
