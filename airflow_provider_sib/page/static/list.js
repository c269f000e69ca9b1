// The list of campaigns.

import { addressOf, get } from "./api.js";
import { badge, bar, byId, setAttribute, setText, show } from "./dom.js";
import { delivery, left, number, percent, quota } from "./words.js";

const LIMIT = 25;
const section = byId("list");
const body = section.querySelector("tbody");
const template = byId("row").content.firstElementChild;
const search = byId("search");
const status = byId("status");
const pages = section.querySelector(".pages");
const rows = new Map(); // campaign id -> row
let offset = 0;

const remember = () => {
  const query = new URLSearchParams(location.search);
  for (const [name, value] of [["search", search.value.trim()], ["status", status.value], ["offset", offset || ""]]) {
    if (value === "") query.delete(name);
    else query.set(name, value);
  }
  const text = query.toString();
  history.replaceState(null, "", text === "" ? "./" : `./?${text}`);
};

const rowOf = (id) => {
  let row = rows.get(id);
  if (row === undefined) {
    row = template.cloneNode(true);
    row.dataset.campaign = id;
    const link = row.querySelector("a");
    link.textContent = id;
    link.href = addressOf(id);
    rows.set(id, row);
  }
  return row;
};

const drawRow = (row, campaign, nowMs) => {
  const cell = (name) => row.querySelector(`[data-testid="${name}"]`);
  setText(row.querySelector(".origin"), campaign.dag_id === null ? "no DAG" : `${campaign.dag_id} · ${campaign.task_id}`);
  badge(cell("status"), campaign.status);
  bar(row.querySelector(".bar"), campaign, `Progress of ${campaign.id}`);
  setText(row.querySelector(".share"), percent(campaign.settled_share));
  setText(row.querySelector(".delivery"), ["over", "stopped"].includes(campaign.delivery) ? "" : delivery(campaign, nowMs));
  for (const name of ["sent", "failed", "in_doubt", "skipped"]) {
    setText(cell(name), number(campaign[name]));
    setAttribute(cell(name), "data-zero", campaign[name] === 0);
  }
  setText(cell("quota"), quota(campaign));
  setText(cell("left"), left(campaign, nowMs));
};

const draw = (answer) => {
  const wanted = new Set(answer.campaigns.map((campaign) => campaign.id));
  for (const [id, row] of rows) {
    if (!wanted.has(id)) {
      row.remove();
      rows.delete(id);
    }
  }
  let next = body.firstElementChild;
  for (const campaign of answer.campaigns) {
    const row = rowOf(campaign.id);
    drawRow(row, campaign, answer.now_ms);
    if (row === next) next = next.nextElementSibling;
    else body.insertBefore(row, next);
  }
  const isFiltered = search.value.trim() !== "" || status.value !== "";
  setText(section.querySelector(".count"), answer.total === 1 ? "1 campaign" : `${number(answer.total)} campaigns`);
  const empty = section.querySelector(".empty");
  show(empty, answer.campaigns.length === 0);
  setText(empty, isFiltered ? "No campaign is like that." : "There is no campaign that you may see. The first task that sends one makes it appear here.");
  show(section.querySelector("table"), answer.campaigns.length > 0);
  show(pages, answer.total > LIMIT || offset > 0);
  setText(pages.querySelector(".where"), `${number(offset + 1)}–${number(offset + answer.campaigns.length)} of ${number(answer.total)}`);
  pages.querySelector('[data-page="-1"]').disabled = offset === 0;
  pages.querySelector('[data-page="1"]').disabled = offset + LIMIT >= answer.total;
};

export const start = (refresh) => {
  const query = new URLSearchParams(location.search);
  search.value = query.get("search") ?? "";
  status.value = query.get("status") ?? "";
  offset = Math.max(0, Number.parseInt(query.get("offset") ?? "0", 10) || 0);
  let waits;
  const changed = () => {
    offset = 0;
    remember();
    clearTimeout(waits);
    waits = setTimeout(refresh, 150);
  };
  search.addEventListener("input", changed);
  status.addEventListener("change", changed);
  section.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
  for (const button of pages.querySelectorAll("button")) {
    button.addEventListener("click", () => {
      offset = Math.max(0, offset + LIMIT * Number(button.dataset.page));
      remember();
      refresh();
    });
  }
};

export const load = async () => {
  const asked = JSON.stringify([search.value, status.value, offset]);
  const { value, failed } = await get("campaigns", { search: search.value.trim(), status: status.value, offset, limit: LIMIT });
  if (failed) return failed;
  if (asked !== JSON.stringify([search.value, status.value, offset])) return null;
  if (offset > 0 && offset >= value.total) {
    // Campaigns were purged, or the address is an old one: the last page there is.
    offset = Math.max(0, Math.ceil(value.total / LIMIT) - 1) * LIMIT;
    remember();
    return load();
  }
  draw(value);
  return null;
};

export const element = section;
