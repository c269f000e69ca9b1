"""Asks a live account what Brevo's documents leave open, in at most ten calls, and takes back what it sent.

Everything goes to the visitor that is named, except one message to a visitor id that is made up. What it does not
know: the status of a success and the headers beyond quota and request id, which the client does not hand out.
"""

from __future__ import annotations

import json
import re
import shlex
import string
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from random import SystemRandom
from typing import TYPE_CHECKING, Any

from airflow_provider_sib import __version__
from airflow_provider_sib._compat import AirflowFailException, get_connection
from airflow_provider_sib.api.errors import (
    ApiError,
    ConversationsError,
    InvalidRequest,
    NotFound,
    Quota,
    RateLimited,
    ServerError,
    TransportError,
    Unauthorized,
    UnexpectedResponse,
)
from airflow_provider_sib.hooks import ConnectionSettings

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence
    from random import Random

    from airflow_provider_sib.api.calls import Call
    from airflow_provider_sib.api.client import ConversationsClient

MOST_CALLS = 10
PAUSE_SECONDS = 3.0
"""Long enough to see in which unit the quota's reset counts down."""

_CALLS_AFTER_THE_FIRST = MOST_CALLS - 1
_LENGTHS = (10_000, 5_000, 500)
_MARK = "Test of airflow-provider-sib: please ignore, it is deleted at once."
_MARKUP = f"{_MARK} <b>bold</b> & plain\nsecond line, https://example.com/?a=1&b=2 "
_BY_HAND = (
    "whether and when a message comes back by webhook (conversationFragment, receivedFrom): look at your receiver",
    "how long a ping keeps an agent online, and which agents and groups are refused: both need ids of yours",
    "what editing or deleting a visitor's own message gives: only a visitor can write one",
    "what a 429 says: the quota would have to be used up",
    "the status of a success (200, 201 or 204), and headers other than quota and request id",
)


@dataclass(frozen=True, slots=True)
class Reply:
    """What one call brought.

    :param question: what was to be learnt.
    :param asked: method, route and the names of the body's fields.
    :param answered: "accepted", "refused", "unclear" or "not sent".
    :param status: HTTP status of a refusal; a success does not tell it.
    :param code: Brevo's code.
    :param message: Brevo's words, or why there is no answer.
    :param request_id: ``sib-request-id``.
    :param quota: what the answer told of the quota.
    :param at: the clock's seconds when the answer came.
    """

    question: str
    asked: str
    answered: str
    status: int | None
    code: str | None
    message: str | None
    request_id: str | None
    quota: Quota | None
    at: float

    @property
    def route(self) -> str:
        """Method and path, without ids and fields."""
        return " ".join(self.asked.split()[:2])


