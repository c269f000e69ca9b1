"""Hold Brevo's objects as typed values: documented fields by name, unknown ones kept.

Nothing but a message's id is required, since Brevo's documents require nothing; null and absent stay apart.
https://developers.brevo.com/reference/get-a-message
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    WithJsonSchema,
)
from pydantic.alias_generators import to_camel

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

M = TypeVar("M", bound=BaseModel)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


def _moment(value: object) -> datetime:
    match value:
        case bool():
            pass
        case int() | float() if value % 1 == 0:  # JSON's 1.0 is a whole number too
            try:
                return _EPOCH + value * _MILLISECOND
            except OverflowError:
                raise ValueError("a time in milliseconds since 1970 beyond the year 9999") from None
        case datetime() if value.tzinfo is not None and value.microsecond % 1000 == 0:
            return value.astimezone(UTC)
    raise ValueError("not a whole number of milliseconds since 1970")


def _milliseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // _MILLISECOND


Moment = Annotated[
    datetime,
    BeforeValidator(_moment),
    PlainSerializer(_milliseconds, return_type=int, when_used="json"),
    WithJsonSchema({"type": "integer", "format": "int64"}),
]
"""An aware moment in UTC, in JSON a whole number of milliseconds since the epoch; exact both ways."""


class _Documented(BaseModel):
    # By alias only: an unknown field that happens to be named `visitor_id` must stay what it is.
    model_config = ConfigDict(frozen=True, extra="allow", alias_generator=to_camel)


class EmailAddress(_Documented):
    """Name one end of an e-mail thread."""

    email: str | None = None
    name: str | None = None


class ForwardingStatus(_Documented):
    """Tell whether a message was forwarded to the channel it came from (WhatsApp, Instagram, …)."""

    is_success: bool | None = None
    error: str | None = None


class ImageInfo(_Documented):
    """Measure an image in pixels."""

    width: int | None = None
    height: int | None = None
    preview_link: str | None = Field(
        None,
        validation_alias=AliasChoices("previewLink", "previewUrl"),
        serialization_alias="previewLink",
    )


class File(_Documented):
    """Describe a file of a message.

    Brevo renamed fields in 2026 (``filename`` and ``fileName`` to ``name``, ``url`` to ``link``); both are read,
    the new names are written.
    """

    name: str | None = Field(
        None, validation_alias=AliasChoices("name", "filename", "fileName"), serialization_alias="name"
    )
    link: str | None = Field(None, validation_alias=AliasChoices("link", "url"), serialization_alias="link")
    mime_type: str | None = None
    is_image: bool | None = None
    is_sticker: bool | None = None
    is_inline: bool | None = None
    inline_id: str | None = None
    size: int | None = None
    image_info: ImageInfo | None = None
    is_allowed_file_type: bool | None = None


class Message(_Documented):
    """A message of a conversation, as Brevo returns it.

    Only ``id`` is always there. ``type`` is ``agent`` or ``visitor``; other values may come. ``text`` of a file
    message is the file's name. ``raw_unsafe_html`` is unescaped: never render it. ``created_at`` is an aware moment
    in UTC.
    """

    id: str = Field(min_length=1)
    type: str | None = None
    text: str | None = None
    html: str | None = None
    raw_unsafe_html: str | None = None
    visitor_id: str | None = None
    agent_id: str | None = None
    agent_name: str | None = None
    agent_userpic: str | None = None
    created_at: Moment | None = None
    is_pushed: bool | None = None
    is_trigger: bool | None = None
    is_missed: bool | None = None
    is_missed_by_visitor: bool | None = None
    is_bot: bool | None = None
    is_sent_via_js_api: bool | None = None
    is_forward: bool | None = None
    received_from: str | None = None
    message_type: str | None = None
    source: dict[str, Any] | None = None
    integrations: dict[str, Any] | None = None
    source_message_id: str | None = None
    forwarded_to_source_status: ForwardingStatus | None = None
    subject: str | None = None
    from_: EmailAddress | None = Field(None, alias="from")
    reply_to: EmailAddress | None = None
    to: list[EmailAddress] | None = None
    cc: list[EmailAddress] | None = None
    bcc: list[EmailAddress] | None = None
    file: File | None = None
    attachments: list[File] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Give the message back as Brevo's JSON: its own names, milliseconds, only what was there.

        :return: a dict of JSON values, fit for an XCom.
        """
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


class VisitorGroup(_Documented):
    """Tell the group a visitor is in now; Brevo leaves both types open."""

    group_id: str | None = None
    visitor_id: str | None = None


class AccountAddress(_Documented):
    """Postal address of an account."""

    street: str | None = None
    city: str | None = None
    zip_code: str | None = None
    country: str | None = None


class AccountPlan(_Documented):
    """One plan of an account, with its credits."""

    type: str | None = None
    credits: float | None = None
    credits_type: str | None = None
    start_date: str | None = None
    end_date: str | None = None


class PlanSeats(_Documented):
    """Seats of a plan."""

    purchased_seats: int | None = None
    used_seats: int | None = None


