"""The cyclic collector never stops a served gateway for long."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from app.demo.assets import REFERENCE

PROGRAM: Final = """
import gc, json, sys, time
import uvicorn
from app.server.app import run
from app.server.settings import Settings

def stop(begin=[0.0]):
    begin[0] = time.perf_counter()
    gc.collect()
    return time.perf_counter() - begin[0]

def served(server):
    frozen = stop()
    gc.unfreeze()
    print(json.dumps({"frozen": frozen, "whole": stop()}))
    server.started = True

uvicorn.Server.run = served
run(Settings(**json.loads(sys.argv[1])))
"""
"""A gateway that ends where it would begin to serve, and tells how long a full collection stops it, and would have."""


@pytest.mark.parametrize("sandbox", [False, True])
def test_a_full_collection_of_a_gateway_about_to_serve_is_a_twentieth_of_what_it_would_be(
    tmp_path: Path, sandbox: bool
) -> None:
    settings = {"reference": str(REFERENCE), "data": str(tmp_path), "model": str(tmp_path), "open": True}
    settings |= {"engine_url": "http://127.0.0.1:9", "served_model_name": "m", "screen_sandbox": sandbox}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(settings)], capture_output=True, text=True, timeout=120, check=True
    )
    took = json.loads(done.stdout.splitlines()[-1])
    assert took["frozen"] < took["whole"] / 20
