"""Announce a release to the visitors of a web app, to each in their own language.

The visitors are the rows of `include/visitors.csv`. Trigger it by hand, once for each release: every run sends to
everybody. For the same reason the task isn't tried again when it fails: that would write twice to those it had
reached.
"""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

from airflow.sdk import dag, task

from airflow_provider_sib.hooks import SibConversationsHook

VISITORS = Path(__file__).parent / "include" / "visitors.csv"

# By locale or language; English for all others.
TEXTS = {
    "en": "Hi {first_name}! Version 2.0 is here: dark mode, and exports of any size. Reload the page to get it.",
    "fr": "Bonjour {first_name} ! La version 2.0 est là : mode sombre et exports sans limite. Rechargez la page.",
    "fr-CA": "Bonjour {first_name}! La version 2.0 est arrivée : mode sombre et exportations sans limite.",
    "de": "Hallo {first_name}! Version 2.0 ist da: dunkles Design und Exporte jeder Größe. Einfach neu laden.",
    "es": "¡Hola, {first_name}! Ya está aquí la versión 2.0: modo oscuro y exportaciones sin límite.",
    "pt": "Olá, {first_name}! A versão 2.0 chegou: modo escuro e exportações sem limite.",
    "pt-BR": "Oi, {first_name}! A versão 2.0 chegou: modo escuro e exportações sem limite. Recarregue a página.",
    "it": "Ciao {first_name}! È arrivata la versione 2.0: tema scuro ed esportazioni senza limiti.",
    "ja": "{first_name}さん、バージョン2.0を公開しました。ダークモードと、件数無制限のエクスポートが使えます。",
}


@dag(schedule=None, catchup=False, doc_md=__doc__, tags=["conversations"])
def announce_release() -> None:
    """Send the release announcement."""

    @task(retries=0)
    def announce() -> dict[str, int]:
        """Send each visitor the text of their locale, and count the messages by text."""
        sent: Counter[str] = Counter()
        with SibConversationsHook() as hook, VISITORS.open(encoding="utf-8", newline="") as rows:
            for visitor in csv.DictReader(rows):
                language = visitor["locale"].partition("-")[0]
                choice = next(key for key in (visitor["locale"], language, "en") if key in TEXTS)
                text = TEXTS[choice].format(first_name=visitor["first_name"])
                hook.send_pushed_message(visitor["visitor_id"], text)
                sent[choice] += 1
        return dict(sent)

    announce()


announce_release()
