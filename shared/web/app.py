"""Makes the app of a service from the parts of the web layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from flask import Flask, Request
from flask.json.provider import DefaultJSONProvider
from werkzeug.exceptions import NotFound
from werkzeug.routing import RequestRedirect

from shared.web import (
    health,
    json_body,
    middleware,
    paging,
    proxy_and_cors,
    query_parameters,
    sessions,
)
from shared.web.idempotency import request_keys
from shared.web.openapi import api, docs_pages
from shared.web.problems import handlers, pages, problem_types

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sqlalchemy.orm import Session, sessionmaker

    from settle_outbox.errors import SettleError
    from shared.settings import WebSettings
    from shared.web.blueprint import Blueprint

# These limits bound the time of a request. A request that waits for a lock of a frozen process ends
# with an error: 503, or 409 for the lock of an Idempotency-Key. The last setting ends the
# transaction of a frozen worker, which frees its locks.
SESSION_SETTINGS = {
    "lock_timeout": "2s",
    "statement_timeout": "5s",
    "idle_in_transaction_session_timeout": "10s",
}

# Maximum time of a transaction when the database server is frozen and ends nothing itself. It is
# longer than statement_timeout, so that the server ends a statement that is only slow before this
# limit is reached.
TRANSACTION_S = 8.0


class _App(Flask):
    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        # No view is a coroutine, and Flask would check about ten times a request.
        return func

    def raise_routing_exception(self, request: Request) -> NoReturn:
        # Answer a path such as /order//1 with 404, not with a redirect in HTML.
        if isinstance(request.routing_exception, RequestRedirect):
            raise NotFound
        super().raise_routing_exception(request)


class _Json(DefaultJSONProvider):
    sort_keys = False
    ensure_ascii = False


def make_app(
    name: str,
    *,
    title: str,
    description: str,
    blueprints: Sequence[Blueprint],
    session_factory: sessionmaker[Session],
    settings: WebSettings,
    revision: str,
    domain: Mapping[type[SettleError], problem_types.ProblemType],
) -> Flask:
    """Make a service's app.

    Args:
        name: the service's package.
        title: name of the service.
        description: a sentence or two about the service.
        blueprints: the service's calls.
        session_factory: of the service's database.
        settings: of the service's API.
        revision: the database revision that the code needs.
        domain: the problem type of each error that the use cases raise.
    """
    app = _App(name, static_folder=None)
    app.json = _Json(app)
    sessions.register(app, session_factory)
    proxy_and_cors.register(app, settings)
    json_body.register(app)
    query_parameters.register(app)
    paging.register(app, settings)
    request_keys.register(app, settings)
    described = api.make_api(app, title=title, description=description)
    for blueprint in (*blueprints, health.make_blueprint(revision)):
        described.register_blueprint(blueprint)
    docs_pages.register(app, described, title=title, description=description)
    pages.register(app, {*problem_types.COMMON, *domain.values()})
    handlers.register(app, request_keys.PROBLEMS | dict(domain))
    middleware.register(app)
    return app
