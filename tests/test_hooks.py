"""The hook against the sandbox: connections of every form, every operation, the Test button's answers."""

from __future__ import annotations

import json
import socket

import pytest
from airflow.sdk import Connection

from airflow_provider_sib._compat import AirflowFailException
from airflow_provider_sib.api.errors import InvalidRequest, NotFound, RateLimited, Unauthorized
from airflow_provider_sib.hooks import (
    ConnectionSettings,
    SibConversationsHook,
    VisitorNotAllowed,
    defer_after_seconds,
)
from airflow_provider_sib.provider_info import CONN_FIELDS

AGENT = "d9nKoegKSjmCtyK78"
GROUP = "PjRBMhWGen6aRHjif"
VISITOR = "kZMvWhf8npAu3H6qd57w2Hv6nh6rnxvg"


def settings(**connection) -> ConnectionSettings:
    if isinstance(connection.get("extra"), dict):
        connection["extra"] = json.dumps(connection["extra"])
    return ConnectionSettings.from_connection(
        Connection(conn_id="c", conn_type="sib_conversations", **{"password": "xkeysib-1"} | connection)
    )


@pytest.fixture
def connect(monkeypatch, sib_sandbox):
    """Give a hook on the sandbox whose connection has the given extras or other fields."""

    def _connect(*, conn=None, **extra):
        monkeypatch.setenv("AIRFLOW_CONN_SANDBOX", json.dumps(sib_sandbox.connection(**extra) | (conn or {})))
        return SibConversationsHook("sandbox", rate_limit_wait_seconds=0)

    return _connect


