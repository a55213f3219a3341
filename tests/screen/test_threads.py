"""Threads for measuring: several where a module is work for one, otherwise a single one."""

import torch

from app.domain.lora import LoraModule
from app.screen.threads import WORTH_A_THREAD, each, threads_for, usable_cores


def modules(rank: int, width: int, count: int = 3) -> list[LoraModule]:
    return [LoraModule(f"m{i}", torch.zeros(rank, width), torch.zeros(width, rank), 1.0) for i in range(count)]


def test_small_modules_get_one_thread_and_large_ones_all_cores() -> None:
    assert threads_for(modules(8, 128)) == 1
    assert threads_for(modules(64, WORTH_A_THREAD // 128)) == usable_cores()


def test_results_come_in_order_whatever_the_threads() -> None:
    assert [each(lambda n: n * n, range(50), workers) for workers in (1, 2, 8)] == [[n * n for n in range(50)]] * 3
