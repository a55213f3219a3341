"""Routes for webhooks: addresses that are told what becomes of a tenant's adapters."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from app.api.access.caller import about, guarded
from app.api.bodies import UNCACHED, posted
from app.api.dependencies import Context, context
from app.api.openapi import body
from app.api.webhook_schemas import NewWebhook, Pinged, ShownMessage, ShownMessages, ShownWebhook, ShownWebhooks
from app.domain.outside import MAX_URL
from app.domain.tenants import full_name
from app.domain.webhook import SUBSCRIBABLE, Delivery, Message, Webhook

router = APIRouter(tags=["webhooks"], dependencies=[Depends(guarded)])
Ctx = Annotated[Context, Depends(context)]

MAX_BODY: Final = 2 * MAX_URL + 2048
"""Most bytes of a body: a URL, escaped or not, and the topics."""


class NewHook(BaseModel):
    """Body of a request for a webhook. topics: default: all."""

    model_config = ConfigDict(extra="forbid", strict=True)

    url: str = Field(max_length=MAX_URL)
    topics: list[str] | None = Field(None, min_length=1, max_length=len(SUBSCRIBABLE))


@router.get("/tenants/{tenant}/webhooks", response_model=ShownWebhooks)
async def webhooks(tenant: str, ctx: Ctx) -> Response:
    """List a tenant's webhooks."""
    found = await ctx.webhooks.of_tenant(tenant)
    return ShownWebhooks(webhooks=[ShownWebhook(**_fields(one)) for one in found]).response()


@router.post(
    "/tenants/{tenant}/webhooks",
    status_code=201,
    response_model=NewWebhook,
    openapi_extra=body(NewHook.model_json_schema()),
)
async def create(tenant: str, request: Request, ctx: Ctx) -> Response:
    """Make a webhook. The answer holds the secret by which its messages are signed; it is shown this once."""
    about(request, full_name(tenant, ""))
    wanted = await posted(request, NewHook, MAX_BODY)
    made, secret = await ctx.webhooks.create(tenant, wanted.url, wanted.topics)
    about(request, full_name(tenant, made.id))
    return NewWebhook(**_fields(made), secret=secret).response(201, UNCACHED)


@router.delete("/tenants/{tenant}/webhooks/{webhook}", status_code=204)
async def delete(tenant: str, webhook: str, request: Request, ctx: Ctx) -> Response:
    """Delete a webhook, and the messages that wait for it."""
    about(request, full_name(tenant, webhook))
    await ctx.webhooks.delete(tenant, webhook)
    return Response(status_code=204)


@router.post("/tenants/{tenant}/webhooks/{webhook}/ping", status_code=202, response_model=Pinged)
async def ping(tenant: str, webhook: str, request: Request, ctx: Ctx) -> Response:
    """Have a message of the type `ping` sent, to try the receiver."""
    about(request, full_name(tenant, webhook))
    return Pinged(message=await ctx.webhooks.ping(tenant, webhook)).response(202)


@router.get("/tenants/{tenant}/webhooks/{webhook}/messages", response_model=ShownMessages)
async def messages(tenant: str, webhook: str, ctx: Ctx) -> Response:
    """List the newest messages to a webhook, with what came of each."""
    found = await ctx.webhooks.messages(tenant, webhook)
    return ShownMessages(messages=[_shown(one) for one in found]).response()


def _fields(webhook: Webhook) -> Mapping[str, Any]:
    return {"id": webhook.id, "url": webhook.url, "topics": sorted(webhook.topics), "created_at": webhook.created_at}


def _shown(message: Message) -> ShownMessage:
    next_at = message.next_at if message.delivery is Delivery.WAITING else None
    return ShownMessage(**(asdict(message) | {"next_at": next_at}))
