// Shows the list of campaigns or one campaign, and keeps it fresh while somebody looks.

import { campaignId } from "./api.js";
import { byId, create, fill, leave, setText, show } from "./dom.js";

const FRESH_MS = 4_000;
const view = campaignId === null ? await import("./list.js") : await import("./campaign.js");
const problem = byId("problem");

const showProblem = (failed) => {
  setText(problem.querySelector("h1"), failed.title);
  setText(problem.querySelector(".detail"), failed.detail);
  fill(problem.querySelector("ul"), failed, () => {
    const items = failed.remedies.map((remedy) => create("li", { text: remedy }));
    if (failed.login) {
      const link = create("a", { href: "../", text: "Log in to Airflow" });
      link.addEventListener("click", leave);
      items.push(create("li", {}, [link]));
    }
    if (failed.status === 404) items.push(create("li", {}, [create("a", { href: "./", text: "All campaigns" })]));
    return items;
  });
};

let timer;
let busy = false;
let again = false;
let isShown = false;
const refresh = async () => {
  clearTimeout(timer);
  if (busy) {
    again = true;
    return;
  }
  busy = true;
  do {
    again = false;
    const failed = await view.load();
    if (failed) showProblem(failed);
    isShown = failed === null || (isShown && !failed.login && !(failed.status < 500));
    show(problem, failed !== null);
    show(problem.querySelector(".last"), isShown);
    show(view.element, isShown);
    show(byId("loading"), false);
  } while (again);
  busy = false;
  timer = setTimeout(tick, FRESH_MS);
};
const tick = () => {
  if (document.visibilityState === "visible") refresh();
};

document.addEventListener("visibilitychange", tick);
view.start(refresh);
refresh();
