"""Response models about webhooks."""

from app.api.schemas import Time, View


class ShownWebhook(View):
    """One webhook. topics: kinds of message that it gets."""

    id: str
    url: str
    topics: list[str]
    created_at: Time


class NewWebhook(ShownWebhook):
    """A webhook that was just made. secret: by which its messages are signed, shown this once."""

    secret: str


class ShownWebhooks(View):
    """Webhooks of one tenant, the oldest first."""

    webhooks: list[ShownWebhook]


class ShownMessage(View):
    """One message to a webhook. attempts: tries so far. status: of the last answer, null if there was none.

    problem: reason why there was none. next_at: time of the next try, null if there will be none.
    """

    id: str
    topic: str
    created_at: Time
    delivery: str
    attempts: int
    status: int | None
    problem: str
    next_at: Time | None


class ShownMessages(View):
    """Newest messages to a webhook, the newest first."""

    messages: list[ShownMessage]


class Pinged(View):
    """Id of a message that will be sent."""

    message: str
