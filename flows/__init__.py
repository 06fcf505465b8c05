"""The order of the stages, and the command line."""

import os

if "BACKPROPAGATE_FOLLOWS" in os.environ:  # a flow run of `serve`, which ends with the worker that has started it
    from backprop_core.runtime import parent_watch

    parent_watch.follow(os.environ[parent_watch.FOLLOWS])