@dataclass(slots=True)
class Report:
    """What a trial found; holds neither the key nor the visitor's id.

    :param replies: the calls, in order; clean-up included.
    :param findings: question and answer, in words.
    :param not_asked: question and reason.
    :param left_out: questions that matter less, for which no call was left.
    :param by_hand: what can't be learnt this way.
    :param ended: why it ended early, or None.
    :param left_behind: what could not be taken back, a sentence each.
    :param extras: extras of the Airflow connection that follow.
    :param switches: switches of the sandbox that imitate this account.
    """

    replies: list[Reply] = field(default_factory=list)
    findings: dict[str, str] = field(default_factory=dict)
    not_asked: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    by_hand: tuple[str, ...] = _BY_HAND
    ended: str | None = None
    left_behind: list[str] = field(default_factory=list)
    extras: dict[str, Any] = field(default_factory=dict)
    switches: dict[str, Any] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Tell whether all was asked and answered, and nothing is left behind."""
        unclear = any(reply.answered == "unclear" for reply in self.replies)
        return not (unclear or self.ended or self.not_asked or self.left_behind)

    def sandbox_command(self) -> str:
        """Give the command line of a sandbox that answers as the account did, as far as is known."""
        words = ["python", "-m", "airflow_provider_sib.sandbox"]
        for name, value in self.switches.items():
            words += [f"--{name.replace('_', '-')}", value if isinstance(value, str) else json.dumps(value)]
        return shlex.join(words)

    def as_json(self) -> dict[str, Any]:
        """Give it as plain JSON values, fit to be attached to an issue."""
        calls = [{k: v for k, v in asdict(reply).items() if k != "at"} for reply in self.replies]
        rest = {
            name: getattr(self, name)
            for name in ("findings", "not_asked", "left_out", "by_hand", "ended", "left_behind")
        }
        return {
            "airflow-provider-sib": __version__,
            "complete": self.complete,
            "calls": calls,
            **rest,
            "connection_extras": self.extras,
            "sandbox": self.sandbox_command(),
        }


class _Ended(Exception):
    """Asking on is of no use; the text says why."""


def bucket(replies: Sequence[Reply]) -> str | None:
    """Tell whether one quota is shared by all routes, from what the answers said is left.

    With one quota, a call that succeeds leaves less than any earlier call to any route saw. With one for each, a
    route to which one comes back stands higher than what another saw meanwhile. Colleagues' calls change neither.

    :param replies: in order.
    :return: "shared", "per_route", or None if the answers don't tell.
    """
    compared = False
    for number, later in enumerate(replies):
        if later.answered != "accepted" or later.quota is None or later.quota.remaining is None:
            continue
        before = replies[:number]
        for earlier in before:
            then = earlier.quota
            if earlier.route == later.route or then is None or then.remaining is None:
                continue
            if then.reset_in_seconds is not None and later.at - earlier.at >= then.reset_in_seconds:
                continue  # it may have been renewed in between
            if later.quota.remaining >= then.remaining or later.quota.limit != then.limit:
                return "per_route"
            compared = compared or any(reply.route == later.route for reply in before)
    return "shared" if compared else None


def reset_unit(replies: Sequence[Reply]) -> str:
    """Tell in which unit the quota's reset is given.

    :param replies: in order.
    :return: a sentence.
    """
    seen = [
        (reply.route, reply.at, reply.quota.reset_in_seconds)
        for reply in replies
        if reply.quota is not None and reply.quota.reset_in_seconds is not None
    ]
    if not seen:
        return "no answer gave a reset"
    route, begin, first = seen[0]
    _, end, last = [one for one in seen if one[0] == route][-1]
    passed, fell = end - begin, first - last
    if passed >= PAUSE_SECONDS - 1 and abs(passed - fell) <= 1.5:
        return f"seconds: it fell by {fell:g} in {passed:.1f} seconds"
    if 60 < first < 3600:
        return f"seconds: {first:g} fits an hour in no other unit"
    return f"not told: it went from {first:g} to {last:g} in {passed:.1f} seconds (at most 3,600 is read)"


def ask(
    settings: ConnectionSettings,
    visitor_id: str,
    *,
    group_id: str | None = None,
    tell: Callable[[str], None] = print,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    random: Random = SystemRandom(),  # noqa: B008  it has no state
) -> Report:
    """Ask the open questions and clean up, also when interrupted.

    :param settings: the connection to try.
    :param visitor_id: a visitor of one's own; is written to.
    :param group_id: a group to put that visitor into, and to take it out of again; None doesn't try groups.
    :param tell: takes each line as it comes; ids and key are left out.
    :param clock: seconds, from any beginning.
    :param sleep: waits for a number of seconds.
    :param random: makes ids up.
    :return: what was found.
    :raises InvalidRequest: if the connection can't be right; nothing was sent then.
    """
    from airflow_provider_sib.api.wire import Retries

    with settings.client(rate_limit_wait_seconds=0, retries=Retries(attempts=1)) as client:
        trial = _Trial(settings, client, visitor_id, group_id, tell, clock, sleep, random)
        try:
            trial.run()
        except _Ended as ended:
            trial.report.ended = str(ended)
        except KeyboardInterrupt:
            trial.report.ended = "It was interrupted."
        finally:
            trial.clean_up()
        trial.conclude()
    return trial.report


class _Trial:
    def __init__(
        self,
        settings: ConnectionSettings,
        client: ConversationsClient,
        visitor_id: str,
        group_id: str | None,
        tell: Callable[[str], None],
        clock: Callable[[], float],
        sleep: Callable[[float], None],
        random: Random,
    ) -> None:
        self.report = Report()
        self._settings = settings
        self._client = client
        self._visitor_id = visitor_id
        self._group_id = group_id
        self._tell = tell
        self._clock = clock
        self._sleep = sleep
        made_up = "".join(random.choices(string.ascii_letters + string.digits, k=17))
        self._unknown_message_id = made_up
        self._unknown_visitor_id = f"airflowprovidersib{made_up}"[:32]
        self._owed: dict[str, tuple[str, Call[Any]]] = {}
        self._private = {
            visitor_id: "<visitor>",
            group_id: "<group>",
            settings.agent_id: "<agent>",
            settings.group_id: "<group>",
            settings.api_key: "<key>",
        }

    # -- the questions, in this order ------------------------------------------------------------------------

    def run(self) -> None:
        self._ask_deleting_what_never_was()
        self._sleep(PAUSE_SECONDS)
        self._ask_without_text()
        self._ask_unknown_visitor()
        if message_id := self._ask_text():
            self._ask_other_route(message_id)
            self._ask_group()
            self._ask_deleting_twice(message_id)
        else:
            for question in (
                "Does a pushed message's id work under /messages?",
                "What does deleting twice give?",
            ):
                self.report.not_asked[question] = "No message could be made."
        self._take_back("unknown visitor")
        self._ask_without_agent()
        self._ask_reading_what_never_was()

    def _ask_deleting_what_never_was(self) -> None:
        """Begin with what makes nothing, and yet proves that this key can clean up (deleting needs the most)."""
        from airflow_provider_sib.api import calls

        question = "May this key delete, and how is an unknown id answered?"
        reply = self._perform(question, calls.delete_pushed_message(self._unknown_message_id))[0]
        if reply.status == 404 and not (reply.code or reply.request_id):
            raise _Ended(
                "What answered is not Brevo's API: is the connection's host right? Nothing was sent."
            )
        if reply.answered == "unclear" or reply.status not in (None, 400, 404, 422):
            raise _Ended(
                "The first call, which changes nothing, was not answered as it should be. Nothing was sent."
            )
        self._find(question, f"yes; {_words(reply)}")
        self._learn_not_found(reply)
        left = reply.quota.remaining if reply.quota else None
        if left is not None and left < _CALLS_AFTER_THE_FIRST:
            reset = reply.quota.reset_in_seconds if reply.quota else None
            when = "later" if reset is None else f"in {reset:g} seconds"
            raise _Ended(
                f"The quota leaves {left} calls, and the trial takes up to {_CALLS_AFTER_THE_FIRST} more. "
                f"Nothing was sent; try again {when}."
            )

    def _ask_without_text(self) -> None:
        question = "How is a missing parameter answered (a pushed message without text)?"
        call = self._settings.send_pushed_message(self._visitor_id, _MARK)
        body = {name: value for name, value in (call.body or {}).items() if name != "text"}
        reply = self._create(question, replace(call, body=body), "no text")[0]
        if reply is None:
            return
        self._find(question, _words(reply))
        if reply.status == 400 and reply.message:
            self.report.switches["missing_message"] = _template(reply.message, "text")
        self._take_back("no text")

    def _ask_unknown_visitor(self) -> None:
        question = "Is a pushed message to an unknown visitor accepted?"
        if not self._settings.allows(self._unknown_visitor_id):
            self.report.not_asked[question] = (
                "The connection's extra allowed_visitors leaves made-up ids out."
            )
            return
        call = self._settings.send_pushed_message(self._unknown_visitor_id, _MARK)
        reply, _ = self._create(question, call, "unknown visitor")
        if reply is None or reply.answered == "unclear":
            return
        accepted = reply.answered == "accepted"
        self.report.switches["unknown_visitor"] = "accept" if accepted else "reject"
        if accepted:
            stays = "the API can't remove the visitor, who may stay listed in Brevo as"
            self._find(question, f"yes; {stays} {self._unknown_visitor_id}")
        else:
            self._find(question, f"no; {_words(reply)}")
            self._learn_invalid(reply, "visitorId")

    def _ask_text(self) -> str | None:
        question = "Are 10,000 characters accepted, and what becomes of <b>, &, a new line and a link?"
        refused = ""
        for length in _LENGTHS:
            text = _MARKUP + "." * (length - len(_MARKUP))
            call = self._settings.send_pushed_message(self._visitor_id, text)
            reply, message = self._create(question, call, "own message")
            if reply is None or reply.answered == "unclear":
                return None
            if message is not None:
                self.report.switches["max_text_length"] = length if refused else None
                self._find(
                    question, f"{refused}{length:,} characters accepted; {self._markup(message, text)}"
                )
                self.report.switches["id_style"] = "documented" if message.id.isalnum() else "long"
                return str(message.id)
            refused += f"{length:,} characters refused ({_words(reply)}); "
            self._learn_invalid(reply, "text")
            if reply.status not in (400, 413, 422):
                break
        self._find(question, refused.rstrip("; "))
        return None

    def _markup(self, message: Any, text: str) -> str:
        found = []
        if message.text is not None and message.text != text:
            found.append(f"the text comes back changed, {len(message.text):,} characters long")
        html = message.html
        if html is None:
            return "; ".join([*found, "the answer has no html"])
        if "&lt;b&gt;" in html:
            self.report.switches["html_escaping"] = True
            found.append("markup is escaped")
        elif "<b>bold</b>" in html:
            self.report.switches["html_escaping"] = False
            found.append("markup is kept as HTML: visitors' data in a text could inject it")
        else:
            found.append("markup is taken out")
        found.append("a new line becomes <br>" if "<br" in html else "a new line does not become <br>")
        found.append("a link becomes <a>" if "<a " in html else "a link stays plain text")
        return "; ".join(found)

    def _ask_other_route(self, message_id: str) -> None:
        from airflow_provider_sib.api import calls

        question = "Does a pushed message's id work under /messages?"
        reply, _ = self._if_affordable(question, calls.get_message(message_id))
        if reply is None or reply.answered == "unclear":
            return
        works = reply.answered == "accepted"
        self.report.switches["pushed_under_messages"] = works
        self._find(question, "yes" if works else f"no; {_words(reply)}")

    def _ask_group(self) -> None:
        from airflow_provider_sib.api import calls

        if self._group_id is None:
            return
        question = "Does visitorGroup take the visitor from visitorId in the body?"
        back = calls.set_visitor_group(self._visitor_id, None)
        if not self._affords(2):
            self.report.not_asked[question] = "No calls were left for it."
            return
        self._owed["group"] = ("the visitor's place in the group", back)
        try:
            reply, group = self._perform(question, calls.set_visitor_group(self._visitor_id, self._group_id))
        finally:
            if self._came_to_nothing():
                del self._owed["group"]
        if reply.answered == "unclear":
            return
        accepted = reply.answered == "accepted"
        if accepted or reply.status == 404:
            self.report.switches["visitor_group_key"] = "visitorId" if accepted else "none"
        other = accepted and group is not None and group.visitor_id not in (None, self._visitor_id)
        self._find(
            question,
            "accepted, but the answer names another visitor"
            if other
            else "yes"
            if accepted
            else f"no; {_words(reply)}",
        )
        self._take_back("group")

    def _ask_deleting_twice(self, message_id: str) -> None:
        from airflow_provider_sib.api import calls

        question = "What does deleting twice give?"
        if not self._affords(1):
            self.report.not_asked[question] = "No calls were left for it."
            return
        if not self._take_back("own message"):
            self.report.not_asked[question] = "The first time did not work."
            return
        reply, _ = self._if_affordable(question, calls.delete_pushed_message(message_id))
        if reply is None or reply.answered == "unclear":
            return
        if reply.answered == "accepted":
            self.report.switches["second_delete"] = 204
        elif reply.status == 404:
            self.report.switches["second_delete"] = 404
        self._find(question, _words(reply))

    def _ask_without_agent(self) -> None:
        """Ask if there is a call left, since it matters least."""
        from airflow_provider_sib.api import calls

        question = "How is an agent's message without an agent answered?"
        if not self._affords(2):
            self.report.left_out.append(question)
            return
        call = calls.send_message(self._visitor_id, _MARK, agent_id="none")
        body = {name: value for name, value in (call.body or {}).items() if name != "agentId"}
        reply, _ = self._create(question, replace(call, body=body), "no agent")
        if reply is not None:
            self._find(question, _words(reply))
        self._take_back("no agent")

    def _ask_reading_what_never_was(self) -> None:
        """Ask if there is a call left, since deleting has answered most of it."""
        from airflow_provider_sib.api import calls

        question = "How is reading an unknown id answered?"
        if not self._affords(1):
            self.report.left_out.append(question)
            return
        reply, _ = self._perform(question, calls.get_pushed_message(self._unknown_message_id))
        self._find(question, _words(reply))

    # -- asking ----------------------------------------------------------------------------------------------

    def _affords(self, calls: int) -> bool:
        """Tell whether that many calls can be made and everything still be taken back."""
        left = MOST_CALLS - len(self.report.replies)
        quota = self.report.replies[-1].quota if self.report.replies else None
        if quota is not None and quota.remaining is not None:
            left = min(left, quota.remaining)
        return left >= calls + len(self._owed)

    def _if_affordable(self, question: str, call: Call[Any]) -> tuple[Reply | None, Any]:
        if not self._affords(1):
            self.report.not_asked[question] = "No calls were left for it."
            return None, None
        return self._perform(question, call)

    def _create(self, question: str, call: Call[Any], name: str) -> tuple[Reply | None, Any]:
        """Perform a call that may make a message, and remember to delete it."""
        from airflow_provider_sib.api import calls

        if not self._affords(2):
            self.report.not_asked[question] = "No calls were left for it and for cleaning up."
            return None, None
        delete = calls.delete_pushed_message if "pushed" in call.path else calls.delete_message
        lost = f"The answer to {call.name!r} is not known: look whether the chat shows a test message."
        self.report.left_behind.append(lost)  # until the answer is there: nobody knows when Ctrl-C comes
        try:
            return self._perform(question, call, delete=delete, name=name)
        finally:
            if name in self._owed or self._came_to_nothing():
                self.report.left_behind.remove(lost)

    def _came_to_nothing(self) -> bool:
        return self.report.replies[-1].answered in ("refused", "not sent")

    def _perform(
        self,
        question: str,
        call: Call[Any],
        *,
        delete: Callable[[str], Call[None]] | None = None,
        name: str = "",
    ) -> tuple[Reply, Any]:
        """Perform a call, tell and keep its reply; end the trial where asking on is of no use."""
        reply, value, error = self._reply(question, call)
        message_id = error.message_id if isinstance(error, UnexpectedResponse) else getattr(value, "id", None)
        if delete is not None and message_id is not None:
            self._owed[name] = (f"the message {message_id}", delete(message_id))
        self._show(reply)
        if isinstance(error, RateLimited):
            raise _Ended(f"The quota is used up. {self._told(str(error))}")
        if isinstance(error, Unauthorized | TransportError):
            raise _Ended(self._told(str(error)))
        return reply, value

    def _reply(self, question: str, call: Call[Any]) -> tuple[Reply, Any, ConversationsError | None]:
        # Counted before it is made, and replaced by what came: an interrupted call is a call.
        reply = Reply(question, _asked(call), "unclear", None, None, "interrupted", None, None, self._clock())
        self.report.replies.append(reply)
        value: Any = None
        error: ConversationsError | None = None
        try:
            answer = self._client.perform(call)
        except ApiError as refusal:
            error = refusal
            reply = replace(
                reply,
                answered="unclear" if isinstance(refusal, ServerError) else "refused",
                status=refusal.status,
                code=self._told(refusal.code),
                message=self._told(refusal.message),
                request_id=self._told(refusal.request_id),
                quota=refusal.quota,
            )
        except UnexpectedResponse as unread:
            error = unread
            reply = replace(
                reply,
                status=unread.status,
                message=self._told(unread.reason),
                request_id=self._told(unread.request_id),
                quota=unread.quota,
            )
        except TransportError as failure:
            error = failure
            answered = "unclear" if failure.maybe_delivered else "not sent"
            reply = replace(reply, answered=answered, message=self._told(failure.reason))
        else:
            value = answer.value
            reply = replace(
                reply,
                answered="accepted",
                message=None,
                request_id=self._told(answer.request_id),
                quota=answer.quota,
            )
        reply = replace(reply, at=self._clock())
        self.report.replies[-1] = reply
        return reply, value, error

    # -- cleaning up -----------------------------------------------------------------------------------------

    def _take_back(self, name: str) -> bool:
        """Undo one thing, if it was done; tell whether it is undone."""
        if name not in self._owed:
            return True
        what, call = self._owed[name]
        reply, _, error = self._reply(f"Cleaning up: {what}", call)
        done = reply.answered == "accepted" or isinstance(error, NotFound)
        if done:
            del self._owed[name]
        self._show(reply)
        return done

    def clean_up(self) -> None:
        """Undo all that is left to undo, once more where it failed, as far as ten calls go."""
        try:
            for name in [*self._owed, *self._owed]:
                if len(self.report.replies) < MOST_CALLS:
                    self._take_back(name)
        except KeyboardInterrupt:
            self.report.ended = "It was interrupted while it cleaned up."
        for what, _ in self._owed.values():
            sentence = f"Could not take back {self._told(what)}."
            self.report.left_behind.append(sentence)
            self._tell(sentence)

    # -- telling ---------------------------------------------------------------------------------------------

    def conclude(self) -> None:
        replies = self.report.replies
        switches = self.report.switches
        quotas = [reply.quota for reply in replies if reply.quota is not None]
        answers = [reply for reply in replies if reply.status is not None or reply.answered == "accepted"]
        if answers and not any(reply.status in (401, 429) for reply in answers):
            switches["rate_headers"] = bool(quotas)
        if not quotas:
            return
        first = quotas[0]
        self.report.findings["In which unit is the quota's reset?"] = reset_unit(replies)
        if first.limit is not None:
            switches["quota"] = first.limit
            if first.limit > 0:
                self.report.extras["requests_per_hour"] = first.limit
            if first.remaining == first.limit - 1 and first.reset_in_seconds:
                switches["hour_seconds"] = first.reset_in_seconds
        kind = bucket(replies)
        words = {
            "shared": "yes: each call left less to all",
            "per_route": "no: routes count apart",
            None: "the answers don't tell",
        }
        self.report.findings["Do all routes share one quota?"] = words[kind]
        if kind is not None:
            switches["bucket"] = kind

    def _find(self, question: str, answer: str) -> None:
        self.report.findings[question] = answer
        self._tell(f"   so        {answer}")

    def _learn_not_found(self, reply: Reply) -> None:
        if reply.status == 404 and reply.message:
            self.report.switches["not_found_code"] = reply.code
            self.report.switches["not_found_message"] = reply.message

    def _learn_invalid(self, reply: Reply, name: str) -> None:
        if reply.status == 400 and reply.message:
            self.report.switches["invalid_message"] = _template(reply.message, name)

    def _show(self, reply: Reply) -> None:
        said = [reply.answered if reply.status is None else str(reply.status), reply.code]
        message = f'"{reply.message}"' if reply.message and reply.status else reply.message
        self._tell(f"{len(self.report.replies)}. {reply.question}")
        self._tell(f"   asked     {reply.asked}")
        self._tell(f"   answered  {' '.join(word for word in (*said, message) if word)}")
        self._tell(f"             sib-request-id {reply.request_id or 'none'}; {_quota_words(reply.quota)}")

    def _told(self, text: str | None) -> Any:
        """Leave out of a text what is the user's own."""
        for secret, instead in self._private.items():
            if secret and text:
                text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", instead, text)
        return text


