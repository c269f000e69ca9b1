"""The Campaign page: a look at the ledger in Airflow's UI, and its pause, resume and abort.

It stands on :class:`~airflow_provider_sib.hooks.CampaignHook`, in Airflow's API server, behind Airflow's own
authentication: who may read the runs of a campaign's DAG sees the campaign, who may edit them controls it. It makes no
API call, creates no ledger, pins none, and what it shows of visitors is text and nothing else.

Addresses, below ``[api] base_url``; a campaign's id is a parameter, since it may hold any character:

==================================================  ==================================================================
``/plugin/brevo-campaigns``                         Airflow's frame with the list (Browse > Brevo campaigns)
``/plugin/brevo-campaigns/sib/?campaign=ID``        the same with one campaign (Airflow 3.3 and newer; with a path in
                                                    the base URL, ``/plugin/brevo-campaigns/PATH/sib/?campaign=ID``)
``/sib/``                                           the list by itself
``/sib/?campaign=ID``                               one campaign by itself; ``&ledger=CONN_ID`` for one that tasks
                                                    keep elsewhere than ``[sib] ledger_conn_id``
``/sib/static/NAME``                                script, style, icons
``GET /sib/api/campaigns``                          the list: ``search``, ``status``, ``offset``, ``limit``
``GET /sib/api/campaign?id=ID``                     one campaign
``GET /sib/api/figures?id=ID``                      its chart, variants and reasons; ``"ready": false`` while counted
``GET /sib/api/doubts?id=ID``                       its doubtful recipients: ``offset``, ``limit``
``POST /sib/api/status``                            ``{"id": …, "status": "paused" | "running" | "aborted",
                                                    "seen": the status that was seen}`` as JSON, with the header
                                                    ``X-Sib-Request: 1``; 409 when it is another by now
==================================================  ==================================================================

For tests in a browser (all inside the frame):

- list: ``getByRole("searchbox", {name: "Search campaigns"})``, ``getByRole("combobox", {name: "Status"})``,
  ``getByTestId("campaign-row")`` with ``data-campaign=ID`` and a link named by the id; in it
  ``getByRole("progressbar")`` and the test ids ``status``, ``sent``, ``failed``, ``in_doubt``, ``skipped``, ``quota``,
  ``left``; buttons "Previous page" and "Next page".
- one campaign: heading with its id, ``getByTestId("status")`` (``running``, ``paused``, ``aborted``, ``finished``),
  ``getByTestId("delivery")`` (who delivers), figures by test ids ``sent``, ``failed``, ``in_doubt``, ``skipped``,
  ``pending``, ``quota``, ``left``; ``chart``, ``variants``, ``reasons``, ``doubts``, ``texts``; buttons "Pause",
  "Resume", "Abort"; link "Open DAG …"; link "All campaigns".
- confirmation: ``getByRole("dialog")`` (the alertdialog of an abort too) with a button named as the action, such as
  "Pause campaign", and "Cancel". What came of it is told by ``getByRole("status")``, a refusal by
  ``getByRole("alert")``.
- where the ledger can't be reached: ``getByTestId("problem")``, with the heading of what is wrong.
"""
