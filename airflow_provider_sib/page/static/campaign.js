// One campaign's page, and its control.

import { addressOf, campaignId, change, get } from "./api.js";
import { chart, rows } from "./chart.js";
import { badge, bar, byId, create, fill, leave, setAttribute, setText, show } from "./dom.js";
import { confirm, refused, said } from "./dialog.js";
import { delivery, exactly, left, moment, number, percent, quota } from "./words.js";

const LIMIT = 25;
const article = byId("campaign");
const find = (selector) => article.querySelector(selector);
const part = (name) => find(`[data-testid="${name}"]`);
const WORDS = { failed: "Failed", in_doubt: "In doubt", skipped: "Skipped" };
const STATES = [
  ["sent", "Sent"], ["failed", "Failed"], ["in_doubt", "In doubt"], ["skipped", "Skipped"], ["withdrawn", "Withdrawn"],
  ["sending", "Sending"], ["pending", "Waiting"],
];
const ACTIONS = {
  paused: {
    title: "Pause this campaign?", button: "Pause campaign", done: "Paused.",
    text: "What is in flight goes on; nothing more is begun until somebody resumes it. Its task waits meanwhile.",
  },
  running: {
    title: "Resume this campaign?", button: "Resume campaign", done: "Resumed.",
    text: "Its task goes on within seconds if it waits for this; else the next run of its DAG delivers.",
  },
  aborted: {
    title: "Abort this campaign?", button: "Abort campaign", done: "Aborted.", isGrave: true,
    text: "No message is begun any more, and the task that delivers it fails. What was sent stays: to take it back, withdraw it.",
  },
};
const ALLOWED = {
  running: ["paused", "aborted"], paused: ["running", "aborted"], aborted: ["running"], finished: [],
};

let campaign = null;
let doubtsOffset = 0;
let figures = null;
let figuresAt = null;

const focusAction = () => (find("[data-action]:not([hidden])") ?? find("h1")).focus();

const drawHead = () => {
  const heading = find("h1");
  setText(heading, campaign.id);
  document.title = `${campaign.id} · Brevo campaigns`;
  badge(part("status"), campaign.status);
  const focused = document.activeElement;
  for (const button of article.querySelectorAll("[data-action]")) {
    show(button, campaign.may_edit && ALLOWED[campaign.status].includes(button.dataset.action));
  }
  if (focused?.hidden) focusAction();
  setText(part("delivery"), delivery(campaign, campaign.now_ms));
  setAttribute(part("delivery"), "data-delivery", campaign.delivery);
  bar(part("progress"), campaign, `Settled of ${campaign.id}`);
  for (const name of ["sent", "failed", "in_doubt", "skipped", "withdrawn", "held_back"]) {
    setText(part(name), number(campaign[name]));
    setAttribute(part(name).parentElement, "data-zero", campaign[name] === 0);
  }
  setText(part("pending"), number(campaign.due + campaign.sending));
  setText(part("quota"), quota(campaign));
  const { reset_at_ms: reset } = campaign.quota;
  part("quota").title = reset === null ? "" : `Full again at ${moment(reset, campaign.now_ms)}`;
  setText(part("left"), left(campaign, campaign.now_ms));
};

const drawFigures = () => {
  for (const name of ["chart", "variants", "reasons"]) show(part(name).querySelector(".counting"), !figures.ready);
  if (!figures.ready) return;
  const isEmpty = figures.chart.moments.length === 0;
  show(part("chart").querySelector(".empty"), isEmpty);
  show(part("chart").querySelector("figure"), !isEmpty);
  if (!isEmpty) {
    drawChart();
    fill(part("chart").querySelector("tbody"), figures.chart.moments, rows);
  }
  drawVariants(figures);
  drawReasons(figures);
};

const drawChart = () =>
  chart(part("chart").querySelector("svg"), part("chart").querySelector(".legend"), {
    chart: figures.chart, quota: campaign.quota, total: campaign.total, nowMs: campaign.now_ms,
    isOver: campaign.status === "finished" || campaign.status === "aborted",
  });

