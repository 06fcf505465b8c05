"""A stand-in for a web server with files of rows, which notes each request."""

from tests.wire.stand_in import Request, Service


class Rows(Service):
    """Serves `files`, by their path."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__()
        self.files = files

    def answer(self, request: Request) -> None:
        data = self.files.get(request.path.partition("?")[0])
        request.send_response(200 if data is not None else 404)
        request.send_header("Content-Length", str(len(data or b"")))
        request.end_headers()
        request.wfile.write(data or b"")
