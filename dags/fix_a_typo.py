"""Correct an announcement, also where it was sent already.

The French text of `announce_release` says "exprots". All texts are given, as they shall be; only messages whose own
text changes cost a call, so the others stay untouched. Whoever has not been written to yet gets the corrected text.
The task says its price in calls and hours before it begins.
"""

from __future__ import annotations

from airflow.sdk import DAG

from airflow_provider_sib.operators import UpdateCampaignOperator

with DAG("fix_a_typo", schedule=None, catchup=False, doc_md=__doc__, tags=["conversations"]) as fix_a_typo:
    UpdateCampaignOperator(
        task_id="correct",
        campaign_id="release-2.0",
        text={
            "en": "Hi [[ visitor.first_name ]]! Version 2.0 is here: dark mode, and exports of any size. "
            "Reload the page to get it.",
            "fr": "Bonjour [[ visitor.first_name ]] ! La version 2.0 est là : mode sombre et exports sans limite. "
            "Rechargez la page.",
            "fr-CA": "Bonjour [[ visitor.first_name ]]! La version 2.0 est arrivée : mode sombre et exportations "
            "sans limite.",
            "de": "Hallo [[ visitor.first_name ]]! Version 2.0 ist da: dunkles Design und Exporte jeder Größe. "
            "Einfach neu laden.",
            "es": "¡Hola, [[ visitor.first_name ]]! Ya está aquí la versión 2.0: modo oscuro y exportaciones "
            "sin límite.",
            "pt": "Olá, [[ visitor.first_name ]]! A versão 2.0 chegou: modo escuro e exportações sem limite.",
            "pt-BR": "Oi, [[ visitor.first_name ]]! A versão 2.0 chegou: modo escuro e exportações sem limite. "
            "Recarregue a página.",
            "it": "Ciao [[ visitor.first_name ]]! È arrivata la versione 2.0: tema scuro ed esportazioni "
            "senza limiti.",
            "ja": "[[ visitor.first_name ]]さん、バージョン2.0を公開しました。ダークモードと、"
            "件数無制限のエクスポートが使えます。",
        },
    )
