"""Does what people ask of a running sweep, and says what was done."""

from __future__ import annotations

from collections.abc import Callable

from buttress.errors import BadInput
from buttress.execution.event_handler import EventHandler
from buttress.execution.messages import Command
from buttress.journal.requests import Request
from buttress.sweep.state import SweepState
from buttress.sweep.trial import ActiveTrial, TrialState
from buttress.wording import plural

Done = tuple[str, list[Command]]


class RequestHandler:
    """Handles the requests of one sweep, in its drain thread.

    Args:
        state: The sweep's state.
        events: Its event handler.
        stop: Ends the sweep, ready to be resumed.
        on_message: Called with a sentence about each request that was done.
    """

    def __init__(
        self, state: SweepState, events: EventHandler, stop: Callable[[], None], on_message: Callable[[str], None]
    ) -> None:
        self._state, self._events, self._stop, self._on_message = state, events, stop, on_message

    def handle(self, request: Request, answer: Callable[[str, bool], None]) -> list[Command]:
        """Handles one request; returns the commands for the mailbox.

        Args:
            request: What is asked for.
            answer: Called with a sentence, and whether the request was refused.
        """
        try:
            message, commands = self._of_sweep(request) if request.trial is None else self._of_trial(request)
        except BadInput as error:
            answer(str(error), True)
            return []
        answer(message, False)
        self._on_message(f"{message} (by {request.by})" if request.by else message)
        return commands

    def _of_sweep(self, request: Request) -> Done:
        state, events = self._state, self._events
        match request.verb:
            case "add":
                state.add(request)
                return f"a configuration was added; {plural(len(state.wanted), 'added one')} to be run", []
            case "stop":
                state.command(request)
                self._stop()
                return "the sweep stops; `buttress resume` goes on with it", []
            case "pause" if state.held:
                raise BadInput("the sweep is paused already")
            case "pause":
                commands = [each for trial in state.hold(request) for each in events.pause(trial, "with the sweep")]
                return "the sweep is paused: its trials leave their slots with their checkpoints", commands
            case "go" if not state.held:
                raise BadInput("the sweep is not paused", accepted="a paused one, or the name of a paused trial")
        commands = [each for trial in state.release(request) for each in events.continue_trial(trial)]
        return "the sweep goes on", commands

    def _of_trial(self, request: Request) -> Done:
        trial, state, events = self._trial(request), self._state, self._events
        match request.verb:
            case "stop":
                if request.ending == "completed" and trial.evaluation.best is None:
                    why = f"has no valid epoch yet ({trial.evaluation.why_none_is_valid()})"
                    raise BadInput(why, key="TRIAL", value=trial.id, accepted="`stop` without --complete")
                state.command(request)
                return f"trial {trial.id} is stopped", events.stop(trial.id, request.ending, request.by)
            case "pause":
                self._expect(trial, TrialState.RUNNING)
                state.command(request)
                return f"trial {trial.id} is paused", events.pause(trial.id, request.by)
            case "go":
                self._expect(trial, TrialState.PAUSED)
                state.command(request)
                return f"trial {trial.id} waits for a slot", events.continue_trial(trial.id)
        raise BadInput("not of a trial", key="verb", value=request.verb)

    def _trial(self, request: Request) -> ActiveTrial:
        if (trial := self._state.active.get(str(request.trial))) is not None:
            return trial
        done = self._state.outcomes.get(str(request.trial))
        what = f"has ended already ({done.outcome})" if done is not None else "is not a trial of this sweep"
        raise BadInput(what, key="TRIAL", value=request.trial)

    @staticmethod
    def _expect(trial: ActiveTrial, state: TrialState) -> None:
        if trial.state is not state:
            raise BadInput(f"is {trial.state.value}, not {state.value}", key="TRIAL", value=trial.id)