def _asked(call: Call[Any]) -> str:
    route = re.sub(r"^(/conversations/\w+)/.*", r"\1/{id}", call.path)
    fields = ", ".join(
        f"{k} ({len(v):,} characters)" if k == "text" and v else k for k, v in (call.body or {}).items()
    )
    return f"{call.method} {route}" + (f" with {fields}" if fields else "")


def _words(reply: Reply) -> str:
    if reply.status is None:
        return reply.answered
    return f"{reply.status}{f' {reply.code}' if reply.code else ''}"


def _quota_words(quota: Quota | None) -> str:
    if quota is None:
        return "no quota headers"
    return (
        f"x-sib-ratelimit-limit {quota.limit}, -remaining {quota.remaining}, -reset "
        f"{'None' if quota.reset_in_seconds is None else f'{quota.reset_in_seconds:g}'}"
    )


def _template(message: str, name: str) -> str:
    """Put the sandbox's placeholder where a message names a field."""
    return re.sub(rf"(?<!\w){name}(?!\w)", "{field}", message)


# -- the command -----------------------------------------------------------------------------------------------


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``check`` to the commands of ``python -m airflow_provider_sib``.

    :param commands: what ``ArgumentParser.add_subparsers`` gave.
    """
    parser = commands.add_parser(
        "check",
        help="try a live account: ask it what Brevo's documents leave open",
        description=f"Asks a Brevo account what its documents leave open, in at most {MOST_CALLS} calls, and takes "
        "back what it sent. Exit status: 0 when all was asked and cleaned up, 1 otherwise.",
        allow_abbrev=False,
    )
    parser.add_argument("--conn-id", required=True, help="an Airflow connection of type sib_conversations")
    parser.add_argument("--visitor", required=True, metavar="ID", help="your own visitor id: is written to")
    parser.add_argument(
        "--group",
        metavar="ID",
        help="also try to put the visitor into this group, and out of any group again",
    )
    parser.add_argument("--yes", action="store_true", help="don't ask before it begins")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write a report without key and visitor id")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command.

    :param options: as parsed; see :func:`add_command`.
    :return: the exit status: 0 when all was asked and cleaned up, 1 otherwise.
    """
    try:
        settings = ConnectionSettings.from_connection(get_connection(options.conn_id))
    except Exception as error:  # noqa: BLE001  whatever Airflow or a secrets backend raises, there is no connection
        return _failed(error if isinstance(error, AirflowFailException) else f"No connection: {error}.")
    for problem in settings.problems:
        print(f"Connection {options.conn_id}: {problem}")
    if not options.visitor.strip():
        return _failed("--visitor is blank: give the id of a visitor of your own.")
    if not settings.allows(options.visitor):
        return _failed(
            "The connection's extra allowed_visitors leaves this visitor out: add the visitor there."
        )
    if not options.yes and not _confirmed(settings, options.group):
        return _failed("Nothing was sent.")
    try:
        if options.json:
            options.json.write_text("{}\n")  # it is better to learn now that this can't be
        report = ask(settings, options.visitor, group_id=options.group)
        if options.json:
            options.json.write_text(json.dumps(report.as_json(), indent=2) + "\n")
    except (InvalidRequest, OSError) as error:
        return _failed(error)
    _print(report, options.conn_id)
    return 0 if report.complete else 1


