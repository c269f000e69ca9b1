// Changes what is on the page, and only what differs, so that a refresh neither flickers nor takes the focus.
// Texts are set as text: nothing here writes markup.

import { percent, wholePercent } from "./words.js";

export const byId = (id) => document.getElementById(id);

export const setText = (element, text) => {
  const wanted = String(text);
  if (element.textContent !== wanted) element.textContent = wanted;
};

export const setAttribute = (element, name, value) => {
  if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
};

export const show = (element, isShown) => {
  if (element.hidden === isShown) element.hidden = !isShown;
};

export const create = (name, { text, ...attributes } = {}, children = []) => {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  element.append(...children);
  return element;
};

const SVG = "http://www.w3.org/2000/svg";
export const draw = (name, attributes, text) => {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
};

// Replaces the children of an element when what they show has changed.
const shown = new WeakMap();
export const fill = (element, value, make) => {
  const key = JSON.stringify(value);
  if (shown.get(element) === key) return;
  shown.set(element, key);
  element.replaceChildren(...make(value));
};

export const badge = (element, status) => {
  setText(element, status);
  setAttribute(element, "data-status", status);
};

const PARTS = ["sent", "failed", "in_doubt", "skipped", "withdrawn"];
export const bar = (element, campaign, label) => {
  const whole = Math.max(1, campaign.total - campaign.held_back);
  for (const name of PARTS) {
    const width = `${((100 * campaign[name]) / whole).toFixed(3)}%`;
    const part = element.querySelector(`.${name}`);
    if (part.style.width !== width) part.style.width = width;
  }
  setAttribute(element, "aria-valuenow", wholePercent(campaign.settled_share));
  setAttribute(element, "aria-valuetext", `${percent(campaign.settled_share)} settled: ${campaign.sent} sent of ${campaign.total}`);
  if (label) setAttribute(element, "aria-label", label);
};

// Leaves for a page of Airflow's own. In its frame a link may not do so itself; one of the outer document may.
export const leave = (event) => {
  if (window.parent === window || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
  event.preventDefault();
  const outer = window.parent.document;
  const link = outer.createElement("a");
  link.href = event.currentTarget.href;
  outer.body.append(link);
  link.click();
  link.remove();
};
