"""Removes Prefect artifacts that quote forgotten rows. Prefect's API can remove no log of a flow run."""

from pathlib import Path

from backprop_core.data.row_quotes import Quotes
from backprop_core.errors import PrefectUnreachable
from backprop_core.runtime.settings import Settings

PAGE = 200
SQLITE = "sqlite+aiosqlite:///"


def databases() -> list[Path]:
    """The SQLite database of Prefect's on this machine, unless the user's server has another."""
    from prefect.settings import get_current_settings

    current = get_current_settings()
    url = current.server.database.connection_url
    text = url.get_secret_value() if url else f"{SQLITE}{current.home / 'prefect.db'}"
    place = text.removeprefix(SQLITE).partition("?")[0]
    return [Path(place)] if text.startswith(SQLITE) and place and ":memory:" not in place else []


def artifacts(settings: Settings, quotes: Quotes, *, delete: bool) -> list[str]:
    """The keys of our artifacts on the user's Prefect server that quote a row. Raises PrefectUnreachable."""
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
    from prefect.exceptions import PrefectHTTPStatusError
    from prefect.settings import get_current_settings

    from tasks.runs.prefect_artifacts import key

    if get_current_settings().api.url is None:
        return []
    ours = ArtifactFilter(key=ArtifactFilterKey(like_=f"{key(settings.namespace)}-"))
    found, offset = list[str](), 0
    try:
        with get_client(sync_client=True) as client:
            while page := client.read_artifacts(artifact_filter=ours, limit=PAGE, offset=offset):
                offset += len(page)
                for one in page:
                    text = f"{one.data}\n{one.description}"
                    if one.id and quotes.hits(text.encode(errors="replace")):
                        found.append(f"{one.key} {one.id}")
                        if delete:
                            client.delete_artifact(one.id)
                            offset -= 1
    except (httpx.HTTPError, PrefectHTTPStatusError) as error:
        raise PrefectUnreachable(f"the Prefect server does not answer: {error}", hint="start it") from error
    return found
