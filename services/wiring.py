"""Puts an API process together: settings, database, delivery engine, web layer."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import settle_outbox as outbox
from settle_outbox.log import configure_logging
from settle_outbox.runtime.failpoints import arm
from settle_outbox.storage.database import make_engine, make_sessions
from shared import migrations
from shared.settings import WebSettings, read_web_settings
from shared.web.app import SESSION_SETTINGS, TRANSACTION_S, make_app

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flask import Flask

    from settle_outbox import Service
    from settle_outbox.errors import SettleError
    from shared.web.blueprint import Blueprint
    from shared.web.problems.problem_types import ProblemType

# Connections beyond one for each thread: a thread uses at most one.
SPARE_CONNECTIONS = 2


def prepare_process(service: Service) -> WebSettings:
    """Read a service's settings from the environment, set up logging, and arm the failpoints.

    Raises:
        SettingsError: a setting is missing or wrong.
    """
    settings = read_web_settings(service.name)
    configure_logging(level=settings.log_level, form=settings.log_format)
    arm(os.environ)
    return settings


def make_service_app(
    service: Service,
    settings: WebSettings,
    *,
    description: str,
    blueprint: Blueprint,
    problems: Mapping[type[SettleError], ProblemType],
) -> Flask:
    """Make the app of a service, with its connections to the database. Call it after fork.

    The arguments are those of `shared.web.app.make_app`.
    """
    engine = make_engine(
        settings.database_url,
        application_name=f"{service.name}-api",
        pool_size=settings.api_threads + SPARE_CONNECTIONS,
        session_settings=SESSION_SETTINGS,
        deadline_s=TRANSACTION_S,
    )
    sessions = make_sessions(engine, aggregatetypes=service.aggregatetypes)
    outbox.notify_after_commit(sessions, settings.database_url)
    return make_app(
        f"services.{service.name}",
        title=f"Settle {service.name}",
        description=description,
        blueprints=[blueprint],
        session_factory=sessions,
        settings=settings,
        revision=migrations.head(service.name),
        domain=problems,
    )