class PlanVertical(_Documented):
    """One part of the offer; ``plan_category`` "Chat" shows whether Conversations is in the plan.

    ``start_date`` and ``end_date`` are seconds since the epoch, as strings.
    """

    plan_category: str | None = None
    plan_type: str | None = None
    name: str | None = None
    status: str | None = None
    start_date: str | None = None
    end_date: str | None = None
    users: PlanSeats | None = None
    credits: float | None = None


class Account(_Documented):
    """The account a key belongs to. https://developers.brevo.com/reference/get-account."""

    organization_id: str | None = Field(None, alias="organization_id")
    user_id: int | None = Field(None, alias="user_id")
    enterprise: bool | None = None
    company_name: str | None = None
    email: str | None = None
    first_name: str | None = None
    last_name: str | None = None
    address: AccountAddress | None = None
    plan: list[AccountPlan] | None = None
    relay: dict[str, Any] | None = None
    marketing_automation: dict[str, Any] | None = None
    plan_verticals: list[PlanVertical] | None = None


class Agent(_Documented):
    """An agent, as webhooks show one."""

    id: str | None = None
    name: str | None = None
    email: str | None = None
    userpic: str | None = None


class Page(_Documented):
    """A page of the web site."""

    link: str | None = None
    title: str | None = None


class Visit(_Documented):
    """A visitor's visit. The moments are as Brevo sends them: their form is not documented."""

    started_at: Any = None
    finished_at: Any = None
    host_name: str | None = None
    viewed_pages: list[Page] | None = None


class Visitor(_Documented):
    """A visitor, as webhooks show one; ``id`` is the ``visitor_id`` of calls."""

    id: str | None = None
    thread_id: str | None = None
    thread_link: str | None = None
    source: str | None = None
    source_channel_ref: str | None = None
    source_channel_link: str | None = None
    source_conversation_ref: str | None = None
    group_id: str | None = None
    color: str | None = None
    ip: str | None = None
    browser_language: str | None = None
    conversation_language: str | None = None
    browser: str | None = None
    os: str | None = None
    user_agent: str | None = None
    country: str | None = None
    city: str | None = None
    last_visit: Visit | None = None
    displayed_name: str | None = None
    contact_attributes: dict[str, Any] | None = None
    integration_attributes: dict[str, Any] | None = None
    attributes: dict[str, Any] | None = None
    formatted_attributes: Any = None
    notes: Any = None
    contact_id: int | None = None
    marketing_consent: bool | None = None
    terms_of_service_consent: bool | None = None
    is_banned: bool | None = None


class _Event(_Documented):
    conversation_id: str | None = None
    visitor: Visitor | None = None


class ConversationStarted(_Event):
    """A visitor or an agent began to write; pushed and targeted messages do not cause it."""

    event_name: Literal["conversationStarted"]
    message: Message | None = None
    agent: Agent | None = None
    conversation_start_page: Page | None = None
    is_no_available_agent: bool | None = None


class ConversationFragment(_Event):
    """The conversation goes on. The messages come in no promised order, and may come again: go by their ids."""

    event_name: Literal["conversationFragment"]
    messages: list[Message] | None = None
    agents: list[Agent] | None = None
    is_no_available_agent: bool | None = None


class ConversationTranscript(_Event):
    """The conversation ended."""

    event_name: Literal["conversationTranscript"]
    messages: list[Message] | None = None
    agents: list[Agent] | None = None
    conversation_start_page: Page | None = None
    missed_messages_count: int | None = None


_EVENTS: dict[str, type[ConversationStarted | ConversationFragment | ConversationTranscript]] = {
    "conversationStarted": ConversationStarted,
    "conversationFragment": ConversationFragment,
    "conversationTranscript": ConversationTranscript,
}


def parse_event(
    payload: Mapping[str, Any],
) -> ConversationStarted | ConversationFragment | ConversationTranscript:
    """Read a webhook's event. https://developers.brevo.com/docs/conversations-webhooks.

    :param payload: the webhook's body, as ``json.loads`` gives it.
    :return: the event, of the class that its ``eventName`` names.
    :raises ValueError: if it isn't one of the three events, or a documented field has another type.
    """
    name = payload.get("eventName")
    model = _EVENTS.get(name) if isinstance(name, str) else None
    if model is None:
        raise ValueError(f"eventName is {name!r:.80}; Conversations sends {', '.join(_EVENTS)}")
    try:
        return model.model_validate(payload)
    except ValidationError as error:
        raise ValueError(_named(error)) from None


def reader(model: type[M]) -> Callable[[bytes], M]:
    """Make a function that reads a model from JSON.

    :param model: what is to come out.
    :return: a function of the JSON's bytes, which raises a ValueError that names fields but holds no contents.
    """

    def read(body: bytes) -> M:
        try:
            return model.model_validate_json(body)
        except ValidationError as error:
            raise ValueError(_named(error)) from None

    return read


def _named(error: ValidationError) -> str:
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return "; ".join(
        f"{'.'.join(str(part) for part in one['loc']) or 'the body'}: {one['msg']}" for one in found[:3]
    )
