"""Every error a user can meet: one class, one stable code, one hint what to do."""

from backprop_core.errors.asked import *  # noqa: F403 - all of them are found here
from backprop_core.errors.failed import *  # noqa: F403
from backprop_core.errors.root import *  # noqa: F403
from backprop_core.errors.system import system_error as system_error
