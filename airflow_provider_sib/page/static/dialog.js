// Asks before something is done, in a dialog of our own, since Airflow's frame silences the browser's; and says what
// came of it.

import { byId } from "./dom.js";

const dialog = byId("confirm");

export const confirm = ({ title, text, button, campaign, isGrave = false }) =>
  new Promise((resolve) => {
    byId("confirm-title").textContent = title;
    byId("confirm-text").textContent = `${campaign}: ${text}`;
    const yes = dialog.querySelector("[data-confirm]");
    yes.textContent = button;
    yes.className = isGrave ? "button danger" : "button primary";
    dialog.setAttribute("role", isGrave ? "alertdialog" : "dialog");
    dialog.returnValue = "";
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
    dialog.showModal();
    (isGrave ? dialog.querySelector("[data-cancel]") : yes).focus();
  });

let timer;
const say = (id, text) => {
  for (const other of ["said", "refused"]) byId(other).hidden = other !== id;
  byId(id).textContent = text;
  clearTimeout(timer);
  timer = setTimeout(() => {
    byId(id).hidden = true;
  }, 12_000);
};
export const said = (text) => say("said", text);
export const refused = (text) => say("refused", text);