const drawVariants = ({ variants }) => {
  const used = STATES.filter(([state]) => Object.values(variants).some((states) => states[state]));
  fill(part("variants").querySelector("thead"), used, () => [
    create("tr", {}, [
      create("th", { scope: "col", text: "Variant" }),
      ...used.map(([, word]) => create("th", { scope: "col", class: "number", text: word })),
      create("th", { scope: "col", class: "number", text: "Share sent" }),
    ]),
  ]);
  fill(part("variants").querySelector("tbody"), variants, () =>
    Object.entries(variants).map(([name, states]) => {
      const all = Object.values(states).reduce((sum, count) => sum + count, 0);
      return create("tr", {}, [
        create("th", { scope: "row", text: name === "" ? "only one text" : name }),
        ...used.map(([state]) => create("td", { class: "number", text: number(states[state] ?? 0) })),
        create("td", { class: "number", text: percent((states.sent ?? 0) / Math.max(1, all)) }),
      ]);
    }),
  );
};

const drawReasons = ({ reasons }) => {
  const listed = Object.entries(reasons).flatMap(([state, counts]) => Object.entries(counts).map(([reason, count]) => [state, reason, count]));
  show(part("reasons").querySelector(".empty"), listed.length === 0);
  fill(part("reasons").querySelector("tbody"), listed, () =>
    listed.map(([state, reason, count]) =>
      create("tr", {}, [
        create("td", {}, [create("span", { class: `key ${state}`, text: WORDS[state] })]),
        create("th", { scope: "row" }, [create("code", { text: reason })]),
        create("td", { class: "number", text: number(count) }),
      ]),
    ),
  );
};

const drawDoubts = ({ doubts, most, offset }) => {
  const section = part("doubts");
  fill(section.querySelector("tbody"), doubts, () =>
    doubts.map((one) =>
      create("tr", { "data-testid": "doubt" }, [
        create("td", {}, [create("code", { text: one.visitor_id ?? "(forgotten)" })]),
        create("td", {}, [create("code", { text: one.once_key })]),
        create("td", {}, [create("code", { text: one.reason ?? "unknown" })]),
        create("td", { text: moment(one.at_ms, campaign.now_ms) }),
      ]),
    ),
  );
  const pages = section.querySelector(".pages");
  const total = Math.min(campaign.in_doubt, most);
  show(pages, campaign.in_doubt > LIMIT || offset > 0);
  setText(pages.querySelector(".where"), `${number(offset + 1)}–${number(offset + doubts.length)} of ${number(campaign.in_doubt)}`);
  pages.querySelector('[data-page="-1"]').disabled = offset === 0;
  pages.querySelector('[data-page="1"]').disabled = offset + LIMIT >= total;
};

const drawTexts = () => {
  fill(find(".texts"), campaign.texts, (texts) =>
    texts.map((revision, index) => {
      const isNewest = index === 0;
      const details = create("details", { class: "revision" }, [
        create("summary", {}, [
          create("strong", { text: `Revision ${revision.revision}` }),
          create("span", { class: "soft", text: `${isNewest ? "sent from now on, " : ""}since ${exactly(revision.at_ms)}` }),
        ]),
        ...revision.variants.flatMap(({ variant, weight, texts: byLocale }) => [
          ...(variant === "" ? [] : [create("h3", { text: `Variant ${variant}, weight ${weight}` })]),
          create("dl", { class: "locales" }, Object.entries(byLocale).map(([locale, text]) =>
            create("div", {}, [create("dt", { text: locale }), create("dd", { dir: "auto", lang: locale, text })]),
          )),
        ]),
      ]);
      details.open = isNewest;
      return details;
    }),
  );
};

