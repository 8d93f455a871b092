"""Every reach into what the `tinker` SDK keeps for itself, but for those of `older_servers`.

tests/service/test_compat.py guards them, and test_older_servers.py the others.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING, Any

from tinker_utils.service.older_servers import send_tolerantly

if TYPE_CHECKING:
    import httpx
    import tinker

PAYMENT_REQUIRED = 402
_MISDIRECTED = 421
_UNAUTHORIZED = 401
_KEY_HEADER = "X-API-Key"
KEY_SIGNS = re.compile(r"[!-~]+")
"""What a key consists of."""
# What the SDK sends along wherever it connects, from variables of these names.
_ACCESS_HEADERS = ("CF-Access-Client-Id", "CF-Access-Client-Secret")

PLACEHOLDER = "tml-no-key"
"""The SDK wants a key, and wants it to look like one."""

# The keys of servers other than the hosted one, and where those are.
_own_keys: set[str] = set()
_own_origins: set[tuple[str, str, int | None]] = set()


def hosted_address() -> str:
    """Return where the hosted service is."""
    from tinker.lib.base_url import DEFAULT_BASE_URL

    return DEFAULT_BASE_URL


def stored_key() -> str | None:
    """Return the key that `tinker auth login` has stored, if the SDK would use it in place of TINKER_API_KEY."""
    from tinker.lib.credentials import JsonCredentialStore, default_credentials_path

    if os.environ.get("TINKER_CREDENTIAL_CMD"):
        return None
    record = JsonCredentialStore(default_credentials_path()).get_default_key()
    return record.key if record else None


def keep_keys_home(base_url: str, api_key: str | None = None) -> None:
    """Have the SDK send keys only to the server that they are for, whatever a server answers.

    Left alone, it takes the key and the data along where it is redirected; and a server that asks for it is sent what
    TINKER_CREDENTIAL_CMD prints, which is the hosted service's, although the SDK was given a key.

    Args:
        base_url: a server that is about to be connected to.
        api_key: its key; None for the hosted service.
    """
    import httpx

    if api_key is not None:
        _own_keys.add(api_key)
        _own_origins.add(_origin(httpx.URL(base_url)))
    _guard_requests()


@functools.cache
def _guard_requests() -> None:
    import httpx
    import pyqwest
    from pyqwest.httpx import AsyncPyqwestTransport
    from tinker import _base_client
    from tinker.lib import internal_client_holder

    http: Any = _base_client
    holder: Any = internal_client_holder
    resolve = holder.resolve_auth_provider

    def resolve_given(api_key: str | None, enforce_cmd: bool) -> Any:
        return resolve(api_key, enforce_cmd and api_key not in _own_keys)

    def transport() -> AsyncPyqwestTransport:
        # It would follow redirects itself, before anybody sees them.
        return AsyncPyqwestTransport(pyqwest.HTTPTransport(tls_include_system_certs=True, follow_redirects=False))

    async def send(client: httpx.AsyncClient, request: httpx.Request) -> httpx.Response:
        origin = _origin(request.url)
        elsewhere = origin != _origin(client.base_url)
        if elsewhere and request.method != "GET":
            said = f"it redirects to {request.url.scheme}://{request.url.netloc.decode()}, which is not followed"
            return httpx.Response(_MISDIRECTED, request=request, json={"detail": said})
        for header in (_KEY_HEADER,) * elsewhere + _ACCESS_HEADERS * (elsewhere or origin in _own_origins):
            request.headers.pop(header, None)
        # Every other key was looked at before; the SDK runs the command itself, each time.
        if not KEY_SIGNS.fullmatch(request.headers.get(_KEY_HEADER, PLACEHOLDER)):
            said = "what TINKER_CREDENTIAL_CMD prints is no key: there is a space, a line break or another sign in it"
            return httpx.Response(_UNAUTHORIZED, request=request, json={"detail": said})
        once = functools.partial(httpx.AsyncClient._send_single_request, client)
        return await (send_tolerantly(once, request) if origin in _own_origins else once(request))

    holder.resolve_auth_provider = resolve_given
    http._default_pyqwest_transport = transport
    http.AsyncHttpxClientWrapper._send_single_request = send


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def observe_queue(client: tinker.TrainingClient, observer: Any) -> None:
    """Have a model's polls tell `observer` the queue's state: the SDK's own observer waits 15 minutes before a word.

    Args:
        client: the model.
        observer: has the method `on_queue_state_change(state, reason)`.
    """
    client._queue_state_logger = observer


def observe_responses(client: tinker.ServiceClient, responded: Callable[[httpx.Response], None]) -> None:
    """Have `responded` called with each response to the client, and to the models made with it.

    The SDK retries in silence, and hands out no HTTP client of its own. The one thing of its that sees each response,
    and that this connection alone uses, is what puts the key into requests. The content of a response has not arrived
    yet, but for those that ask for a payment.
    """
    auth: Any = client.holder._default_auth
    auth.async_auth_flow = functools.partial(_observed, auth.async_auth_flow, responded)


async def _observed(
    flow_of: Callable[[httpx.Request], AsyncGenerator[httpx.Request, httpx.Response]],
    responded: Callable[[httpx.Response], None],
    request: httpx.Request,
) -> AsyncGenerator[httpx.Request, httpx.Response]:
    flow = flow_of(request)
    try:
        request = await anext(flow)
        while True:
            response = yield request
            if response.status_code == PAYMENT_REQUIRED:
                await response.aread()
            responded(response)
            request = await flow.asend(response)
    except StopAsyncIteration:
        return
    finally:
        await flow.aclose()
