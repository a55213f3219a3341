"""`python -m app adapters traffic|promote|abort`: roll-outs of a running gateway."""

from typing import Annotated, Any

import typer

from app.cli.client import (
    LOCAL,
    AdapterName,
    Json,
    Key,
    Url,
    answer_of,
    client_of,
    fail,
    out,
    print_json,
    show_version,
)
from app.observe.fitted_table import FittedTable


def traffic(
    name: AdapterName,
    weights: Annotated[
        list[str] | None, typer.Argument(metavar="[VERSION=PERCENT]...", help="Such as 3=95 4=5; default: show them")
    ] = None,
    shadow: Annotated[int | None, typer.Option(help="Version that gets copies of the others' requests")] = None,
    guard: Annotated[bool, typer.Option("--guard", help="Abort by itself if a version does worse")] = False,
    url: Url = LOCAL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Give versions of an adapter a share of its requests each, or show the shares."""
    if not weights and (shadow is not None or guard):
        fail("name the weights as well, such as 3=100", 2)
    body: dict[str, Any] = dict(map(_weight, weights or ()))
    if len(body) != len(weights or ()):
        fail("each version once", 2)
    body |= {"shadow": shadow} if shadow is not None else {}
    body |= {"guard": True} if guard else {}
    with client_of(url, key) as client:
        path = f"/adapters/{name}/traffic"
        answer = answer_of(client.put(path, json=body) if weights else client.get(path))
    if as_json:
        print_json(answer)
    else:
        out.print(_table(answer))


def promote(
    name: AdapterName,
    version: Annotated[int | None, typer.Argument(help="Version; default: the only candidate")] = None,
    url: Url = LOCAL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """End a roll-out by giving every request to one of its versions."""
    params = {} if version is None else {"version": version}
    with client_of(url, key) as client:
        show_version(answer_of(client.post(f"/adapters/{name}/traffic/promote", params=params)), as_json)


def abort(name: AdapterName, url: Url = LOCAL, key: Key = None, as_json: Json = False) -> None:
    """End a roll-out by giving every request to the stable version."""
    with client_of(url, key) as client:
        show_version(answer_of(client.post(f"/adapters/{name}/traffic/abort")), as_json)


def _weight(text: str) -> tuple[str, int]:
    version, _, weight = text.partition("=")
    if not (version.isdecimal() and weight.isdecimal()):
        fail(f"{text!r} is not VERSION=PERCENT, such as 4=5", 2)
    return version, int(weight)


def _table(traffic: dict[str, Any]) -> FittedTable:
    rows = []
    for one in traffic["versions"]:
        parts = ["stable"] if one["version"] == traffic["stable_version"] else []
        parts += ["shadow"] if one["shadow"] else []
        parts += [f"withheld: {one['withheld']}"] if one["withheld"] else []
        rows.append((f"{traffic['name']}@{one['version']}", str(one["weight"]), ", ".join(parts)))
    return FittedTable(("version", "per cent", "part"), rows, {"per cent"})
