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

export const percent = (share) => `${Math.floor(share * 100)} %`;

export const left = (campaign) => {
  if (campaign.status === "finished" || campaign.due + campaign.sending === 0) return "–";
  if (campaign.status !== "running") return campaign.status;
  if (campaign.seconds_left === null) return "unknown";
  return campaign.seconds_left < 60 ? "under a minute" : `≥ ${duration(campaign.seconds_left)}`;
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
    case "waits":
      return `Waits until ${moment(campaign.next_wake_ms, nowMs)}, then its task goes on.`;
    case "now":
      return seen === null ? "Being prepared." : "Being delivered now.";
    case "never":
      return `Nobody has delivered it since it was opened at ${moment(campaign.created_at_ms, nowMs)}. Run its DAG.`;
    default: {
      const meant = campaign.next_wake_ms;
      const missed = meant !== null && meant > seen ? ` It meant to go on at ${moment(meant, nowMs)}.` : "";
      return `Nobody delivers since ${moment(seen, nowMs)}.${missed} See its task, or run its DAG.`;
    }
  }
};
