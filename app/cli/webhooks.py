"""`python -m app webhooks`: commands that manage a tenant's webhooks on a running gateway over HTTP."""

from typing import Annotated, Any, Final

import typer

from app.cli.client import LOCAL, Json, Key, Url, answer_of, client_of, err, out, print_json, show_table
from app.domain.webhook import SUBSCRIBABLE

webhooks = typer.Typer(no_args_is_help=True, help="Make, list, try and delete webhooks of a tenant.")

TOPICS: Final = ", ".join(sorted(SUBSCRIBABLE))

Tenant = Annotated[str, typer.Argument(help="Tenant, such as acme; the operator's own is default")]
Webhook = Annotated[str, typer.Argument(help="Id of the webhook, as `webhooks list` prints it")]


@webhooks.command("list")
def list_webhooks(tenant: Tenant, url: Url = LOCAL, key: Key = None, as_json: Json = False) -> None:
    """List a tenant's webhooks."""
    with client_of(url, key) as client:
        found = answer_of(client.get(f"/tenants/{tenant}/webhooks"))["webhooks"]
    show_table(found, ("id", "url", "topics", "created_at"), as_json)


@webhooks.command("add")
def add(
    tenant: Tenant,
    target: Annotated[str, typer.Argument(help="URL that gets the messages")],
    topic: Annotated[
        list[str] | None, typer.Option(help=f"Kind of message, repeatable; default: all of {TOPICS}")
    ] = None,
    url: Url = LOCAL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Make a webhook and print the secret that its messages are signed with, once."""
    wanted: dict[str, Any] = {"url": target} | ({"topics": topic} if topic else {})
    with client_of(url, key) as client:
        made = answer_of(client.post(f"/tenants/{tenant}/webhooks", json=wanted))
    if as_json:
        print_json(made)
        return
    err.print(f"{made['id']} of {tenant}. Its secret, shown this once:", highlight=False, soft_wrap=True)
    typer.echo(made["secret"])


@webhooks.command("ping")
def ping(tenant: Tenant, webhook: Webhook, url: Url = LOCAL, key: Key = None, as_json: Json = False) -> None:
    """Have a message of the type `ping` sent; `webhooks messages` says what came of it."""
    with client_of(url, key) as client:
        sent = answer_of(client.post(f"/tenants/{tenant}/webhooks/{webhook}/ping"))
    if as_json:
        print_json(sent)
    else:
        out.print(f"{sent['message']} will be sent", highlight=False)


@webhooks.command("messages")
def messages(tenant: Tenant, webhook: Webhook, url: Url = LOCAL, key: Key = None, as_json: Json = False) -> None:
    """List the newest messages to a webhook, with what came of each."""
    with client_of(url, key) as client:
        found = answer_of(client.get(f"/tenants/{tenant}/webhooks/{webhook}/messages"))["messages"]
    show_table(found, ("created_at", "topic", "delivery", "attempts", "status", "problem", "next_at", "id"), as_json)


@webhooks.command("remove")
def remove(tenant: Tenant, webhook: Webhook, url: Url = LOCAL, key: Key = None) -> None:
    """Delete a webhook, and the messages that wait for it."""
    with client_of(url, key) as client:
        answer_of(client.delete(f"/tenants/{tenant}/webhooks/{webhook}"))
    out.print(f"{webhook} of {tenant} is deleted", highlight=False)
