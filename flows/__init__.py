"""The flows, the command line and the servers."""

import os

if "BACKPROPAGATE_FOLLOWS" in os.environ:  # a flow run of `serve`: it ends with its worker
    from backprop_core.runtime import parent_watch

    parent_watch.follow(os.environ[parent_watch.FOLLOWS])