class TestConnection:
    @pytest.mark.parametrize(
        ("fields", "base_url"),
        [
            ({}, "https://api.brevo.com/v3"),
            ({"host": ""}, "https://api.brevo.com/v3"),
            ({"host": "https://api.brevo.com/v3/"}, "https://api.brevo.com/v3"),
            ({"host": "api.brevo.com"}, "https://api.brevo.com/v3"),
            ({"host": "api.brevo.com", "schema": "v3"}, "https://api.brevo.com/v3"),
            ({"host": "http://127.0.0.1:8090/v3"}, "http://127.0.0.1:8090/v3"),
            ({"host": "http://127.0.0.1/v3", "port": 8090}, "http://127.0.0.1:8090/v3"),
            ({"host": "http://127.0.0.1:8090/v3", "port": 9}, "http://127.0.0.1:8090/v3"),
            ({"host": "https://api.brevo.com/v3", "port": 0}, "https://api.brevo.com/v3"),
            ({"host": "http://[::1]:8090"}, "http://[::1]:8090/v3"),
            ({"host": "https://gateway.example/brevo/v3"}, "https://gateway.example/brevo/v3"),
        ],
    )
    def test_host_and_port_make_the_base_url(self, fields, base_url):
        assert settings(**fields).base_url == base_url

    def test_a_uri_gives_strings_which_become_what_the_form_gives(self, monkeypatch):
        monkeypatch.setenv(
            "AIRFLOW_CONN_BY_URI",
            "sib-conversations://:xkeysib-1@api.brevo.com/v3?timeout_seconds=12.5&requests_per_hour=200"
            "&reserve_calls=0&allow_insecure_http=true&allowed_visitors=qa-%2A%2Cme&agent_id=a1",
        )
        got = SibConversationsHook("by_uri").settings
        assert got == ConnectionSettings(
            conn_id="by_uri",
            base_url="https://api.brevo.com/v3",
            api_key="xkeysib-1",
            timeout_seconds=12.5,
            requests_per_hour=200,
            reserve_calls=0,
            proxy=None,
            agent_id="a1",
            group_id=None,
            allowed_visitors=("qa-*", "me"),
            allow_insecure_http=True,
            problems=(),
        )

    def test_without_extras_the_defaults_are_those_the_form_shows(self):
        got = settings()
        assert got.problems == ()
        for name, spec in CONN_FIELDS.items():
            if "default" in spec["schema"]:
                assert getattr(got, name) == spec["schema"]["default"]

    def test_what_the_form_leaves_empty_is_absent(self):
        blank = dict.fromkeys(CONN_FIELDS, "") | {"timeout_seconds": None}
        assert settings(extra=blank) == settings()

    @pytest.mark.parametrize(
        ("extra", "problem"),
        [
            ({"timeout": 5}, "The extra 'timeout' is unknown; did you mean 'timeout_seconds'?"),
            ({"zzz": 5}, "The extra 'zzz' is unknown; known are timeout_seconds, "),
            ({"timeout_seconds": "soon"}, "The extra 'timeout_seconds' must be a number of at least 1"),
            ({"timeout_seconds": 0}, "must be a number of at least 1"),
            ({"timeout_seconds": float("nan")}, "must be a number of at least 1"),
            ({"requests_per_hour": "1e2"}, "must be a whole number of at least 1"),
            ({"requests_per_hour": 1.5}, "must be a whole number of at least 1"),
            ({"reserve_calls": True}, "must be a whole number of at least 0"),
            ({"allow_insecure_http": "maybe"}, "must be true or false"),
        ],
    )
    def test_a_wrong_or_unknown_extra_is_named_and_takes_its_default(self, extra, problem):
        got = settings(extra=extra)
        assert len(got.problems) == 1
        assert problem in got.problems[0]
        default = settings()
        assert (got.timeout_seconds, got.reserve_calls, got.allow_insecure_http) == (
            default.timeout_seconds,
            default.reserve_calls,
            default.allow_insecure_http,
        )

    @pytest.mark.parametrize(
        "extra",
        [
            {"allowed_visitors": {"a": 1}},
            {"proxy": 1.5},
            {"agent_id": ["a", 1]},
            {"agent_id": "a", "group_id": "g"},
            {"allowed_visitor": "qa-*"},
            {"ALLOWED_VISITORS": "qa-*"},
            {"allowed_visitors": "qa-*", "proxies": "http://proxy"},
        ],
    )
    def test_a_wrong_or_misspelt_extra_that_says_who_writes_to_whom_is_refused(self, extra):
        with pytest.raises(AirflowFailException, match=next(reversed(extra))):
            settings(extra=extra)

    @pytest.mark.parametrize(
        "extra",
        [
            '{"allowed_visitors": "qa-*",}',
            "{'allowed_visitors': 'qa-*'}",
            "allowed_visitors=qa-*",
            '["qa-*"]',
            r'"{\"allowed_visitors\": \"qa-*\"}"',
            "null",
        ],
    )
    def test_an_extra_that_is_no_json_object_is_refused_and_not_shown(self, extra):
        with pytest.raises(
            AirflowFailException, match="Connection 'c': its extra is no JSON object"
        ) as refused:
            settings(extra=extra)
        assert "qa-*" not in str(refused.value)

    @pytest.mark.parametrize("extra", [None, "", " \n", "{}"])
    def test_a_blank_extra_is_none(self, extra, logged):
        assert settings(extra=extra) == settings()
        assert logged() == ""

    async def test_so_it_is_in_a_trigger_and_by_the_test_button(self):
        """As a worker's secrets backend gives it; where Airflow keeps it itself, it has refused it before."""

        class Hook(SibConversationsHook):
            @classmethod
            def get_connection(cls, conn_id):
                return Connection(
                    conn_id=conn_id, conn_type="sib_conversations", password="xkeysib-1", extra="{,}"
                )

            @classmethod
            async def aget_connection(cls, conn_id):
                return cls.get_connection(conn_id)

        with pytest.raises(AirflowFailException, match="no JSON object"):
            await Hook().aget_settings()
        works, said = Hook().test_connection()
        assert not works
        assert "its extra is no JSON object" in said

    def test_warned_of_at_run_time(self, connect, logged):
        with connect(timeout=5) as hook:
            hook.send_pushed_message(VISITOR, "Hello")
        assert "Connection sandbox: The extra 'timeout' is unknown" in logged()

    def test_without_api_key_it_is_refused_with_the_way_out(self):
        with pytest.raises(AirflowFailException, match="'c' has no API key"):
            settings(password=" ")

    def test_the_key_is_in_no_repr(self):
        assert "xkeysib-1" not in repr(settings())


