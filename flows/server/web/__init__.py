"""The pages of `serve`: all lines, a line; and the same as JSON. They keep nothing: the store and Prefect know it."""
