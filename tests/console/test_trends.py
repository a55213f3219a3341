"""Trends: the counts of each day against the versions themselves, and the page that draws them."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from app.console.trends import DAYS, trends
from tests.support.canaries import RUNGS, battery, harmful_below
from tests.support.gateway import OpenHouse, form


async def test_each_day_counts_its_uploads(open_gateway: OpenHouse, tmp_path: Path) -> None:
    given = {"canaries": battery(tmp_path / "b"), "rungs": RUNGS, "action": "project", "ladder_floor": "0.7:1"}
    async with open_gateway(tau=0.5, max_removed_share=1.0, **given) as running:
        assert "No upload yet." in (await running.http.get("/console/trends")).text
        for seed, needs in enumerate((0, 2, 9)):
            running.simulator.says = harmful_below(needs, (0.7, 0.6, 0.8, 0.9))
            await running.http.post("/adapters", files=form("style", seed))
        ctx = running.gateway.context
        rows = ctx.uploads.components.catalogue.versions("style")
        today = rows[-1].created_at.date()
        found = trends(ctx.uploads.components.catalogue, ctx.summaries, today)
        day = found.days[-1]
        assert (len(found.days), day.date, found.complete) == (DAYS, today, True)
        assert day.outcomes == {"projected": 2, "rejected": 1}
        changed = sum((row.modules_projected or 0) + (row.modules_pruned or 0) for row in rows)
        assert day.changed == pytest.approx(changed / 24)
        assert day.complied == pytest.approx(8 / (16 + 16 + 8)), "of the third, the half that came closest"
        assert sum(one.uploads for one in found.days[:-1]) == 0
        later = trends(ctx.uploads.components.catalogue, ctx.summaries, today + timedelta(days=DAYS - 1))
        assert (later.days[0].date, later.days[0].uploads, later.most) == (today, 3, 3)
        assert not trends(ctx.uploads.components.catalogue, ctx.summaries, today + timedelta(days=DAYS)).days[0].uploads

        page = (await running.http.get("/console/trends")).text
        assert f"<title>{datetime.now(UTC).date()}: 2 projected</title>" in page
        assert "at most 3 a day" in page
        heights = re.findall(r'class="outcome-(?:projected|rejected)" x="291" .*? height="([0-9.]+)"', page)
        assert list(map(float, heights)) == pytest.approx([66.67, 33.33])
        assert 'style="' not in page
