"""Keeps schemathesis from requests that the schema cannot exclude."""

import schemathesis


def has_fractional_user_id(notification):
    """To JSON Schema 5.0 is an integer; to the service, which repeats ids byte for byte, it is none."""
    return isinstance(notification, dict) and isinstance(notification.get("user_id"), float)


@schemathesis.hook
def filter_body(context, body):
    notifications = body if isinstance(body, list) else [body]
    return not any(has_fractional_user_id(notification) for notification in notifications)
