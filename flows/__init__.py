"""The order of the stages, and the command line."""

import os

if "BACKPROPAGATE_FOLLOWS" in os.environ:  # a flow run of `serve`, which ends with the worker that has started it
    from backprop_core import lifeline

    lifeline.follow(os.environ[lifeline.FOLLOWS])
