"""The mailbox by itself, without Ray: who gets which assignment, and what comes too late."""

from __future__ import annotations

import asyncio

from buttress.execution.mailbox import Mailbox
from buttress.execution.messages import (
    Assignment,
    AssignmentEnded,
    AssignmentStarted,
    AttemptResult,
    DrainSlot,
    DropTrial,
    Ending,
    NoAssignment,
    ReleaseResult,
    RequeueTrial,
    Signal,
    StopTrial,
    WorkerInfo,
)

FINISHED, STOPPED = AttemptResult(Ending.FINISHED), AttemptResult(Ending.STOPPED)


async def with_slot(name: str = "slot-0") -> Mailbox:
    mailbox = Mailbox()
    await mailbox.register(name, "first", 0, 1, WorkerInfo(1, "here", "n"))
    return mailbox


def attempt(trial: str, number: int = 1) -> Assignment:
    return Assignment(trial, number, trainable="toy", config={"lr": 0.1}, seed=3, folder="/tmp")


async def events(mailbox: Mailbox) -> list[str]:
    return [type(event).__name__ for event in await mailbox.exchange([], 0.0)]


def test_a_trial_that_is_over_is_not_run_again_by_an_actor_that_comes_late() -> None:
    """Tune sometimes starts a second actor for a trial and places the trial on a cached one after all."""

    async def play() -> None:
        mailbox = await with_slot()
        await mailbox.submit(attempt("0000"))
        assert await mailbox.next_assignment("slot-0", "first", 0) == attempt("0000")
        await mailbox.submit(attempt("0000"))  # while it runs
        await mailbox.end_attempt("slot-0", "first", "0000", 1, FINISHED)
        assert await events(mailbox) == ["SlotReady", "AssignmentStarted", "AssignmentEnded"]
        await mailbox.submit(attempt("0000"))  # its workers have left, Tune has not fetched its end
        await mailbox.send(DropTrial("0000"))
        await mailbox.submit(attempt("0000"))  # over
        assert await events(mailbox) == [] and list(mailbox._queue) == []
        await mailbox.submit(attempt("0001"))
        assert await mailbox.exchange([], 0.0) == [AssignmentStarted("0001", 1, "slot-0", WorkerInfo(1, "here", "n"))]

    asyncio.run(play())


def test_a_slot_on_a_node_that_goes_takes_no_more_assignments_until_its_workers_are_new() -> None:
    async def play() -> None:
        mailbox = await with_slot()
        await mailbox.submit(attempt("0000"))
        await mailbox.send(DrainSlot("slot-0"))
        assert await mailbox.wait_for_signal("0000", 1) is Signal.DRAIN
        await mailbox.submit(attempt("0001"))
        await mailbox.end_attempt("slot-0", "first", "0000", 1, STOPPED)
        ended = (await mailbox.exchange([RequeueTrial(attempt("0000", 2))], 0.0))[-1]
        assert ended == AssignmentEnded("0000", 1, "slot-0", STOPPED, drained=True)
        assert list(mailbox._queue) == ["0000", "0001"]
        await mailbox.register("slot-0", "second", 0, 1, WorkerInfo(2, "there", "m"))
        assert await mailbox.next_assignment("slot-0", "second", 0) == attempt("0000", 2)
        assert await mailbox.next_assignment("slot-0", "first", 0) is NoAssignment.CLOSED

    asyncio.run(play())


def test_an_idle_slot_on_a_node_that_goes_is_told_of_once() -> None:
    async def play() -> None:
        mailbox = await with_slot()
        await mailbox.send(DrainSlot("slot-0"))
        await mailbox.send(DrainSlot("slot-0"))
        assert await events(mailbox) == ["SlotReady", "SlotIdle"]

    asyncio.run(play())


def test_a_paused_trial_comes_back_with_a_later_attempt_and_no_other() -> None:
    async def play() -> None:
        mailbox = await with_slot()
        await mailbox.submit(attempt("0000"))
        await mailbox.send(StopTrial("0000", "paused"))
        assert await mailbox.wait_for_signal("0000", 1) is Signal.STOP
        await mailbox.end_attempt("slot-0", "first", "0000", 1, STOPPED)
        await mailbox.send(DropTrial("0000", 1))
        await mailbox.submit(attempt("0001"))
        await mailbox.end_attempt("slot-0", "first", "0001", 1, FINISHED)
        await mailbox.submit(attempt("0000"))  # a Tune actor of the first attempt, late
        assert (await events(mailbox)).count("AssignmentStarted") == 2
        await mailbox.submit(attempt("0000", 2))
        assert await events(mailbox) == ["AssignmentStarted"]
        assert await mailbox.wait_for_signal("0000", 1) is Signal.ATTEMPT_OVER
        await mailbox.send(DropTrial("0000", 1))  # what was said of the first attempt, late
        await mailbox.end_attempt("slot-0", "first", "0000", 2, FINISHED)
        await mailbox.send(ReleaseResult("0000", {"done": True}))
        assert await mailbox.next_result("0000", 0) == {"done": True}

    asyncio.run(play())


def test_a_trial_that_comes_back_before_tune_has_fetched_its_pause_is_not_forgotten() -> None:
    async def play() -> None:
        mailbox = await with_slot()
        await mailbox.submit(attempt("0000"))
        await mailbox.send(ReleaseResult("0000", {"outcome": "paused", "done": True}))
        await mailbox.end_attempt("slot-0", "first", "0000", 1, STOPPED)
        await mailbox.submit(attempt("0000", 2))
        assert (await events(mailbox))[-1] == "AssignmentStarted"
        assert await mailbox.next_assignment("slot-0", "first", 1) == attempt("0000", 2)
        await mailbox.send(DropTrial("0000", 1))
        await mailbox.send(ReleaseResult("0000", {"score": 1.0}))
        assert await mailbox.next_result("0000", 0) == {"score": 1.0}

    asyncio.run(play())


def test_an_assignment_passes_through_tune_as_a_string() -> None:
    made = Assignment("0000", 2, "toy", {"train": {"lr": 0.1, "clip": None}}, 7, "/sweep", resume="/sweep/3.pt")
    assert Assignment.from_json(made.to_json()) == made


def test_a_closed_mailbox_ends_every_wait() -> None:
    async def play() -> None:
        mailbox = await with_slot()
        await mailbox.submit(attempt("0000"))
        waits = [
            asyncio.ensure_future(wait)
            for wait in (
                mailbox.next_assignment("slot-0", "first", 1),
                mailbox.wait_for_signal("0000", 1),
                mailbox.next_result("0000", 0),
            )
        ]
        await asyncio.sleep(0)
        assert not any(wait.done() for wait in waits)
        await mailbox.close()
        answers = await asyncio.wait_for(asyncio.gather(*waits), 5.0)
        assert answers == [NoAssignment.CLOSED, Signal.STOP, {"done": True, "outcome": "interrupted"}]

    asyncio.run(play())
