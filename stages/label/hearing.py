"""The former place and name of `read_checked`, for teachers that were written with it."""

from stages.label.base import read_checked as hear

__all__ = ["hear"]
