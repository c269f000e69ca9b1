"""Announce a release to the visitors of a web app, to each once and in their own language.

The visitors are the rows of `include/visitors.csv`. Trigger it as often as you like: the campaign is its id, so a
retry, a clear or another run goes on with it, and writes to nobody twice. While the hour's quota is used up the task
is deferred and holds no worker. The next release is a campaign of its own: trigger it with another version.
"""

from __future__ import annotations

from pathlib import Path

from airflow.sdk import DAG

from airflow_provider_sib.campaign import CsvAudience
from airflow_provider_sib.operators import SendCampaignOperator

with DAG(
    "announce_release",
    schedule=None,
    catchup=False,
    doc_md=__doc__,
    tags=["conversations"],
    params={"version": "2.0"},
) as announce_release:
    SendCampaignOperator(
        task_id="announce",
        campaign_id="release-{{ params.version }}",
        audience=CsvAudience(str(Path(__file__).parent / "include" / "visitors.csv")),
        # By locale or language; English for all others. The French has a typo: `fix_a_typo` mends it.
        text={
            "en": "Hi [[ visitor.first_name ]]! Version {{ params.version }} is here: dark mode, and exports of "
            "any size. Reload the page to get it.",
            "fr": "Bonjour [[ visitor.first_name ]] ! La version {{ params.version }} est là : mode sombre et exprots "
            "sans limite. Rechargez la page.",
            "fr-CA": "Bonjour [[ visitor.first_name ]]! La version {{ params.version }} est arrivée : mode sombre et "
            "exportations sans limite.",
            "de": "Hallo [[ visitor.first_name ]]! Version {{ params.version }} ist da: dunkles Design und Exporte "
            "jeder Größe. Einfach neu laden.",
            "es": "¡Hola, [[ visitor.first_name ]]! Ya está aquí la versión {{ params.version }}: modo oscuro y "
            "exportaciones sin límite.",
            "pt": "Olá, [[ visitor.first_name ]]! A versão {{ params.version }} chegou: modo escuro e exportações "
            "sem limite.",
            "pt-BR": "Oi, [[ visitor.first_name ]]! A versão {{ params.version }} chegou: modo escuro e exportações "
            "sem limite. Recarregue a página.",
            "it": "Ciao [[ visitor.first_name ]]! È arrivata la versione {{ params.version }}: tema scuro ed "
            "esportazioni senza limiti.",
            "ja": "[[ visitor.first_name ]]さん、バージョン{{ params.version }}を公開しました。ダークモードと、"
            "件数無制限のエクスポートが使えます。",
        },
    )
