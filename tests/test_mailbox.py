"""The mailbox by itself, without Ray: who gets which work, and what comes too late."""

from __future__ import annotations

import asyncio
from typing import Any

from buttress.execution.mailbox import Mailbox


async def with_slot(name: str = "slot-0") -> Mailbox:
    mailbox = Mailbox()
    await mailbox.hello(name, "life", 0, 1, {"pid": 1, "host": "here", "node": "n"})
    return mailbox


def work(trial: str, attempt: int = 1) -> dict[str, Any]:
    return {"trial": trial, "attempt": attempt}


async def events(mailbox: Mailbox) -> list[str]:
    return [event["event"] for event in await mailbox.exchange([], 0.0)]


def test_a_trial_that_is_over_is_not_run_again_by_an_actor_that_comes_late() -> None:
    """Tune sometimes starts a second actor for a trial and places the trial on a cached one after all."""

    async def play() -> None:
        mailbox = await with_slot()
        await mailbox.submit(work("0000"))
        assert (await mailbox.take("slot-0", "life", 0) or {})["trial"] == "0000"
        await mailbox.submit(work("0000"))  # while it runs
        await mailbox.end("slot-0", "life", "0000", 1, "finished", {})
        assert await events(mailbox) == ["slot", "started", "end"]
        await mailbox.submit(work("0000"))  # its workers have left, Tune has not fetched its end
        await mailbox.drop("0000")
        await mailbox.submit(work("0000"))  # over
        assert await events(mailbox) == [] and (await mailbox.status())["queue"] == []
        await mailbox.submit(work("0001"))
        assert await events(mailbox) == ["started"]

    asyncio.run(play())


def test_a_slot_on_a_node_that_goes_takes_no_more_work_until_its_workers_are_new() -> None:
    async def play() -> None:
        mailbox = await with_slot()
        await mailbox.submit(work("0000"))
        await mailbox.drain("slot-0")
        assert await mailbox.stopped("0000", 1) == "draining"
        await mailbox.submit(work("0001"))
        await mailbox.end("slot-0", "life", "0000", 1, "stopped", {})
        assert (await mailbox.exchange([], 0.0))[-1]["drained"] and (await mailbox.status())["queue"] == ["0001"]
        await mailbox.again(work("0000", 2))
        await mailbox.hello("slot-0", "another life", 0, 1, {"pid": 2, "host": "there", "node": "m"})
        assert (await mailbox.take("slot-0", "another life", 0) or {}) == {**work("0000", 2), "slot": "slot-0"}

    asyncio.run(play())


def test_an_idle_slot_on_a_node_that_goes_is_told_at_once() -> None:
    async def play() -> None:
        mailbox = await with_slot()
        await mailbox.drain("slot-0")
        await mailbox.drain("slot-0")
        assert await events(mailbox) == ["slot", "idle"]

    asyncio.run(play())
