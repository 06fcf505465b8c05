"""Who uses this machine's command line."""

import getpass


def local_user() -> str:
    """The name of the account."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container's user may have no name
        return "a user without a name"
