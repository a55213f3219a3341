"""`tenants` and `webhooks` as an operator runs them, against a gateway over the simulated engine."""

import json
from pathlib import Path

from tests.cli.test_adapters import Shell, listening, shell  # noqa: F401 - `shell` is a fixture
from tests.support.gateway import OpenHouse
from tests.support.receiver import receiving
from tests.support.waiting import until


async def test_keys_of_a_tenant_from_the_first_to_the_last(shell: Shell) -> None:  # noqa: F811
    for command, said in (("tenants keys acme", "none"), ("usage", "nothing was used in that time")):
        nothing = await shell(*command.split())
        assert (nothing.status, nothing.out.strip()) == (0, said)
    made = await shell(
        "tenants", "new-key", "acme", "--name", "app", "--role", "upload", "--role", "chat", "--days", "1"
    )
    assert (made.status, made.err.splitlines()[0][:26]) == (0, "app of acme: chat, upload,")
    key = made.out.strip()
    given = {"GATEWAY_API_KEY": key}
    folder = shell.adapter("sql")
    pushed = await shell("adapters", "push", "sql", folder, "--key", key)
    assert pushed.status in (0, 3), pushed.err
    listed = await shell("adapters", "list", "--key", key)
    assert "sql" in listed.out
    mine = await shell("adapters", "list")
    assert "no adapters yet" in mine.out, "the operator's own tenant has none"
    theirs = await shell("adapters", "list", "--json", given={"GATEWAY_TENANT": "acme"})
    assert [one["name"] for one in json.loads(theirs.out)] == ["sql"]
    assert (await shell("chat", "sql", "hello", "--key", key)).status == 0
    used = await shell("usage", given={"GATEWAY_TENANT": "acme"})
    assert [line.split()[:5] for line in used.out.splitlines() if "app" in line] == [["acme", "app", "sql", "1", "1"]]
    lines = await shell("usage", "--csv")
    assert lines.out.splitlines()[0].startswith("hour,tenant,key,adapter,version,requests,")
    assert len(lines.out.splitlines()) == 2
    wrong = await shell("usage", "--csv", "--since", "never")
    assert (wrong.status, "bad_request" in wrong.err) == (1, True)
    tenants = await shell("tenants", "list", "--json")
    assert json.loads(tenants.out)[0] == {"tenant": "acme", "adapters": 1, "keys": 1}
    rotated = await shell("tenants", "rotate", "acme", "--name", "app", "--overlap", "60")
    assert rotated.out.strip() != key
    for each in (key, rotated.out.strip()):
        assert (await shell("adapters", "list", "--key", each)).status == 0
    table = await shell("tenants", "keys", "acme")
    assert table.out.split()[:2] == ["name", "roles"]
    assert "chat, upload" in table.out
    assert (await shell("tenants", "revoke", "acme", "--name", "app")).status == 0
    for each in (key, rotated.out.strip()):
        refused = await shell("adapters", "list", "--key", each)
        assert (refused.status, "unauthorized" in refused.err) == (1, True)
    gone = await shell("tenants", "revoke", "acme", "--name", "app", given=given)
    assert (gone.status, "key_not_found" in gone.err) == (1, True)


async def test_limits_of_a_tenant_are_set_one_by_one(shell: Shell) -> None:  # noqa: F811
    changed = await shell("tenants", "limits", "acme", "requests_per_minute=600", "adapters=50", "--json")
    assert (changed.status, json.loads(changed.out)[0]) == (0, {"limit": "adapters", "most": 50, "stored": 0})
    assert (await shell("tenants", "limits", "acme", "adapters=none")).status == 0
    shown = json.loads((await shell("tenants", "limits", "acme", "--json")).out)
    assert {one["limit"]: one["most"] for one in shown if one["most"] is not None} == {"requests_per_minute": 600}
    for wrong in ("adapters", "adapters=-1", "adapters=x"):
        refused = await shell("tenants", "limits", "acme", wrong)
        assert (refused.status, "requests_per_minute=600" in refused.err) == (2, True)
    unknown = await shell("tenants", "limits", "acme", "chats=1")
    assert (unknown.status, "bad_request" in unknown.err) == (1, True)


async def test_rules_of_a_tenant_are_set_one_by_one(shell: Shell, tmp_path: Path) -> None:  # noqa: F811
    changed = await shell("tenants", "policy", "acme", "max_removed_share=0.25", "unscorable=reject", "--json")
    assert changed.status == 0, changed.err
    shown = {one["value"]: one for one in json.loads(changed.out)}
    assert shown["max_removed_share"] == {"value": "max_removed_share", "own": 0.25, "in force": 0.25}
    assert (shown["max_pruned_share"]["own"], shown["max_pruned_share"]["in force"]) == (None, 0.5)
    assert (await shell("tenants", "policy", "acme", "unscorable=none")).status == 0
    kept = json.loads((await shell("tenants", "policy", "acme", "--json")).out)
    assert {one["value"]: one["own"] for one in kept if one["own"] is not None} == {"max_removed_share": 0.25}
    weaker = await shell("tenants", "policy", "acme", "max_removed_share=0.75")
    assert (weaker.status, "weaker_policy: max_removed_share 0.75 is weaker than 0.5" in weaker.err) == (1, True)
    for wrong in ("tau", "tau=", "tau=nan", "tau=low"):
        assert (await shell("tenants", "policy", "acme", wrong)).status == 2
    none = await shell("tenants", "canaries", "acme", "--json")
    assert (none.status, json.loads(none.out)) == (0, [])
    (tmp_path / "own.jsonl").write_text('{"id": "a", "prompt": "p", "category": "c", "expect": "refuse"}\n')
    refused = await shell("tenants", "canaries", "acme", str(tmp_path / "own.jsonl"))
    assert (refused.status, "no canaries (GATEWAY_CANARIES)" in refused.err) == (1, True)


async def test_webhooks_of_a_tenant_from_the_first_to_the_last(open_gateway: OpenHouse, tmp_path: Path) -> None:
    given = {"webhook_secret": "0123456789abcdef" * 2}
    with receiving() as receiver:
        async with (
            open_gateway(webhook_targets=receiver.origin, **given) as running,
            listening(running, tmp_path) as shell,
        ):
            elsewhere = await shell("webhooks", "add", "acme", "https://example.com/")
            assert (elsewhere.status, "GATEWAY_WEBHOOK_TARGETS" in elsewhere.err) == (1, True)
            made = await shell("webhooks", "add", "acme", receiver.origin, "--topic", "version.ready")
            assert (made.status, made.out[:6]) == (0, "whsec_")
            (listed,) = json.loads((await shell("webhooks", "list", "acme", "--json")).out)
            assert (listed["url"], listed["topics"]) == (receiver.origin, ["version.ready"])
            pinged = await shell("webhooks", "ping", "acme", listed["id"], "--json")
            assert json.loads(pinged.out)["message"].startswith("msg_")
            await until(lambda: bool(receiver.got))
            assert receiver.got[0].verified(made.out.strip())["type"] == "ping"
            shown = await shell("webhooks", "messages", "acme", listed["id"])
            assert "ping" in shown.out
            assert (await shell("webhooks", "remove", "acme", listed["id"])).status == 0
            gone = await shell("webhooks", "ping", "acme", listed["id"])
            assert (gone.status, "webhook_not_found" in gone.err) == (1, True)
