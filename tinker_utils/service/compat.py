"""Every reach into what the `tinker` SDK keeps for itself; tests/service/test_compat.py guards them."""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx
    import tinker

PAYMENT_REQUIRED = 402


def default_address() -> str:
    """Return where the SDK sends requests when it is told no address."""
    from tinker.lib.base_url import resolve_base_url

    return resolve_base_url()


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
