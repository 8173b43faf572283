"""Engines that can run a model, what each can do, and which one runs a given file.

`base` has the capability table, `choose` the decision, `llamacpp` llama.cpp over its wheel.
"""

from insula.engine.backends.base import CAPABILITIES, BackendInfo, backends, require
from insula.engine.backends.choose import Choice, choose

__all__ = ["CAPABILITIES", "BackendInfo", "Choice", "backends", "choose", "require"]
