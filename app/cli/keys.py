"""`python -m app keys`: make, list and revoke API keys of a keys file."""

import stat
import sys
from pathlib import Path
from typing import Annotated

import typer

from app.cli.client import Json, fail, out, print_json
from app.domain.api_keys import Key as StoredKey
from app.domain.api_keys import Role, new_key, parse_keys
from app.domain.tenants import DEFAULT
from app.observe.fitted_table import FittedTable

keys = typer.Typer(no_args_is_help=True, help="Make, list and revoke API keys.")


@keys.command("new")
def new(
    name: Annotated[str, typer.Option(help="Name of the key in logs; unique in the file")],
    role: Annotated[
        list[Role],
        typer.Option(metavar="ROLE", help="upload, chat, metrics, engine or admin; may be given several times"),
    ],
    owner: Annotated[
        str | None, typer.Option(help="Label of the keys that own the same adapters; default: the key's own name")
    ] = None,
    tenant: Annotated[str, typer.Option(help="Tenant of the key")] = DEFAULT,
) -> None:
    """Print a new key, once, to standard error, and the line for GATEWAY_API_KEYS_FILE to standard output.

    For example, `python -m app keys new --name ci --role upload >> keys` stores the line and shows the key.
    """
    try:
        key, stored = new_key(name, role, owner, tenant)
    except ValueError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    typer.echo(f"The key, shown this once: {key}", err=True)
    sys.stdout.write(f"{stored.line}\n")


KeysFile = Annotated[
    Path, typer.Argument(envvar="GATEWAY_API_KEYS_FILE", help="Keys file; default: that of GATEWAY_API_KEYS_FILE")
]


@keys.command("list")
def list_keys(file: KeysFile, as_json: Json = False) -> None:
    """List the keys of a file: names, roles, owners and tenants. Keys themselves are not in it."""
    found = _read(file)
    if as_json:
        print_json(
            [
                {"name": one.name, "roles": sorted(one.roles), "owner": one.owner or one.name, "tenant": one.tenant}
                for one in found
            ]
        )
        return
    rows = [(one.name, ", ".join(sorted(one.roles)), one.owner or one.name, one.tenant) for one in found]
    out.print(FittedTable(("name", "roles", "owner", "tenant"), rows))


@keys.command("revoke")
def revoke(file: KeysFile, name: Annotated[str, typer.Option(help="Name of the key")]) -> None:
    """Take a key out of a file. A gateway reads the file at its start: restart it."""
    if name not in {one.name for one in _read(file)}:
        fail(f"{file} has no key {name}")
    kept = [line for line in file.read_text(encoding="utf-8").splitlines() if line.split()[:1] != [name]]
    written = file.with_name(f".{file.name}.new")
    written.touch(mode=stat.S_IMODE(file.stat().st_mode), exist_ok=False)
    written.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    written.replace(file)
    out.print(f"{name} is revoked from the next start of the gateway on", highlight=False)


def _read(file: Path) -> tuple[StoredKey, ...]:
    try:
        return parse_keys(file.read_text(encoding="utf-8"))
    except ValueError as error:
        return fail(f"{file}: {error}")
