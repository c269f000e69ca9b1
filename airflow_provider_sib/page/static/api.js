// Asks the server; says what went wrong as a value, never by an exception.

const parameters = new URLSearchParams(location.search);
export const campaignId = parameters.get("campaign");
export const ledger = parameters.get("ledger");

// A request that is never answered would else keep old figures on the page for good.
const PATIENCE_MS = 20_000;

const answer = async (address, options) => {
  let response;
  let body = null;
  try {
    response = await fetch(address, { ...options, signal: AbortSignal.timeout(PATIENCE_MS) });
    body = await response.json();
  } catch (error) {
    if (error.name === "TimeoutError") return { failed: { title: "The ledger's database, or Airflow's API server, is silent", detail: `There was no answer within ${PATIENCE_MS / 1000} seconds. This page tries again by itself.`, remedies: [] } };
    if (response === undefined) return { failed: { title: "Airflow's API server does not answer", detail: "This page tries again by itself.", remedies: [] } };
  }
  if (response.ok && body !== null) return { value: body };
  if (body?.problem) return { failed: body.problem };
  if (response.status === 401) return { failed: { title: "You are not logged in", detail: "Log in to Airflow, then come back to this page.", remedies: [], login: true } };
  const detail = typeof body?.detail === "string" ? body.detail : `The answer was ${response.status}.`;
  return { failed: { title: response.status === 404 ? "Not found" : "This did not work", detail, remedies: [], status: response.status } };
};

export const get = (name, query = {}) => {
  const wanted = new URLSearchParams(query);
  if (ledger !== null) wanted.set("ledger", ledger);
  return answer(`api/${name}?${wanted}`, { headers: { accept: "application/json" } });
};

export const change = (id, status, seen) =>
  answer("api/status", {
    method: "POST",
    headers: { "content-type": "application/json", "x-sib-request": "1" },
    body: JSON.stringify({ id, status, seen, ledger }),
  });

export const addressOf = (id) => {
  const wanted = new URLSearchParams(id === null ? {} : { campaign: id });
  if (ledger !== null) wanted.set("ledger", ledger);
  const query = wanted.toString();
  return query === "" ? "./" : `./?${query}`;
};
