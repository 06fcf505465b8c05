"""The JSON API under /api/v1: the blocks of the pages."""

from starlette.routing import BaseRoute

ROUTES: list[BaseRoute] = []
