"""The app factory that the services' factories call."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flask import Flask
from flask.json.provider import DefaultJSONProvider

from shared.web import bodies, docs, health, problems, sessions, tracing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy.orm import Session, sessionmaker

    from shared.errors import SettleError
    from shared.web.blueprint import Blueprint

# A worker has 8 threads (deploy/gunicorn.conf.py), each with one connection at most; two to spare.
POOL_SIZE = 10


class _Json(DefaultJSONProvider):
    sort_keys = False
    ensure_ascii = False


def make_app(
    name: str,
    *,
    title: str,
    blueprints: Sequence[Blueprint],
    session_factory: sessionmaker[Session],
    revision: str,
    statuses: Mapping[type[SettleError], int],
) -> Flask:
    """Make a service's app.

    Args:
        name: the service's package.
        title: the service, for a person.
        blueprints: its calls.
        session_factory: sessions on its database.
        revision: the migration that its code is made for.
        statuses: the HTTP status of each error that its use cases raise.
    """
    app = Flask(name, static_folder=None)
    app.json = _Json(app)
    # "/order//1" is nothing, instead of a redirect with a page of HTML.
    app.url_map.merge_slashes = False
    sessions.register(app, session_factory)
    tracing.register(app)
    bodies.register(app)
    api = docs.register(app, title=title)
    for blueprint in blueprints:
        api.register_blueprint(blueprint)
    health.register(app, revision=revision)
    problems.register(app, statuses)
    return app
