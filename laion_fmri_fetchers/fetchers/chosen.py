"""Names of `bunch` under which other modules still import them."""

from .bunch import Chosen, make_bunch, plan_files, with_root_files

__all__ = ["Chosen", "make_bunch", "plan_files", "with_root_files"]
