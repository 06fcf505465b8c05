"""All error classes: one stable code each, with a message and a hint."""

from backprop_core.errors.root import *  # noqa: F403
from backprop_core.errors.runtime_errors import *  # noqa: F403
from backprop_core.errors.system_errors import system_error as system_error
from backprop_core.errors.user_errors import *  # noqa: F403 - re-exported
