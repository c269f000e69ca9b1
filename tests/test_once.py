"""A single message with a once key is sent once over all runs of its task."""

from __future__ import annotations

import pytest
from airflow.sdk import DAG

from airflow_provider_sib._compat import AirflowFailException, AirflowSkipException
from airflow_provider_sib.campaign.ledger import Quota, QuotaUse
from airflow_provider_sib.hooks import CampaignHook
from airflow_provider_sib.operators import DeleteMessageOperator, SendPushedMessageOperator

try:
    from airflow.sdk.exceptions import TaskDeferred
except ImportError:  # Airflow 3.1
    from airflow.exceptions import TaskDeferred

VISITOR = "kZMvWhf8npAu3H6qd57w2Hv6nh6rnxvg"


@pytest.fixture
def send(campaigns, sib_sandbox):
    """Run the task, as another run of its DAG would."""

    def _send(once_key="order-17", **arguments):
        arguments = {"visitor_id": VISITOR, "text": "Your order has shipped."} | arguments
        return SendPushedMessageOperator(task_id="tell", once_key=once_key, **arguments).execute({})

    return _send


def texts(sandbox):
    return [message["text"] for message in sandbox.messages() if not message["deleted"]]


def test_every_run_after_the_first_gives_the_same_message(send, sib_sandbox):
    first = send()
    assert send(text="Another rendering") == first
    assert first == {"id": first["id"], "visitorId": VISITOR, "isPushed": True, "onceKey": "order-17"}
    assert texts(sib_sandbox) == ["Your order has shipped."]


def test_another_key_is_another_message(send, sib_sandbox):
    ids = {send(f"order-{number}", text=f"Order {number}")["id"] for number in range(5)}
    assert len(ids) == 5
    assert sorted(texts(sib_sandbox)) == [f"Order {number}" for number in range(5)]


def test_tasks_of_other_dags_share_no_key_whatever_their_names_are(campaigns, sib_sandbox):
    long = "very_" * 45
    for dag_id, task_id in [
        ("shop", "orders.tell"),
        ("shop.orders", "tell"),
        (long, long),
        (long, f"{long}x"),
    ]:
        with DAG(dag_id, schedule=None):
            tell = SendPushedMessageOperator(
                task_id=task_id, once_key="17", visitor_id=VISITOR, text=f"{dag_id} {task_id}"
            )
        tell.execute({})
    assert len(texts(sib_sandbox)) == 4


def test_the_text_is_data_and_never_a_template(send, sib_sandbox):
    send(text="[[ visitor.secret ]] {{ 7*7 }} <b>")
    assert texts(sib_sandbox) == ["[[ visitor.secret ]] {{ 7*7 }} <b>"]


def test_the_agent_named_writes(send, sib_sandbox):
    send(agent_id="d9nKoegKSjmCtyK78")
    assert sib_sandbox.messages()[0]["agentId"] == "d9nKoegKSjmCtyK78"


def test_a_lost_answer_is_in_doubt_and_can_be_settled(send, sib_sandbox):
    sib_sandbox.fault("hang_up_after", times=1)
    for _ in range(2):
        with pytest.raises(AirflowFailException, match="campaigns settle once:adhoc_airflow"):
            send()
    assert len(texts(sib_sandbox)) == 1
    with CampaignHook() as hook:
        hook.settle("once:adhoc_airflow/tell", "order-17", sent=True, message_id="known-by-hand")
    assert send()["id"] == "known-by-hand"
    assert len(texts(sib_sandbox)) == 1


def test_a_doubt_is_sent_again_where_the_author_says_so(send, sib_sandbox):
    sib_sandbox.fault("hang_up_after", times=1)
    assert send(on_doubt="resend")["id"]
    assert len(texts(sib_sandbox)) == 2


def test_deferred_for_the_quota_it_goes_on(campaigns, sib_sandbox):
    operator = SendPushedMessageOperator(task_id="tell", once_key="order-17", visitor_id=VISITOR, text="Hi!")
    sib_sandbox.configure(quota=0)
    with pytest.raises(TaskDeferred) as deferred:
        operator.execute({})
    sib_sandbox.configure(quota=100)
    with CampaignHook() as hook:  # as if the hour were over
        [(account, bucket)] = hook.ledger.quotas()
        hook.ledger.quota(QuotaUse(account, bucket, "test", 0, 0, 60, lambda *_: (Quota(), 0)))
    # As Airflow goes on: the event beside what the deferral kept.
    kwargs = deferred.value.kwargs | {"event": {"woken_by": "moment"}}
    assert operator.resume_execution(deferred.value.method_name, kwargs, {})["onceKey"] == "order-17"
    assert texts(sib_sandbox) == ["Hi!"]


def test_who_must_not_be_written_to_is_skipped_for_good_under_this_key(send, sib_sandbox):
    with CampaignHook() as hook:
        hook.suppress([VISITOR])
        with pytest.raises(AirflowSkipException, match=r"suppressed.*another once_key.*campaigns unsuppress"):
            send()
        hook.unsuppress([VISITOR])
        with pytest.raises(AirflowSkipException, match="stays skipped"):
            send()
    assert texts(sib_sandbox) == []
    assert send("order-17-again")["id"]


def test_a_forgotten_visitor_is_skipped_by_name_and_what_they_were_sent_before_is_still_known(
    send, sib_sandbox
):
    message_id = send()["id"]
    with CampaignHook() as hook:
        assert hook.forget_visitor(VISITOR) == 1
    assert send()["id"] == message_id
    with pytest.raises(AirflowSkipException, match=r"forgotten.*campaigns unsuppress"):
        send("order-18")
    assert len(texts(sib_sandbox)) == 1


def test_what_brevo_refuses_is_tried_again_by_hand_with_its_first_text(send, sib_sandbox):
    sib_sandbox.configure(max_text_length=5)
    for _ in range(2):
        with pytest.raises(AirflowFailException, match=r"another once_key.*campaigns retry once:adhoc_air"):
            send()
    sib_sandbox.configure(max_text_length=None)
    with CampaignHook() as hook:
        assert hook.retry("once:adhoc_airflow/tell") == 1
    assert send(text="A mended text")["id"]
    assert texts(sib_sandbox) == ["Your order has shipped."]


def test_withdrawn_by_id_it_stays_sent(send, sib_sandbox):
    message_id = send()["id"]
    DeleteMessageOperator(task_id="withdraw", message_id=message_id).execute({})
    assert send()["id"] == message_id
    assert texts(sib_sandbox) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [({"once_key": " "}, "once_key is blank"), ({"text": ""}, "text"), ({"visitor_id": ""}, "visitor_id")],
)
def test_bad_arguments_enrol_nobody(send, sib_sandbox, arguments, said):
    with pytest.raises(AirflowFailException, match=said):
        send(**arguments)
    with CampaignHook() as hook:
        assert hook.list() == []
