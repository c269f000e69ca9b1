// Draws messages over time: what was sent so far, as an area, below what the quota allows, as a line of steps.

import { create, draw } from "./dom.js";
import { clock, exactly, moment, number } from "./words.js";

const HEIGHT = 260;
const LEFT = 56;
const RIGHT = 12;
const TOP = 12;
const BOTTOM = 26;
const HOUR_MS = 3_600_000;
const STATES = [["sent", "Sent"], ["failed", "Failed"], ["in_doubt", "In doubt"]];

const nice = (most) => {
  const power = 10 ** Math.floor(Math.log10(most));
  return [1, 2, 2.5, 5, 10].map((step) => step * power).find((step) => step >= most);
};

// Running totals of each state, a point per span of time, with one before the first.
const totals = (moments, spanMs) => {
  const sums = { sent: 0, failed: 0, in_doubt: 0 };
  const points = [{ at: moments[0].at_ms, ...sums }];
  for (const one of moments) {
    const last = points.at(-1);
    if (one.at_ms > last.at) points.push({ ...last, at: one.at_ms });
    for (const [name] of STATES) sums[name] += one[name] ?? 0;
    points.push({ at: one.at_ms + spanMs, ...sums });
  }
  return points;
};

export const chart = (svg, legend, { chart: { seconds, moments }, quota: { limit, reserve }, total, nowMs, isOver }) => {
  // A unit is a pixel, so that words keep their size however wide the page is.
  const width = Math.max(280, Math.round(svg.parentElement.clientWidth));
  svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  // What a campaign may use of each hour, as it paces itself: at least one call is left to it.
  const perHour = limit === null ? null : limit - Math.min(reserve, limit - 1);
  const spanMs = seconds * 1000;
  const points = totals(moments, spanMs);
  const begin = points[0].at;
  const end = Math.max(points.at(-1).at, isOver ? 0 : nowMs, begin + spanMs);
  if (end > points.at(-1).at) points.push({ ...points.at(-1), at: end });
  const last = points.at(-1);
  const reached = last.sent + last.failed + last.in_doubt;
  const isLong = end - begin >= HOUR_MS && perHour !== null;
  const most = nice(Math.max(1, Math.min(total, reached * 1.15 + 1)));
  const x = (at) => LEFT + ((at - begin) / (end - begin)) * (width - LEFT - RIGHT);
  const y = (count) => TOP + (1 - Math.min(count, most) / most) * (HEIGHT - TOP - BOTTOM);
  const parts = [];
  for (let step = 0; step <= 4; step += 1) {
    const value = (most * step) / 4;
    if (!Number.isInteger(value)) continue;
    parts.push(draw("line", { class: "rule", x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value) }));
    parts.push(draw("text", { class: "tick", x: LEFT - 8, y: y(value) + 4, "text-anchor": "end" }, number(value)));
  }
  const ticks = width < 560 ? 2 : 4;
  for (let step = 0; step <= ticks; step += 1) {
    const at = begin + ((end - begin) * step) / ticks;
    const anchor = step === 0 ? "start" : step === ticks ? "end" : "middle";
    parts.push(draw("text", { class: "tick", x: x(at), y: HEIGHT - 8, "text-anchor": anchor }, end - begin < HOUR_MS / 6 ? moment(at, at) : end - begin < 20 * HOUR_MS ? clock(at) : exactly(at)));
  }
  let below = points.map(() => 0);
  for (const [name] of STATES) {
    const above = points.map((point, index) => below[index] + point[name]);
    if (last[name] > 0) {
      const upper = points.map((point, index) => `${x(point.at).toFixed(1)},${y(above[index]).toFixed(1)}`);
      const lower = points.map((point, index) => `${x(point.at).toFixed(1)},${y(below[index]).toFixed(1)}`).reverse();
      parts.push(draw("polygon", { class: `area ${name}`, points: [...upper, ...lower].join(" ") }));
      parts.push(draw("polyline", { class: `edge ${name}`, points: upper.join(" ") }));
    }
    below = above;
  }
  if (isLong) {
    // Each hour allows as much again; above the chart's end it is not drawn.
    const steps = [];
    for (let hour = 0; begin + hour * HOUR_MS <= end; hour += 1) {
      const allowed = perHour * (hour + 1);
      const until = Math.min(end, begin + (hour + 1) * HOUR_MS);
      if (allowed > most) break;
      steps.push(`${x(begin + hour * HOUR_MS).toFixed(1)},${y(allowed).toFixed(1)}`, `${x(until).toFixed(1)},${y(allowed).toFixed(1)}`);
    }
    if (steps.length > 0) parts.push(draw("polyline", { class: "allowed", points: steps.join(" ") }));
  }
  const words = STATES.filter(([name]) => last[name] > 0).map(([name, word]) => `${word} ${number(last[name])}`);
  parts.unshift(draw("title", { id: "chart-title" }, `Messages from ${exactly(begin)} to ${exactly(end)}: ${words.join(", ")}.`));
  svg.replaceChildren(...parts);
  const allowance = `${number(perHour)} an hour${perHour < limit ? `, without the reserve of ${number(limit - perHour)}` : ""}`;
  const keys = STATES.filter(([name]) => last[name] > 0).map(([name, word]) => create("span", { class: `key ${name}`, text: word }));
  if (isLong) keys.push(create("span", { class: "key allowed", text: `What the quota allows: ${allowance}` }));
  keys.push(create("span", { class: "soft", text: isLong || perHour === null ? "" : `The quota allows ${allowance}; all this was within one.` }));
  legend.replaceChildren(...keys.filter((key) => key.textContent !== ""));
};

export const rows = (moments) =>
  moments.map((one) =>
    create("tr", {}, [
      create("th", { scope: "row", text: exactly(one.at_ms) }),
      ...STATES.map(([name]) => create("td", { class: "number", text: number(one[name] ?? 0) })),
    ]),
  );
