"""The API: ``flask --app notifications.app run``."""

import os
from uuid import UUID

from flask import Flask, request
from sqlalchemy import create_engine, select
from sqlalchemy.orm import sessionmaker

import settle_outbox as outbox
from notifications.models import Notification
from notifications.sending import send


def create_app() -> Flask:
    """Make the app. Call it after fork, because processes must not share connections."""
    app = Flask(__name__)
    url = os.environ["NOTIFICATIONS_DATABASE_URL"]
    sessions = sessionmaker(create_engine(url))
    outbox.notify_after_commit(sessions, url)  # without it, events wait for the relay's next poll

    @app.post("/notifications")
    def post() -> tuple[dict[str, str], int]:
        with sessions.begin() as session:
            sent = send(session, UUID(request.json["user_id"]), request.json["text"])
            answer = {"id": str(sent.id)}
        return answer, 201

    @app.get("/notifications/<uuid:user_id>")
    def read(user_id: UUID) -> list[str]:
        with sessions() as session:
            of_user = select(Notification.text).where(Notification.user_id == user_id)
            return list(session.scalars(of_user.order_by(Notification.created_at)))

    return app
