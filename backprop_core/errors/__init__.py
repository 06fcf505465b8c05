"""Every error a user can meet: one class, one stable code, one hint what to do."""

from backprop_core.errors.root import *  # noqa: F403
from backprop_core.errors.runtime_errors import *  # noqa: F403
from backprop_core.errors.system_errors import system_error as system_error
from backprop_core.errors.user_errors import *  # noqa: F403 - all of them are found here
