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

// The quota's windows, as far as they are known: they are taken to end an hour apart from the one end that is.
const windows = (resetMs, points, { begin, end, spanMs, perHour }) => {
  if (resetMs === null) {
    // The first message may have come in a window's last moment.
    return { first: 2, endMs: begin + HOUR_MS, isCrossed: end - begin >= HOUR_MS, isWithinOne: false };
  }
  const endAfter = (at) => at + ((((resetMs - at) % HOUR_MS) + HOUR_MS) % HOUR_MS);
  // An end within the first span is rather the opening of the campaign's first window than its end.
  const endMs = endAfter(begin + spanMs);
  const isEnough = points.every(({ at, sent, failed, in_doubt }) =>
    sent + failed + in_doubt <= perHour * (1 + Math.max(0, Math.ceil((at - endMs) / HOUR_MS))));
  return { first: isEnough ? 1 : 2, endMs, isCrossed: endMs < end, isWithinOne: isEnough && endAfter(begin) >= end };
};

export const chart = (svg, legend, { chart: { seconds, moments }, quota: { limit, reserve, known_reset_ms: resetMs }, total, nowMs, isOver }) => {
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
  const { first, endMs, isCrossed, isWithinOne } = windows(resetMs, points, { begin, end, spanMs, perHour });
  const isDrawn = isCrossed && perHour !== null;
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
  if (isDrawn) {
    // Each window allows as much again; above the chart's end it is not drawn.
    const steps = [];
    let from = begin;
    for (let later = 0; from < end && perHour * (first + later) <= most; later += 1) {
      // What was sent within one span, before and after a window's end, is one figure: all of it counts as after.
      const until = endMs + later * HOUR_MS;
      const to = Math.min(end, until - (until % spanMs));
      const height = y(perHour * (first + later)).toFixed(1);
      steps.push(`${x(from).toFixed(1)},${height}`, `${x(to).toFixed(1)},${height}`);
      from = to;
    }
    if (steps.length > 0) parts.push(draw("polyline", { class: "allowed", points: steps.join(" ") }));
  }
  const words = STATES.filter(([name]) => last[name] > 0).map(([name, word]) => `${word} ${number(last[name])}`);
  parts.unshift(draw("title", { id: "chart-title" }, `Messages from ${exactly(begin)} to ${exactly(end)}: ${words.join(", ")}.`));
  svg.replaceChildren(...parts);
  const allowance = `${number(perHour)} an hour${perHour < limit ? `, without the reserve of ${number(limit - perHour)}` : ""}`;
  const keys = STATES.filter(([name]) => last[name] > 0).map(([name, word]) => create("span", { class: `key ${name}`, text: word }));
  if (isDrawn) keys.push(create("span", { class: "key allowed", text: `What the quota allows${first > 1 ? " at most" : ""}: ${allowance}` }));
  keys.push(create("span", { class: "soft", text: isDrawn || perHour === null ? "" : `The quota allows ${allowance}${isWithinOne ? "; all this was within one" : ""}.` }));
  legend.replaceChildren(...keys.filter((key) => key.textContent !== ""));
};

export const rows = (moments) =>
  moments.map((one) =>
    create("tr", {}, [
      create("th", { scope: "row", text: exactly(one.at_ms) }),
      ...STATES.map(([name]) => create("td", { class: "number", text: number(one[name] ?? 0) })),
    ]),
  );
