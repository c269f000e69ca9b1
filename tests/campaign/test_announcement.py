"""Texts, draws and windows: what each visitor is told, who is drawn for what, and when."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from airflow_provider_sib.campaign import WEEKDAYS, SendWindow, Variant
from airflow_provider_sib.campaign.announcement import (
    DRAWS,
    HOLDOUT,
    Announcement,
    Enroller,
    RecipientError,
    WindowState,
    window_state,
)
from airflow_provider_sib.campaign.ledger import RANKS, Recipient

ADA = Recipient(
    "ada/1",
    {
        "first_name": "Ada",
        "plan": "pro",
        "points": "7",
        "price": 12.5,
        "tags": ["a", "b"],
        "address": {"city": "Paris", "items": "x"},
        "blank": "  ",
        "nothing": None,
        "keys": "a column called keys",
        "two words": "yes",
        "evil": "[[ visitor.plan ]] {{ 7*7 }} <b>",
    },
    "Europe/Paris",
    "fr-CA",
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Hello", "Hello"),
        ("Hello [[ visitor.first_name ]]\n", "Hello Ada\n"),
        ("Hello [[visitor.first_name|upper]]", "Hello ADA"),
        ("Hello [[ visitor.nothing | default('there') ]]", "Hello there"),
        ("Hello [[ visitor.blank | default('there') ]]", "Hello there"),
        ("Hello [[ visitor.missing | default('there') ]]", "Hello there"),
        ("Hello [[ visitor.address.street.number | default('there') ]]", "Hello there"),
        ("[[ visitor['two words'] ]] [[ visitor.address.city ]] [[ visitor.tags[-1] ]]", "yes Paris b"),
        ("[[ visitor.keys ]] [[ visitor.address.items ]]", "a column called keys x"),
        ("[[ visitor.tags | join(', ') ]] [[ visitor.tags | length ]]", "a, b 2"),
        ("[[ visitor.points | int + 1 ]] [[ visitor.price * 2 ]]", "8 25.0"),
        ("[% if visitor.plan == 'pro' %]P[% else %]F[% endif %]", "P"),
        ("[% if visitor.nothing %]P[% else %]F[% endif %]", "F"),
        ("x[[ visitor.evil ]]", "x[[ visitor.plan ]] {{ 7*7 }} <b>"),
        ("[[ visitor.visitor_id | urlencode ]] [[ visitor.timezone ]]", "ada/1 Europe/Paris"),
        ("[[ '[[' ]] visitor.x ]] [#123] a[b[0]] [50%]", "[[ visitor.x ]] [#123] a[b[0]] [50%]"),
        ("[% raw %][[ visitor.x ]][% endraw %]", "[[ visitor.x ]]"),
    ],
)
def test_a_text_is_filled_with_the_visitors_data(text, said):
    assert Announcement(text).render(ADA) == said


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "[[ visitor.surname ]]",
            r"can't fill the placeholder \[\[ visitor.surname \]\]: there is no 'surname'",
        ),
        (
            "[[ visitor.plan ]] [[ visitor.blank ]]",
            r"placeholder \[\[ visitor.blank \]\]: 'blank' is empty; add",
        ),
        ("[[ visitor.blank | upper ]]", "'blank' is empty"),
        ("[[ visitor.nothing | join('') ]]", "'nothing' is empty"),
        ("[[ visitor.nothing | length ]]", "'nothing' is empty"),
        ("[[ visitor.nothing + 'x' ]]", "'nothing' is empty"),
        (
            "a\n[[ visitor.plan ]]\n[[ visitor.first_name | int ]]",
            r"first_name \| int \]\]: the value is of the",
        ),
        ("[% if visitor.first_name > 3 %]x[% endif %]", r"\[% if visitor.first_name > 3 %\]: the value"),
        ("[[ visitor.tags ]]", "of the wrong kind"),
        ("[[ visitor.address ]]", "of the wrong kind"),
        ("[[ 'a' * 10000000000 ]]", "of the wrong kind"),
        ("[[ '%9999999999s' % 1 ]]", "of the wrong kind"),
        ("[[ visitor.first_name.__class__ ]]", "there is no '__class__' in this value"),
        ("[[ visitor.tags[5] ]]", "there is no 5 in this value"),
        ("[% if visitor.plan == 'free' %]x[% endif %]", "gives a text that is blank"),
    ],
)
def test_a_text_that_cannot_be_filled_names_the_placeholder_and_no_data(text, reason):
    with pytest.raises(RecipientError, match=reason) as caught:
        Announcement(text).render(ADA)
    for value in ("Ada", "Paris", "ada/1"):
        assert value not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__


def test_half_a_surrogate_pair_in_a_row_is_that_rows_fault():
    """JSON can escape it; no request can carry it, and meeting it while sending would stop all the others."""
    with pytest.raises(RecipientError, match="half of a surrogate pair"):
        Announcement("Hi [[ visitor.name ]]").render(Recipient("v1", {"name": "\ud83c"}))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("  ", "The text is blank"),
        ("a\0", "NUL"),
        ("\ud800", "surrogate"),
        ("[[ first_name ]]", "there is no name 'first_name'; a column is visitor.first_name"),
        ("Hi [[ visitor.a", r"begins \[\[ visitor.a has no \]\]"),
        ("Hi [% if visitor.a", r"begins \[% if visitor.a has no %\]"),
        ("[[ visitor.a ]", "unexpected '\\]'"),
        ("[[ visitor.a ! ]]", "unexpected char '!'"),
        ("[[ ]]", "Expected an expression"),
        ("Hi {{ visitor.a }}", r"still contains {{ visitor.a }}.*\[\[ visitor.first_name \]\]"),
        ("Hi {% if x %}", "still contains {% if x %}"),
        ("Hi [visitor.a]", r"contains \[visitor.a\], but a placeholder has two brackets"),
        ("Hi [ visitor['a'] ]", "two brackets"),
        ("[% for x in visitor.tags %][[ x ]][% endfor %]", "can't have For"),
        ("[% set x = 1 %]", "can't have Assign"),
        ("[% include 'x' %]", "can't have Include"),
        ("[[ visitor.a.upper() ]]", "nothing can be called"),
        ("[[ range(10) ]]", "nothing can be called|there is no name 'range'"),
        ("[[ 9 ** 9 ]]", "can't have Pow"),
        ("[[ visitor[visitor.a] ]]", "in single brackets"),
        ("[[ visitor.a[1:2] ]]", "in single brackets"),
        ("[[ visitor.a | lowr ]]", "there is no filter 'lowr', but abs, "),
        ("[[ visitor.a | safe ]]", "there is no filter 'safe'"),
        ("[[ visitor.a is sameas(1) ]]", "there is no test 'sameas'"),
        ("[% if visitor.a %]x", "Unexpected end of template"),
        ("[[" + "(" * 3000 + "1" + ")" * 3000 + "]]", "nested too deeply"),
    ],
)
def test_a_mistake_in_a_text_is_found_before_anyone_is_written_to(text, said):
    with pytest.raises(ValueError, match=said):
        Announcement(text)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({}, ValueError, "either text or variants"),
        ({"text": "a", "variants": {"x": "b"}}, ValueError, "either text or variants"),
        ({"text": 3}, TypeError, "text is of type int"),
        ({"text": {"en": 3}}, TypeError, "text: Variant.text is a mapping"),
        ({"text": {"fr": "a"}}, ValueError, "'fr', but not for default_locale 'en'"),
        ({"text": {"en": "a", "EN": "b"}}, ValueError, "'EN' is there twice"),
        ({"text": {"en": "a", "?": "b"}}, ValueError, r"'\?' is no locale"),
        ({"text": {"en": "a", "fr": " "}}, ValueError, "The text for 'fr' is blank"),
        ({"text": "a", "default_locale": ""}, ValueError, "default_locale"),
        ({"text": "a", "default_locale": None}, ValueError, "default_locale"),
        ({"variants": {}}, TypeError, "variants must be a mapping"),
        ({"variants": ["a"]}, TypeError, "variants must be a mapping"),
        ({"variants": {"": "a"}}, ValueError, "the name ''"),
        ({"variants": {"x": 3}}, TypeError, r"variants\['x'\]: Variant.text is of type int"),
        ({"variants": {"x": "[[ y ]]"}}, ValueError, "The text of variant 'x'"),
    ],
)
def test_wrong_arguments_are_named(arguments, error, said):
    with pytest.raises(error, match=said):
        Announcement(**arguments)


@pytest.mark.parametrize(
    ("locale", "said"),
    [
        ("fr", "Salut"),
        ("FR", "Salut"),
        ("fr-CA", "Allo"),
        ("fr_ca.UTF-8", "Allo"),
        ("fr-BE", "Salut"),
        ("zh_Hant_TW", "繁"),
        ("zh-Hans", "Hi"),
        ("frr", "Hi"),
        ("de", "Hi"),
        (None, "Hi"),
        ("", "Hi"),
        ("???", "Hi"),
    ],
)
def test_a_locale_falls_back_on_its_language_and_then_on_the_default(locale, said):
    texts = {"en": "Hi", "fr": "Salut", "fr_CA": "Allo", "zh-Hant": "繁"}
    announcement = Announcement(texts, default_locale="en-GB")
    assert announcement.render(Recipient("a", {}, None, locale)) == said


def test_equal_texts_have_one_identity_however_they_are_written():
    one = Announcement({"en": "Hi", "fr-CA": "Allo"})
    assert one == Announcement({"fr_ca": "Allo", "EN": "Hi"})
    assert Announcement("Hi") == Announcement({"en": "Hi"})
    assert Announcement(variants={"a": "x", "b": Variant("y", 2)}) == Announcement(
        variants={"b": Variant("y", 2.0), "a": Variant("x")}
    )
    others = [
        one,
        Announcement("Hi"),
        Announcement("Hi!"),
        Announcement("Hi", default_locale="fr"),
        Announcement(variants={"a": "Hi"}),
        Announcement(variants={"a": Variant("Hi", 2)}),
    ]
    assert len(set(others)) == len(others)


def test_the_identity_of_a_text_is_pinned():
    assert Announcement("Hi [[ visitor.first_name ]]").digest == (
        "ce0becd0f7e7c9e36ce0952e430d3fd95951faf509505a20854b1d3d3101741f"
    )


@pytest.mark.parametrize(
    "announcement",
    [
        Announcement("Hi"),
        Announcement({"en": "a", "fr": "b"}),
        Announcement(variants={"x": Variant("é", 0.3)}),
    ],
)
def test_json_and_back_gives_an_equal_announcement(announcement):
    assert Announcement.from_dict(json.loads(json.dumps(announcement.as_dict()))) == announcement


def test_a_variant_that_is_no_longer_there_is_said():
    with pytest.raises(RecipientError, match="variant 'b', which the announcement no longer has"):
        Announcement(variants={"a": "x"}).render(ADA, "b")


# draws

VECTORS = [
    ("release-2026-11", "ada", (2088925713788214083, 9153758418828555174, 1251133052984067006)),
    ("release-2026-11", "bob", (2726655153350917980, 2604164222494069492, 7614436747859212533)),
    ("welcome", "ada", (4014349705603765442, 14258511848606159453, 14213216769224208370)),
    ("é", '["ada","A-7"]', (3365922494581802936, 14938761146543493638, 11592455804109224199)),
]


@pytest.mark.parametrize(("campaign", "key", "drawn"), VECTORS)
def test_draws_are_pinned_since_they_decide_who_was_in_a_canary(campaign, key, drawn):
    assert Enroller(campaign, Announcement("x")).draw(key) == drawn


IDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(IDS, IDS)
def test_draws_are_in_their_range(campaign, key):
    rank, variant, holdout = Enroller(campaign, Announcement("x")).draw(key)
    assert 0 <= rank < RANKS
    assert 0 <= variant < DRAWS
    assert 0 <= holdout < DRAWS


def test_a_canary_holds_every_variant_and_its_share_of_the_holdout():
    announcement = Announcement(variants={"a": "x", "b": Variant("y", 3)})
    enroller = Enroller("release", announcement, holdout=0.2)
    rows = sorted(
        (enroller.enrolment(Recipient(f"v{number}", {})) for number in range(20_000)),
        key=lambda row: row.rank,
    )
    for part in (rows[:2000], rows):
        shares = Counter(row.variant for row in part)
        assert 0.22 < shares["a"] / len(part) < 0.28
        assert 0.18 < sum(row.skip == HOLDOUT for row in part) / len(part) < 0.22


def test_the_order_of_the_variants_and_a_larger_holdout_draw_nobody_anew():
    people = [Recipient(f"v{number}", {}) for number in range(500)]
    one = Enroller("c", Announcement(variants={"a": "x", "b": "y"}), holdout=0.1)
    other = Enroller("c", Announcement(variants={"b": "y", "a": "x"}), holdout=0.3)
    for person in people:
        before, after = one.enrolment(person), other.enrolment(person)
        assert before.variant == after.variant
        assert before.rank == after.rank
        assert not (before.skip and not after.skip)


@pytest.mark.parametrize(
    ("once_per", "key"),
    [
        ("visitor_id", "ada/1"),
        ("order", "A-7"),
        (["order"], "A-7"),
        (("visitor_id", "order"), '["ada/1","A-7"]'),
        (("order", "number", "locale"), '["A-7","7","é"]'),
        ("timezone", "UTC"),
    ],
)
def test_the_once_key_is_the_columns_value_or_several_as_a_json_array(once_per, key):
    recipient = Recipient("ada/1", {"order": "A-7", "number": 7}, "UTC", "é")
    assert Enroller("c", Announcement("x"), once_per=once_per).once_key(recipient) == key


@given(st.lists(st.text(), min_size=2, max_size=2), st.lists(st.text(), min_size=2, max_size=2))
def test_once_keys_of_several_columns_are_equal_only_when_the_columns_are(one, other):
    enroller = Enroller("c", Announcement("x"), once_per=("a", "b"))
    try:
        keys = [
            enroller.once_key(Recipient("v", dict(zip("ab", values, strict=True)))) for values in (one, other)
        ]
    except RecipientError:
        return
    assert (keys[0] == keys[1]) == (one == other)


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({}, "nothing in column 'order'"),
        ({"order": " "}, "nothing in column 'order'"),
        ({"order": None}, "nothing in column 'order'"),
        ({"order": 1.5}, "a float in column 'order'"),
        ({"order": True}, "a bool in column 'order'"),
        ({"order": ["x"]}, "a list in column 'order'"),
        ({"order": "x" * 256}, r"a once key \(order\) that has more than 255"),
        ({"order": " x"}, "has blanks around it"),
    ],
)
def test_a_row_without_a_usable_once_key_is_refused(variables, reason):
    with pytest.raises(RecipientError, match=reason):
        Enroller("c", Announcement("x"), once_per="order").enrolment(Recipient("v", variables))


def test_a_text_is_tried_at_enrolment_but_not_for_the_holdout():
    people = [Recipient(f"v{number}", {}) for number in range(50)]
    enroller = Enroller("c", Announcement("[[ visitor.name ]]"), holdout=0.5)
    outcomes = Counter()
    for person in people:
        try:
            outcomes[enroller.enrolment(person).skip] += 1
        except RecipientError:
            outcomes["bad"] += 1
    assert set(outcomes) == {HOLDOUT, "bad"}


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"holdout": 1.0}, ValueError, "holdout is 1.0"),
        ({"holdout": -0.1}, ValueError, "holdout is -0.1"),
        ({"holdout": float("nan")}, ValueError, "holdout is nan"),
        ({"holdout": "0.1"}, TypeError, "holdout is of type str"),
        ({"once_per": []}, ValueError, "once_per is empty"),
        ({"once_per": ""}, ValueError, "once_per is empty"),
        ({"once_per": ["a", "a"]}, ValueError, "twice"),
        ({"once_per": [3]}, TypeError, "once_per must be"),
    ],
)
def test_wrong_rules_of_enrolment_are_named(arguments, error, said):
    with pytest.raises(error, match=said):
        Enroller("c", Announcement("x"), **arguments)


# windows


def moment(text: str, zone: str = "UTC", fold: int = 0) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold).astimezone(UTC)


OFFICE = SendWindow("09:00", "18:00", WEEKDAYS[:5], default_timezone="Europe/Berlin")
NIGHT = SendWindow("22:00", "06:00", ["fri"], default_timezone=None)
GAP = SendWindow("02:15", "02:45", default_timezone="Europe/Berlin")
LATE = SendWindow("02:30", "03:30", default_timezone="Europe/Berlin")
MONDAY = SendWindow("00:00", "24:00", ["mon"], default_timezone="UTC")
ALWAYS = SendWindow("00:00", "24:00", default_timezone="UTC")
BERLIN, LORD_HOWE, APIA = "Europe/Berlin", "Australia/Lord_Howe", "Pacific/Apia"


@pytest.mark.parametrize(
    ("window", "zone", "now", "is_open", "changes_at"),
    [
        # 2026-11-23 is a Monday.
        (OFFICE, BERLIN, moment("2026-11-23T09:00", BERLIN), True, moment("2026-11-23T18:00", BERLIN)),
        (OFFICE, BERLIN, moment("2026-11-23T08:59:59", BERLIN), False, moment("2026-11-23T09:00", BERLIN)),
        (OFFICE, BERLIN, moment("2026-11-23T18:00", BERLIN), False, moment("2026-11-24T09:00", BERLIN)),
        (OFFICE, BERLIN, moment("2026-11-27T20:00", BERLIN), False, moment("2026-11-30T09:00", BERLIN)),
        (OFFICE, None, moment("2026-11-23T12:00", BERLIN), True, moment("2026-11-23T18:00", BERLIN)),
        (OFFICE, "Mars/Base", moment("2026-11-23T12:00", BERLIN), True, moment("2026-11-23T18:00", BERLIN)),
        (OFFICE, "Asia/Tokyo", moment("2026-11-23T08:00"), True, moment("2026-11-23T18:00", "Asia/Tokyo")),
        (NIGHT, "UTC", moment("2026-11-27T22:00"), True, moment("2026-11-28T06:00")),
        (NIGHT, "UTC", moment("2026-11-28T05:59"), True, moment("2026-11-28T06:00")),
        (NIGHT, "UTC", moment("2026-11-27T05:00"), False, moment("2026-11-27T22:00")),
        (NIGHT, "UTC", moment("2026-11-28T22:30"), False, moment("2026-12-04T22:00")),
        (MONDAY, "UTC", moment("2026-11-23T00:00"), True, moment("2026-11-24T00:00")),
        (MONDAY, "UTC", moment("2026-11-24T00:00"), False, moment("2026-11-30T00:00")),
        (ALWAYS, "UTC", moment("2026-11-24T00:00"), True, None),
        # Berlin's clocks go from 02:00 to 03:00 on 2026-03-29, and from 03:00 back to 02:00 on 2026-10-25.
        (GAP, BERLIN, moment("2026-03-29T01:00", BERLIN), False, moment("2026-03-30T02:15", BERLIN)),
        (LATE, BERLIN, moment("2026-03-29T01:00", BERLIN), False, moment("2026-03-29T03:00", BERLIN)),
        (GAP, BERLIN, moment("2026-10-25T02:20", BERLIN), True, moment("2026-10-25T02:45", BERLIN)),
        (GAP, BERLIN, moment("2026-10-25T02:50", BERLIN), False, moment("2026-10-25T02:15", BERLIN, 1)),
        (GAP, BERLIN, moment("2026-10-25T02:20", BERLIN, 1), True, moment("2026-10-25T02:45", BERLIN, 1)),
        (LATE, BERLIN, moment("2026-10-25T02:40", BERLIN), True, moment("2026-10-25T02:00", BERLIN, 1)),
        (OFFICE, BERLIN, moment("2026-10-23T19:00", BERLIN), False, moment("2026-10-26T09:00", BERLIN)),
        # Lord Howe's clocks are changed by half an hour; Apia had no 2011-12-30, a Friday.
        (GAP, LORD_HOWE, moment("2026-10-04T01:00", LORD_HOWE), False, moment("2026-10-04T02:30", LORD_HOWE)),
        (NIGHT, APIA, moment("2011-12-29T23:30", APIA), False, moment("2011-12-31T00:00", APIA)),
    ],
)
def test_the_clock_on_the_visitors_wall_decides(window, zone, now, is_open, changes_at):
    assert window_state(window, zone, now) == WindowState(is_open, changes_at)


@pytest.mark.parametrize("zone", [None, "Mars/Base", "Europe", "", "x" * 300, "../etc"])
def test_without_a_zone_and_a_default_there_is_no_answer(zone):
    assert window_state(NIGHT, zone, moment("2026-11-23T12:00")) is None


def test_a_naive_moment_is_refused():
    with pytest.raises(ValueError, match="no time zone"):
        window_state(OFFICE, None, datetime(2026, 1, 1))  # noqa: DTZ001  # that is the point


@given(
    start=st.times().map(lambda clock: clock.replace(microsecond=0, tzinfo=None)),
    end=st.times().map(lambda clock: clock.replace(microsecond=0, tzinfo=None)),
    days=st.lists(st.sampled_from(WEEKDAYS), min_size=1),
    zone=st.sampled_from([BERLIN, LORD_HOWE, "America/St_Johns", "Africa/Casablanca", "Asia/Kathmandu"]),
    now=st.datetimes(datetime(2024, 1, 1), datetime(2027, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
    step=st.floats(0.001, 0.999),
)
def test_a_window_keeps_its_state_until_it_says_and_has_the_other_then(start, end, days, zone, now, step):
    assume(start != end)
    window = SendWindow(start, end, days, default_timezone=zone)
    state = window_state(window, zone, now)
    assert state.changes_at > now
    between = now + (state.changes_at - now) * step
    assert window_state(window, zone, between) == state
    local = between.astimezone(ZoneInfo(zone))
    inside = start <= local.time() < end if start < end else not end <= local.time() < start
    assert not (state.is_open and not inside)
    assert window_state(window, zone, state.changes_at).is_open is not state.is_open
    assert state.changes_at - now <= timedelta(days=8)