class TestOperations:
    def test_a_pushed_message_lives_through_all_four(self, connect, sib_sandbox):
        with connect() as hook:
            sent = hook.send_pushed_message(visitor_id=VISITOR, text="Version 2 is out.")
            assert hook.get_pushed_message(sent.id) == sent
            assert (
                hook.update_pushed_message(sent.id, text="Version 2.1 is out.").text == "Version 2.1 is out."
            )
            hook.delete_pushed_message(sent.id)
            with pytest.raises(NotFound):
                hook.get_pushed_message(sent.id)
        assert sent.is_pushed
        assert [m["deleted"] for m in sib_sandbox.messages(VISITOR)] == [True]

    def test_an_agents_message_lives_through_all_four(self, connect):
        with connect() as hook:
            sent = hook.send_message(visitor_id=VISITOR, text="Hello", agent_id=AGENT, received_from="tests")
            assert sent.received_from == "tests"
            assert hook.get_message(sent.id) == sent
            assert hook.update_message(sent.id, text="Hi").text == "Hi"
            hook.delete_message(sent.id)
            with pytest.raises(NotFound):
                hook.get_message(sent.id)

    def test_an_agent_may_be_named_by_email_name_and_mark(self, connect):
        with connect() as hook:
            sent = hook.send_message(
                visitor_id=VISITOR,
                text="Hello",
                agent_email="liz@getwear.com",
                agent_name="Liz",
                received_from="SuperAwesomeHelpdesk",
            )
        assert sent.received_from == "SuperAwesomeHelpdesk"

    def test_ping_group_and_account(self, connect, sib_sandbox):
        with connect() as hook:
            hook.ping_agent_online(agent_id=AGENT)
            assert hook.set_visitor_group(visitor_id=VISITOR, group_id=GROUP).group_id == GROUP
            assert hook.set_visitor_group(visitor_id=VISITOR, group_id=None).group_id is None
            assert hook.get_account().email
        assert sib_sandbox.state()["requests"]["total"] == 4

    def test_the_connections_agent_writes_where_none_is_named(self, connect, sib_sandbox):
        sib_sandbox.configure(unknown_agent="accept", unknown_group="accept")
        with connect(agent_id="agent-of-connection") as hook:
            assert hook.send_pushed_message(VISITOR, "a").agent_id == "agent-of-connection"
            assert hook.send_pushed_message(VISITOR, "b", agent_id=AGENT).agent_id == AGENT
            assert hook.send_pushed_message(VISITOR, "c", group_id=GROUP).agent_id != "agent-of-connection"
            assert hook.send_message(VISITOR, "d").agent_id == "agent-of-connection"

    def test_an_http_session_is_opened_once_and_again_after_close(self, connect):
        hook = connect()
        first = hook.get_conn()
        assert hook.get_conn() is first
        hook.close()
        hook.close()
        assert hook.get_conn() is not first
        hook.close()


class TestAllowedVisitors:
    @pytest.mark.parametrize("visitor", ["qa-1", "me"])
    def test_who_matches_is_written_to(self, connect, visitor):
        with connect(allowed_visitors="qa-*, me") as hook:
            assert hook.send_pushed_message(visitor, "Hello").visitor_id == visitor

    @pytest.mark.parametrize("visitor", ["customer", "QA-1", "me2"])
    def test_nobody_else_is_by_any_send(self, connect, sib_sandbox, visitor):
        with connect(allowed_visitors="qa-*, me") as hook:
            with pytest.raises(VisitorNotAllowed, match="allowed_visitors"):
                hook.send_pushed_message(visitor, "Hello")
            with pytest.raises(VisitorNotAllowed, match="allowed_visitors"):
                hook.send_message(visitor, "Hello", agent_id=AGENT)
        assert sib_sandbox.state()["requests"]["total"] == 0


