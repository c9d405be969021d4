"""Store and publish notifications. The callers commit."""

from uuid import UUID

from sqlalchemy.orm import Session

import settle_outbox as outbox
from notifications.models import Notification


def send(session: Session, user_id: UUID, text: str) -> Notification:
    """Store a notification, and publish `notification.sent` in the same transaction."""
    notification = Notification(user_id=user_id, text=text)
    session.add(notification)
    session.flush()  # sets notification.id
    outbox.add(
        session,
        outbox.Event(
            aggregatetype="notifications",
            aggregateid=str(user_id),
            type="notification.sent",
            data={"notification_id": notification.id, "user_id": user_id, "text": text},
        ),
    )
    return notification
