"""The app factory that the services' factories call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from flask import Flask
from flask.json.provider import DefaultJSONProvider
from werkzeug.exceptions import NotFound
from werkzeug.routing import RequestRedirect

from shared.web import (
    access_log,
    caching,
    health,
    json_body,
    paging,
    proxy_and_cors,
    query_parameters,
    sessions,
    tracing,
)
from shared.web.idempotency import request_keys
from shared.web.openapi import api, docs_pages
from shared.web.problems import documents, pages, problem_types

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from flask import Request
    from sqlalchemy.orm import Session, sessionmaker

    from settle_outbox.errors import SettleError
    from shared.settings import WebSettings
    from shared.web.blueprint import Blueprint

# Of a worker (deploy/gunicorn.conf.py); each has one connection at most. Two to spare.
THREADS = 8
POOL_SIZE = THREADS + 2

# No request waits for longer: behind a lock whose holder is frozen, it ends as a 503. A worker that
# is frozen itself gives back what it locked.
SESSION_SETTINGS = {
    "lock_timeout": "2s",
    "statement_timeout": "5s",
    "idle_in_transaction_session_timeout": "10s",
}

# And by ourselves, when a server that is frozen does not. More than a statement may take, so that
# it is the server that ends what is merely slow.
TRANSACTION_S = 8.0


class _App(Flask):
    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        # None here is a coroutine; Flask looks some ten times a request.
        return func

    def raise_routing_exception(self, request: Request) -> NoReturn:
        # Where routing would redirect, /order//1 say, it would do so with a page of HTML.
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
    domain: Mapping[type[SettleError], problem_types.Kind],
) -> Flask:
    """Make a service's app.

    Args:
        name: the service's package.
        title: the service, for a person.
        description: what it is for, in a sentence or two.
        blueprints: its calls.
        session_factory: sessions on its database.
        settings: of the service's API.
        revision: the migration that its code is made for.
        domain: the kind of problem for each error that its use cases raise.
    """
    app = _App(name, static_folder=None)
    app.json = _Json(app)
    access_log.register(app)
    sessions.register(app, session_factory)
    tracing.register(app)
    caching.register(app)
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
    documents.register(app, domain)
    return app
