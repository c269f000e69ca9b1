// Says numbers, moments and spans of time for people, and who delivers a campaign.

const plain = new Intl.NumberFormat();
const near = new Intl.DateTimeFormat([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const short = new Intl.DateTimeFormat([], { hour: "2-digit", minute: "2-digit" });
const far = new Intl.DateTimeFormat([], { dateStyle: "medium", timeStyle: "short" });
const DAY_MS = 86_400_000;

export const number = (value) => plain.format(value);

export const moment = (ms, nowMs = Date.now()) => {
  if (ms === null || ms === undefined) return "–";
  return Math.abs(nowMs - ms) < DAY_MS / 2 ? near.format(ms) : far.format(ms);
};

export const clock = (ms) => short.format(ms);

export const exactly = (ms) => far.format(ms);

export const duration = (seconds) => {
  if (seconds < 60) return `${Math.ceil(seconds)} s`;
  const minutes = Math.ceil(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return `${hours} h ${minutes % 60} min`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
};

// Rounded down; a binary fraction such as 0.29 lies a little below what it stands for.
export const wholePercent = (share) => Math.floor(share * 100 + 1e-9);

export const percent = (share) => (share > 0 && share < 0.01 ? "< 1 %" : `${wholePercent(share)} %`);

// How long the quota makes it last at least; nothing is promised where nobody delivers.
export const left = (campaign, nowMs) => {
  if (campaign.status === "finished" || campaign.due + campaign.sending === 0) return "–";
  if (campaign.status !== "running") return campaign.status;
  if (campaign.seconds_left === null || !["now", "waits"].includes(campaign.delivery)) return "unknown";
  const seconds = Math.max(campaign.seconds_left, ((campaign.next_wake_ms ?? 0) - nowMs) / 1000);
  return seconds > 0 ? `≥ ${duration(seconds)}` : "within this hour's quota";
};

export const quota = ({ quota: { limit, remaining } }) => {
  if (limit === null) return "unknown";
  return remaining === null ? `${number(limit)} an hour` : `${number(remaining)} of ${number(limit)}`;
};

export const delivery = (campaign, nowMs) => {
  const seen = campaign.last_seen_ms;
  switch (campaign.delivery) {
    case "over":
      return seen === null ? "Finished." : `Finished; last worked at ${moment(seen, nowMs)}.`;
    case "stopped":
      return campaign.status === "paused"
        ? "Paused: nothing is begun until somebody resumes it."
        : "Aborted: nothing is begun any more. Resume it to go on.";
    case "held_back":
      return "Everybody due has an outcome; the rest is held back for a larger fraction.";
    case "settled":
      return "Everybody has an outcome; its task has not ended it yet. If that lasts, see its task, or run its DAG.";
    case "preparing":
      return seen === null
        ? "Being prepared, or its task has stopped: see its task, or run its DAG."
        : `Newcomers are being prepared, or its task has stopped: see it, or run its DAG. Last delivered at ${moment(seen, nowMs)}.`;
    case "waits":
      return `Waits until ${moment(campaign.next_wake_ms, nowMs)}, then its task goes on.`;
    case "now":
      return seen === null ? "Being prepared." : "Being delivered now.";
    case "never":
      return `Nobody has delivered since the last enrolment, at ${moment(campaign.enrolled_at_ms, nowMs)}. See its task, or run its DAG.`;
    default: {
      const meant = campaign.next_wake_ms;
      const missed = meant !== null && meant > seen ? ` It meant to go on at ${moment(meant, nowMs)}.` : "";
      return `Nobody delivers since ${moment(seen, nowMs)}.${missed} See its task, or run its DAG.`;
    }
  }
};