class TestErrors:
    def test_a_wrong_call_is_refused_before_it_is_sent(self, connect, sib_sandbox):
        with connect() as hook, pytest.raises(InvalidRequest, match="text"):
            hook.send_pushed_message(VISITOR, "  ")
        assert sib_sandbox.state()["requests"]["total"] == 0

    def test_an_exhausted_quota_beyond_the_wait_is_raised_with_its_reset(self, connect, sib_sandbox):
        sib_sandbox.configure(quota=1)
        with connect() as hook:
            hook.send_pushed_message(VISITOR, "1")
            with pytest.raises(RateLimited) as refused:
                hook.send_pushed_message(VISITOR, "2")
        assert 3500 < refused.value.reset_in <= 3600

    def test_an_exhausted_quota_within_the_wait_is_waited_out(self, monkeypatch, sib_sandbox):
        sib_sandbox.configure(quota=1, hour_seconds=1)
        with SibConversationsHook() as hook:
            hook.send_pushed_message(VISITOR, "1")
            assert hook.send_pushed_message(VISITOR, "2").text == "2"

    def test_the_key_is_in_no_error(self, connect):
        with connect(conn={"password": "xkeysib-very-secret"}) as hook, pytest.raises(Unauthorized) as error:
            hook.get_account()
        assert "very-secret" not in f"{error.value} {error.value!r} {vars(error.value)}"

    def test_deferring_within_seconds_is_refused(self, monkeypatch):
        monkeypatch.setenv("AIRFLOW__SIB__DEFER_AFTER_SECONDS", "5")
        with pytest.raises(ValueError, match="10 or more"):
            defer_after_seconds()


class TestTestButton:
    """`test_connection`, behind the Test icon of Airflow's connection list."""

    def test_it_works(self, connect, sib_sandbox):
        works, said = connect().test_connection()
        assert works, said
        assert sib_sandbox.base_url in said
        assert socket.gethostname() in said

    def test_it_works_for_a_key_limited_to_conversations(self, connect, sib_sandbox):
        sib_sandbox.configure(restricted_key="xkeysib-restricted")
        hook = connect(conn={"password": "xkeysib-restricted"})
        assert hook.test_connection()[0]
        with hook, pytest.raises(Unauthorized):
            hook.get_account()

    def test_a_refusal_comes_in_brevos_own_words(self, connect):
        works, said = connect(conn={"password": "xkeysib-wrong"}).test_connection()
        assert not works
        assert "Key not found" in said
        assert socket.gethostname() in said

    def test_a_blocked_address_is_told(self, connect, sib_sandbox):
        sib_sandbox.fault("ip_blocked")
        works, said = connect().test_connection()
        assert not works
        assert "https://app.brevo.com/security/authorised_ips" in said

    def test_no_such_host(self, connect):
        works, said = connect(conn={"host": "https://no-such-host.invalid/v3"}).test_connection()
        assert not works
        assert "No answer from https://no-such-host.invalid/v3" in said

    def test_nobody_listens(self, connect):
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            port = unused.getsockname()[1]
        works, said = connect(conn={"host": f"http://127.0.0.1:{port}/v3"}).test_connection()
        assert not works
        assert "No answer" in said

    def test_something_else_answers(self, connect, sib_sandbox):
        """A 404 alone proves nothing: any web server gives one."""
        works, said = connect(conn={"host": f"{sib_sandbox.page_url}_sandbox/nothing"}).test_connection()
        assert not works, said

    def test_wrong_extras_fail_it_by_name(self, connect):
        works, said = connect(timeout=5).test_connection()
        assert not works
        assert "'timeout' is unknown" in said

    def test_plain_http_to_another_host_is_refused(self, connect):
        works, said = connect(conn={"host": "http://api.brevo.com/v3"}).test_connection()
        assert not works
        assert "allow_insecure_http" in said

    def test_no_connection_of_that_name(self):
        with pytest.raises(Exception, match="nowhere"):
            SibConversationsHook("nowhere").test_connection()

    def test_airflow_finds_the_hook_of_the_connection(self, connect):
        connect()
        hook = Connection.get("sandbox").get_hook()
        assert isinstance(hook, SibConversationsHook)
        assert hook.sib_conn_id == "sandbox"