def _confirmed(settings: ConnectionSettings, group_id: str | None) -> bool:
    print(
        f"This makes at most {MOST_CALLS} calls to {settings.base_url}, of the hour's quota of the account.\n"
        "It sends test messages to the visitor you named, one of them 10,000 characters long, and one message to\n"
        "a made-up visitor, who may stay listed in Brevo. All messages are deleted at the end."
    )
    if group_id:
        print(
            "It puts the visitor into the group, and at the end out of any group: note the present one before."
        )
    try:
        return input("Go on? [y/N] ").strip().lower() in ("y", "yes")
    except (EOFError, KeyboardInterrupt):
        print()
        return False


def _failed(reason: object) -> int:
    print(reason)
    return 1


def _print(report: Report, conn_id: str) -> None:
    print(f"\nCalls made: {len(report.replies)}")
    for question, answer in report.findings.items():
        print(f"- {question} {answer}.")
    for question, reason in report.not_asked.items():
        print(f"- Not asked: {question} {reason}")
    for question in report.left_out:
        print(f"- Left out, since no call was left: {question}")
    if report.findings:
        print("\nCan't be learnt this way:")
        for sentence in report.by_hand:
            print(f"- {sentence}.")
        print("\nSettings that follow:")
        print(
            f"- extras of the connection {conn_id}: {json.dumps(report.extras) if report.extras else 'none'}"
        )
        print(f"- a sandbox that answers alike: {report.sandbox_command()}")
    if report.ended:
        print(f"\nIt ended early: {report.ended}")
    for sentence in report.left_behind:
        print(f"\nLeft behind: {sentence}")
    if not report.left_behind:
        print("\nNothing is left behind.")
