"""`python -m app keys`: command that creates an API key."""

import sys
from typing import Annotated

import typer

from app.domain.api_keys import Role, new_key

keys = typer.Typer(no_args_is_help=True, help="Make API keys.")


@keys.callback()
def _group() -> None:
    """Group the subcommands: without this callback typer would drop the name `new`, the only one."""


@keys.command("new")
def new(
    name: Annotated[str, typer.Option(help="Name of the key in logs; unique in the file")],
    role: Annotated[
        list[Role], typer.Option(help="upload, chat, metrics, engine or admin; may be given several times")
    ],
    owner: Annotated[
        str | None, typer.Option(help="Label of the keys that own the same adapters; default: the key's own name")
    ] = None,
) -> None:
    """Print a new key, once, to standard error, and the line for GATEWAY_API_KEYS_FILE to standard output.

    For example, `python -m app keys new --name ci --role upload >> keys` stores the line and shows the key.
    """
    try:
        key, stored = new_key(name, role, owner)
    except ValueError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    typer.echo(f"The key, shown this once: {key}", err=True)
    sys.stdout.write(f"{stored.line}\n")
