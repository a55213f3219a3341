"""`python -m app tenants`: commands that manage tenants' keys, limits and rules of a running gateway over HTTP."""

import math
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from app.cli.client import LOCAL, Json, Key, Url, answer_of, client_of, err, out, print_json, show_table
from app.domain.api_keys import Role
from app.domain.policy import Unscorable

DAY_S: Final = 86_400

tenants = typer.Typer(
    no_args_is_help=True, help="List tenants; make, list, rotate and revoke their keys; set their limits and rules."
)

Tenant = Annotated[str, typer.Argument(help="Tenant, such as acme; the operator's own is default")]
Name = Annotated[str, typer.Option(help="Name of the key")]


@tenants.command("list")
def list_tenants(url: Url = LOCAL, key: Key = None, as_json: Json = False) -> None:
    """List the tenants that have an adapter or a key made at run time."""
    with client_of(url, key) as client:
        found = answer_of(client.get("/tenants"))["tenants"]
    show_table(found, ("tenant", "adapters", "keys"), as_json)


@tenants.command("keys")
def keys(tenant: Tenant, url: Url = LOCAL, key: Key = None, as_json: Json = False) -> None:
    """List a tenant's keys that were made at run time."""
    with client_of(url, key) as client:
        found = answer_of(client.get(f"/tenants/{tenant}/keys"))["keys"]
    show_table(found, ("name", "roles", "owner", "created_at", "expires_at", "last_used_at", "previous_until"), as_json)


@tenants.command("limits")
def limits(
    tenant: Tenant,
    change: Annotated[
        list[str] | None, typer.Argument(help="Limits to set, such as requests_per_minute=600 or adapters=none")
    ] = None,
    url: Url = LOCAL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Show the limits of a tenant and what it stores; with NAME=NUMBER or NAME=none, set those limits first."""
    path = f"/tenants/{tenant}/limits"
    with client_of(url, key) as client:
        found = answer_of(client.get(path))
        if change:
            found = answer_of(client.put(path, json=found["limits"] | dict(map(_limit, change))))
    stored = found["stored"]
    rows = [{"limit": name, "most": most, "stored": stored.get(name)} for name, most in found["limits"].items()]
    show_table(rows, ("limit", "most", "stored"), as_json)


@tenants.command("policy")
def policy(
    tenant: Tenant,
    change: Annotated[
        list[str] | None, typer.Argument(help="Values to set, such as max_removed_share=0.2 or unscorable=none")
    ] = None,
    url: Url = LOCAL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Show the policy of a tenant; with NAME=VALUE or NAME=none (the operator's value), set those of its own first."""
    path = f"/tenants/{tenant}/policy"
    with client_of(url, key) as client:
        found = answer_of(client.get(path))
        if change:
            found = answer_of(client.put(path, json=found["policy"] | dict(map(_value, change))))
    rows = [{"value": name, "own": own, "in force": found["in_force"][name]} for name, own in found["policy"].items()]
    show_table(rows, ("value", "own", "in force"), as_json)


def _value(change: str) -> tuple[str, Any]:
    name, _, value = change.partition("=")
    words = {"none": None, **{one.value: one.value for one in Unscorable}}
    try:
        return name.replace("-", "_"), words[value] if value in words else _number(value)
    except ValueError as error:
        raise typer.BadParameter(f"{change!r} is not like max_removed_share=0.2 or unscorable=none") from error


def _number(text: str) -> float:
    found = int(text) if text.isdecimal() else float(text)
    if not math.isfinite(found):
        raise ValueError(text)
    return found


@tenants.command("canaries")
def canaries(
    tenant: Tenant,
    battery: Annotated[
        Path | None,
        typer.Argument(exists=True, dir_okay=False, help="Canaries to ask beside the operator's, JSON lines"),
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the tenant's own canaries")] = False,
    url: Url = LOCAL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Count the canaries that a tenant has of its own; with a file, replace them first."""
    path = f"/tenants/{tenant}/canaries"
    with client_of(url, key) as client:
        if remove:
            answer_of(client.delete(path))
        elif battery is not None:
            answer_of(client.put(path, content=battery.read_bytes()))
        found = answer_of(client.get(path))
    rows = [{"category": category, "to refuse": count} for category, count in found["categories"].items()]
    show_table(rows, ("category", "to refuse"), as_json)


def _limit(change: str) -> tuple[str, int | None]:
    name, _, value = change.partition("=")
    if value != "none" and not value.isdecimal():
        raise typer.BadParameter(f"{change!r} is not like requests_per_minute=600 or adapters=none")
    return name.replace("-", "_"), None if value == "none" else int(value)


@tenants.command("new-key")
def new_key(
    tenant: Tenant,
    name: Name,
    role: Annotated[list[Role], typer.Option(metavar="ROLE", help="upload, chat or admin; may be given several times")],
    owner: Annotated[str | None, typer.Option(help="Label of the keys that own the same adapters")] = None,
    days: Annotated[float | None, typer.Option(min=1 / DAY_S, help="Days until it expires; default: never")] = None,
    url: Url = LOCAL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Make a key and print it, once."""
    wanted: dict[str, Any] = {"name": name, "roles": [one.value for one in role], "owner": owner}
    wanted |= {"expires_in_seconds": None if days is None else round(days * DAY_S)}
    with client_of(url, key) as client:
        _print_key(answer_of(client.post(f"/tenants/{tenant}/keys", json=wanted)), as_json)


@tenants.command("rotate")
def rotate(
    tenant: Tenant,
    name: Name,
    overlap: Annotated[int, typer.Option(min=0, help="Seconds for which the key before is accepted as well")] = 0,
    url: Url = LOCAL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Replace a key under its name, and print the new one, once."""
    with client_of(url, key) as client:
        answer = answer_of(client.post(f"/tenants/{tenant}/keys/{name}/rotate", json={"overlap_seconds": overlap}))
    _print_key(answer, as_json)


@tenants.command("revoke")
def revoke(tenant: Tenant, name: Name, url: Url = LOCAL, key: Key = None) -> None:
    """Revoke a key: every gateway refuses it within a second."""
    with client_of(url, key) as client:
        answer_of(client.delete(f"/tenants/{tenant}/keys/{name}"))
    out.print(f"{name} of {tenant} is revoked", highlight=False)


def _print_key(answer: dict[str, Any], as_json: bool) -> None:
    """Print the key to standard output alone, so that it can be piped; what it is for goes to standard error."""
    if as_json:
        print_json(answer)
        return
    until = f", until {answer['expires_at']}" if answer["expires_at"] else ""
    about = f"{answer['name']} of {answer['tenant']}: {', '.join(answer['roles'])}{until}. Shown this once:"
    err.print(about, highlight=False, soft_wrap=True)
    typer.echo(answer["key"])