const drawRules = () => {
  const facts = [
    ["Task", campaign.dag_id === null ? "none that Airflow knows" : `${campaign.dag_id}.${campaign.task_id}`],
    ["Connection", `${campaign.connection ?? "–"}, ${campaign.host ?? ""}`],
    ["Kind", campaign.each_run ? "newcomers join at each run" : "a snapshot of its audience"],
    ["Enrolled", campaign.enrolled_at_ms === null ? "not yet" : `${number(campaign.total)}, complete ${exactly(campaign.enrolled_at_ms)}`],
    ["Left out", `${number(campaign.duplicates)} duplicates, ${number(campaign.bad_rows)} unusable rows`],
    ["Fraction", percent(campaign.fraction)],
    ...Object.entries(campaign.rules).map(([name, value]) => [name.replaceAll("_", " "), typeof value === "string" ? value : JSON.stringify(value)]),
  ];
  fill(find(".facts"), [facts, campaign.dag_id], () => [
    ...facts.map(([name, value]) => create("div", {}, [create("dt", { text: name }), create("dd", { text: value })])),
    ...(campaign.dag_id === null ? [] : [create("div", {}, [create("dt", { text: "DAG" }), create("dd", {}, [dagLink()])])]),
  ]);
  fill(find(".crumbs"), campaign.dag_id, () => {
    const back = create("a", { href: addressOf(null), text: "All campaigns" });
    return campaign.dag_id === null ? [back] : [back, dagLink()];
  });
};

const dagLink = () => {
  const link = create("a", { href: `../dags/${encodeURIComponent(campaign.dag_id)}`, text: `Open DAG ${campaign.dag_id}` });
  link.addEventListener("click", leave);
  return link;
};

const act = async (action) => {
  const words = ACTIONS[action];
  const seen = campaign.status;
  if (!(await confirm({ ...words, campaign: campaign.id }))) return;
  const { value, failed } = await change(campaign.id, action, seen);
  if (failed) refused(`${failed.title}: ${failed.detail}`);
  else {
    campaign = value;
    drawHead();
    said(`${words.done} Campaign ${campaign.id} is ${campaign.status}.`);
  }
};

export const start = (refresh) => {
  find(".back").href = addressOf(null);
  for (const button of article.querySelectorAll("[data-action]")) {
    button.addEventListener("click", async () => {
      await act(button.dataset.action);
      // The dialog could not give the focus back to a button that was hidden meanwhile.
      if (document.activeElement === document.body) focusAction();
      refresh();
    });
  }
  for (const button of part("doubts").querySelectorAll(".pages button")) {
    button.addEventListener("click", () => {
      doubtsOffset = Math.max(0, doubtsOffset + LIMIT * Number(button.dataset.page));
      loadDoubts();
    });
  }
};

new ResizeObserver(() => {
  if (figures?.ready && figures.chart.moments.length > 0) drawChart();
}).observe(part("chart"));

export const load = async () => {
  const answer = await get("campaign", { id: campaignId });
  if (answer.failed) return answer.failed;
  campaign = answer.value;
  drawHead();
  drawTexts();
  drawRules();
  setText(find(".command"), campaign.settle_command);
  show(part("doubts"), campaign.in_doubt > 0);
  // What has to be counted row by row comes after what is there at once.
  loadFigures();
  loadDoubts();
  return null;
};

let asksAgain;
const loadFigures = async () => {
  clearTimeout(asksAgain);
  const { value } = await get("figures", { id: campaignId });
  clearTimeout(asksAgain);
  if (value && !value.ready) asksAgain = setTimeout(loadFigures, 500);
  // Answers may overtake each other, and another API server may not have counted yet.
  if (!value || (figures?.ready && !(value.ready && value.at_ms >= figures.at_ms))) return;
  const key = JSON.stringify([value, campaign.quota.limit, campaign.quota.known_reset_ms, campaign.status]);
  figures = value;
  if (key !== figuresAt || campaign.delivery === "now") drawFigures();
  figuresAt = key;
};

const loadDoubts = async () => {
  if (doubtsOffset >= campaign.in_doubt) doubtsOffset = 0;
  if (campaign.in_doubt === 0) return;
  const { value } = await get("doubts", { id: campaignId, offset: doubtsOffset, limit: LIMIT });
  if (value?.offset === doubtsOffset) drawDoubts(value);
};

export const element = article;
