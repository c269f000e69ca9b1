"""Name what went wrong by its remedy, with the facts as attributes; needs the standard library only.

Every error survives pickling and copying, and prints one sentence that holds no API key.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Mapping

LONGEST_RESET_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Quota:
    """Hold what Brevo said about the quota; what it did not say, or not as a number, is None.

    :param limit: calls allowed in an hour.
    :param remaining: calls left of it.
    :param reset_in_seconds: seconds until the hour is over, at most 3,600.
    """

    limit: int | None = None
    remaining: int | None = None
    reset_in_seconds: float | None = None

    @classmethod
    def from_headers(cls, headers: Mapping[str, str]) -> Self | None:
        """Read the quota of an answer.

        https://developers.brevo.com/docs/limit-headers: the reset is the time left, "typically seconds", no epoch.
        The allowance is one of an hour, so whatever says more than an hour is read as an hour.

        :param headers: the answer's headers; looked up in lower case.
        :return: the quota, or None if the answer tells nothing about it.
        """
        limit = _number(headers.get("x-sib-ratelimit-limit"))
        remaining = _number(headers.get("x-sib-ratelimit-remaining"))
        reset = _number(headers.get("x-sib-ratelimit-reset"))
        if limit is None and remaining is None and reset is None:
            return None
        return cls(
            limit=None if limit is None else int(limit),
            remaining=None if remaining is None else int(remaining),
            reset_in_seconds=None if reset is None else min(reset, LONGEST_RESET_SECONDS),
        )


def _number(header: str | None) -> float | None:
    if header is None:
        return None
    text = header.strip()
    if not (text.isascii() and text.replace(".", "", 1).isdigit()):
        return None
    number = float(text)
    return number if math.isfinite(number) else None


class ConversationsError(Exception):
    """Anything that keeps a call from its result. Its first argument is the printed sentence."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception's own way calls the class with `args`, which the keyword-only facts of the subclasses don't fit.
        return _rebuilt, (type(self), self.args, self.__dict__)


def _rebuilt(
    kind: type[ConversationsError], args: tuple[Any, ...], facts: dict[str, Any]
) -> ConversationsError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(facts)
    return error


class TransportError(ConversationsError):
    """No complete answer came.

    :param reason: what the network said, in a few words.
    :param maybe_delivered: False if the request surely did not reach Brevo, so that nothing was carried out.
    :param call: what was tried, such as ``send a pushed message``.
    """

    def __init__(self, reason: str, *, maybe_delivered: bool, call: str = "reach Brevo") -> None:
        self.reason = reason
        self.maybe_delivered = maybe_delivered
        self.call = call
        outcome = (
            "It is not known whether Brevo carried it out: look before you repeat it"
            if maybe_delivered
            else "It surely did not reach Brevo, so it may be tried again; check network, proxy and host"
        )
        super().__init__(f"Could not {call}: {reason.rstrip('.')}. {outcome}.")


class ApiError(ConversationsError):
    """Brevo, or a rule of this package checked before anything was sent, refused the call.

    :param message: Brevo's words, or ours.
    :param status: HTTP status; None if the call was refused here and nothing was sent.
    :param code: Brevo's code. An open set: do not rely on a value.
    :param request_id: ``sib-request-id``, by which Brevo's support finds the call.
    :param quota: what the answer told about the quota.
    :param call: what was tried, such as ``send a pushed message``.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        request_id: str | None = None,
        quota: Quota | None = None,
        call: str = "call Brevo",
    ) -> None:
        self.message = message
        self.status = status
        self.code = code
        self.request_id = request_id
        self.quota = quota
        self.call = call
        super().__init__(self._sentence())

    def _sentence(self) -> str:
        if self.status is None:
            return f"Cannot {self.call}: {self.message}"
        code = f" {self.code}" if self.code else ""
        return (
            f'Could not {self.call}: Brevo answered {self.status}{code}: "{self.message}" '
            f"(sib-request-id {self.request_id or 'not given'}). {self._remedy()}."
        )

    def _remedy(self) -> str:
        return "Brevo refused it"


class InvalidRequest(ApiError):
    """Fix the call; repeating it can't help (400, 405, 406, 422, any other 4xx, or refused here)."""

    def _remedy(self) -> str:
        return "Fix the call: repeating it as it is can't help"


class Unauthorized(ApiError):
    """Fix the connection: the key, its permissions, the IP address, the plan (401, 402, 403, 407)."""

    def _remedy(self) -> str:
        match self.status:
            case 402:
                return "Check the plan and the credit of the Brevo account"
            case 403:
                # https://help.brevo.com, article 40158277171474: Read/write is GET, POST, PUT; All adds DELETE.
                return (
                    "A restricted key needs the permission Read/write for Conversations, and All to delete; "
                    "change the key's permissions or use another key"
                )
            case 407:
                return "The proxy wants a user name and password: check the connection's proxy"
            case _:
                # https://help.brevo.com, article 5740111683858: a blocked IP address shows as 401.
                return (
                    "Check the connection's API key (whole, not expired, an API key and no SMTP key), and whether "
                    "Brevo blocks this machine's IP address, which also shows as 401: "
                    "https://app.brevo.com/security/authorised_ips"
                )


class NotFound(ApiError):
    """There is no such thing, or no more (404)."""

    def _remedy(self) -> str:
        return "It is gone, or was never there: check the id and the kind (pushed or agent's message)"


class RateLimited(ApiError):
    """The quota is used up (429). The call was not carried out, so repeating it later risks nothing.

    :param reset_in: seconds until the quota is renewed; None if Brevo didn't say.
    """

    def __init__(self, message: str, *, reset_in: float | None = None, **facts: Any) -> None:
        self.reset_in = reset_in
        super().__init__(message, **facts)

    def _remedy(self) -> str:
        if self.reset_in is None:
            return "It was not carried out; Brevo did not say when the quota is renewed: within an hour"
        return f"It was not carried out; the quota is renewed in {self.reset_in:g} seconds"


class ServerError(ApiError):
    """Brevo failed (5xx). Whether a message was created is not known."""

    def _remedy(self) -> str:
        return "Brevo failed, and it is not known whether it carried the call out: look before you repeat it"


class UnexpectedResponse(ConversationsError):
    """Brevo said yes, or something that is neither yes nor no, and it can't be read.

    :param reason: what is wrong with the answer, in a few words.
    :param status: HTTP status.
    :param request_id: ``sib-request-id``.
    :param message_id: the message's id, where it could be read although the rest couldn't: the message was sent.
    :param quota: what the answer told about the quota.
    :param call: what was tried.
    """

    def __init__(
        self,
        reason: str,
        *,
        status: int,
        request_id: str | None = None,
        message_id: str | None = None,
        quota: Quota | None = None,
        call: str = "call Brevo",
    ) -> None:
        self.reason = reason
        self.status = status
        self.request_id = request_id
        self.message_id = message_id
        self.quota = quota
        self.call = call
        known = (
            "It may have been carried out: look before you repeat it"
            if message_id is None
            else f"It was carried out: do not repeat it. The message has the id {message_id}"
        )
        super().__init__(
            f"Cannot tell the result of the call to {call}: Brevo answered {status} "
            f"(sib-request-id {request_id or 'not given'}), but {reason.rstrip('.')}. {known}."
        )
