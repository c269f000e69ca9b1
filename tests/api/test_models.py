"""Models, beyond Brevo's description: times exact, old and new names of files, refusals, accounts and events."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from airflow_provider_sib.api.models import (
    Account,
    ConversationFragment,
    ConversationStarted,
    ConversationTranscript,
    File,
    Message,
    parse_event,
    reader,
)

SENT = {
    "agentId": "d9nKoegKSjmCtyK78",
    "createdAt": 1470222622433,
    "html": "Your order has shipped!",
    "id": "AXCR3k9bpSY7bpuh7",
    "isMissed": False,
    "isMissedByVisitor": False,
    "isPushed": True,
    "isTrigger": False,
    "text": "Your order has shipped!",
    "type": "agent",
    "visitorId": "kZMvWhf8npAu3H6qd57w2Hv6nh6rnxvg",
}


def read(value: dict[str, object]) -> Message:
    return reader(Message)(json.dumps(value).encode())


def test_the_documented_answer_reads_as_documented():
    message = read(SENT)
    assert message.visitor_id == SENT["visitorId"]
    assert message.is_pushed is True
    assert message.created_at == datetime(2016, 8, 3, 11, 10, 22, 433000, tzinfo=UTC)
    assert message.created_at.tzinfo is UTC
    assert message.received_from is None
    assert message.as_dict() == SENT


def test_an_unknown_field_named_like_ours_is_not_taken_for_it():
    message = read({"id": "x", "visitor_id": "odd"})
    assert message.visitor_id is None
    # pydantic 2.13.4 drops what is named like a field that has an alias; later ones keep it.
    assert message.model_extra in ({"visitor_id": "odd"}, {})


@given(st.integers(-(2**40), 253402300799999 - 86_400_000))
def test_times_are_exact_to_the_millisecond_both_ways(milliseconds):
    moment = read({"id": "x", "createdAt": milliseconds}).created_at
    assert moment is not None
    assert moment - datetime(1970, 1, 1, tzinfo=UTC) == timedelta(milliseconds=milliseconds)
    again = Message.model_validate({"id": "x", "createdAt": moment.astimezone(timezone(timedelta(hours=9)))})
    assert again.as_dict()["createdAt"] == milliseconds


@pytest.mark.parametrize(
    "value",
    ["1470222622433", 1470222622433.5, True, 10**18, [], datetime.fromisoformat("2020-01-01")],
    ids=repr,
)
def test_a_time_that_is_no_whole_number_of_milliseconds_is_refused(value):
    with pytest.raises(ValidationError):
        Message.model_validate({"id": "x", "createdAt": value})


def test_a_time_may_come_as_jsons_other_whole_number():
    assert read({"id": "x", "createdAt": 1470222622433.0}) == read({"id": "x", "createdAt": 1470222622433})


def test_a_type_of_message_nobody_documented_is_admitted():
    assert read({"id": "x", "type": "bot"}).type == "bot"


def test_a_message_without_id_is_no_message():
    with pytest.raises(ValueError, match=r"^id: Field required$"):
        read({"text": "hello"})


@pytest.mark.parametrize(
    "body", [b"", b"null", b"[]", b'"x"', b"\xff\xfe", b'{"id": 5}', b'{"id": ""}', b"{", b"[" * 100_000]
)
def test_what_is_no_message_is_refused_without_showing_it(body):
    with pytest.raises(ValueError, match=":") as caught:
        reader(Message)(body)
    assert "\xff" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_a_refusal_names_the_field_and_never_the_contents():
    with pytest.raises(ValueError, match="isPushed") as caught:
        read({"id": "x", "isPushed": "private words", "text": "more private words"})
    assert "private words" not in str(caught.value)


def test_a_message_can_not_be_changed():
    with pytest.raises(ValidationError):
        read({"id": "x"}).text = "y"


@pytest.mark.parametrize(
    "old",
    [
        {
            "filename": "a.png",
            "url": "https://x/a.png",
            "imageInfo": {"width": 1, "height": 2, "previewUrl": "p"},
        },
        {
            "fileName": "a.png",
            "url": "https://x/a.png",
            "imageInfo": {"width": 1, "height": 2, "previewUrl": "p"},
        },
        {
            "name": "a.png",
            "link": "https://x/a.png",
            "imageInfo": {"width": 1, "height": 2, "previewLink": "p"},
        },
    ],
    ids=["file of February 2026", "attachment of February 2026", "August 2026"],
)
def test_files_are_read_by_old_and_new_names_and_written_by_the_new(old):
    file = File.model_validate(old)
    assert (file.name, file.link) == ("a.png", "https://x/a.png")
    assert file.image_info is not None
    assert file.image_info.preview_link == "p"
    assert file.model_dump(by_alias=True, exclude_unset=True) == {
        "name": "a.png",
        "link": "https://x/a.png",
        "imageInfo": {"width": 1, "height": 2, "previewLink": "p"},
    }


@pytest.mark.parametrize(("value", "meant"), [("true", True), ("false", False), (True, True), (None, None)])
def test_is_inline_may_come_as_a_string(value, meant):
    assert File.model_validate({"isInline": value}).is_inline is meant


def test_an_account_keeps_what_nobody_documented():
    account = Account.model_validate(
        {
            "organization_id": "o",
            "user_id": 7,
            "companyName": "C",
            "plan": [{"type": "free", "credits": 300, "creditsType": "sendLimit", "new": 1}],
            "planVerticals": [{"planCategory": "Chat", "status": "active", "users": {"purchasedSeats": 1}}],
            "dateTimePreferences": {},
        }
    )
    assert account.organization_id == "o"
    assert account.plan_verticals is not None
    assert account.plan_verticals[0].plan_category == "Chat"
    assert account.model_extra == {"dateTimePreferences": {}}


MESSAGE = {"id": "m", "type": "visitor", "text": "hi", "createdAt": 1}


@pytest.mark.parametrize(
    ("payload", "kind"),
    [
        ({"eventName": "conversationStarted", "message": MESSAGE, "agent": {"id": "a"}}, ConversationStarted),
        ({"eventName": "conversationFragment", "messages": [MESSAGE], "agents": []}, ConversationFragment),
        (
            {"eventName": "conversationTranscript", "messages": [MESSAGE], "missedMessagesCount": 1},
            ConversationTranscript,
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_an_event_is_read_by_its_name(payload, kind):
    payload |= {"conversationId": "c", "visitor": {"id": "v", "attributes": {"EMAIL": "e"}, "new": 1}}
    event = parse_event(payload)
    assert type(event) is kind
    assert event.conversation_id == "c"
    assert event.visitor is not None
    assert event.visitor.id == "v"
    assert event.model_dump(mode="json", by_alias=True, exclude_unset=True) == payload


@pytest.mark.parametrize("name", [None, "conversationEnded", 7, ["x"]])
def test_an_event_of_another_name_is_refused_by_name(name):
    with pytest.raises(ValueError, match="conversationStarted, conversationFragment, conversationTranscript"):
        parse_event({"eventName": name})


def test_an_event_of_another_shape_names_the_field():
    with pytest.raises(ValueError, match=r"^messages\.0\.id: Field required$"):
        parse_event({"eventName": "conversationFragment", "messages": [{"text": "private"}]})
