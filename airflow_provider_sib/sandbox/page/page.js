// Draws what each visitor sees, from /_sandbox/chats, and draws it anew when /_sandbox/events tells of a change.
// Only the cards in sight are fetched and drawn, so that it makes no difference how many visitors there are.
// Texts are shown as text: nothing here writes markup.

const GAP = 18;
const CARD_HEIGHT = 344;
const CARD_WIDTH = 290; // at least
const ROWS_BEYOND = 1; // drawn above and below what is in sight
// Browsers lay out no element higher than some 17 million pixels; beyond this, one finds a visitor by searching.
const MOST_HEIGHT = 8_000_000;

const byId = (id) => document.getElementById(id);
const grid = byId("grid");
const search = byId("search");
const order = byId("order");
const cardTemplate = byId("card").content.firstElementChild;
const messageTemplate = byId("message").content.firstElementChild;
const number = new Intl.NumberFormat();
const clock = new Intl.DateTimeFormat([], { hour: "2-digit", minute: "2-digit" });
const moment = new Intl.DateTimeFormat([], { dateStyle: "medium", timeStyle: "medium" });

const cards = new Map(); // visitor id -> Card
const drafts = new Map(); // visitor id -> what was begun in their name
let total = 0;
let drawn = null; // {offset, ids} of the last answer
let version = null;

const initials = (words) =>
  words.split(/\s+/).filter(Boolean).slice(0, 2).map((word) => [...word][0]).join("").toUpperCase();

const hue = (text) => {
  let sum = 7;
  for (const letter of text) sum = (sum * 31 + letter.codePointAt(0)) % 360_007;
  return sum % 360;
};

class Card {
  constructor(chat) {
    this.id = chat.id;
    this.element = cardTemplate.cloneNode(true);
    const find = (selector) => this.element.querySelector(selector);
    this.parts = { name: find("h2"), avatar: find(".avatar"), group: find(".group"), scroll: find(".scroll") };
    Object.assign(this.parts, { empty: find(".empty"), earlier: find(".earlier"), list: find("ol") });
    this.messages = new Map(); // message id -> {element, revisions}
    const code = find("code");
    code.textContent = chat.id;
    code.title = chat.id;
    this.parts.avatar.style.setProperty("--hue", hue(chat.id));
    this.element.dataset.visitor = chat.id;
    const form = find("form");
    const input = find("form input");
    input.value = drafts.get(chat.id) ?? "";
    input.addEventListener("input", () => {
      form.classList.remove("refused");
      drafts.set(chat.id, input.value);
    });
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      write(chat.id, form, input);
    });
    this.show(chat, false);
  }

  show(chat, animate) {
    const name = chat.name ?? "Visitor";
    const { parts } = this;
    parts.name.textContent = name;
    parts.avatar.textContent = chat.name ? initials(chat.name) : [...chat.id].slice(0, 2).join("");
    parts.group.hidden = chat.groupId === null;
    parts.group.textContent = parts.group.title = chat.groupId ?? "";
    this.element.setAttribute("aria-label", `${name}, ${chat.id}, messages: ${chat.messages.length + chat.earlier}`);
    this.element.querySelector("form input").setAttribute("aria-label", `Write as ${name} ${chat.id}`);
    parts.empty.hidden = chat.messages.length > 0;
    parts.earlier.hidden = chat.earlier === 0;
    parts.earlier.textContent = `${number.format(chat.earlier)} earlier`;
    const atEnd = parts.scroll.scrollHeight - parts.scroll.scrollTop - parts.scroll.clientHeight < 40;
    let arrived = false;
    const seen = new Set();
    for (const message of chat.messages) {
      seen.add(message.id);
      const known = this.messages.get(message.id);
      if (known === undefined) {
        this.messages.set(message.id, this.add(message, animate));
        arrived = true;
      } else if (known.revisions !== message.revisions) {
        known.revisions = message.revisions;
        fill(known.element, message);
        restart(known.element, "changes");
      }
    }
    for (const [id, { element }] of this.messages) {
      if (!seen.has(id)) {
        this.messages.delete(id);
        vanish(element, animate && chat.earlier === 0);
      }
    }
    if (arrived && (atEnd || !animate)) parts.scroll.scrollTop = parts.scroll.scrollHeight;
  }

  add(message, animate) {
    const element = messageTemplate.cloneNode(true);
    element.classList.add(message.kind);
    if (animate) element.classList.add("arrives");
    element.querySelector(".from").textContent = message.agent ?? "";
    const time = element.querySelector("time");
    const at = new Date(message.createdAt);
    time.dateTime = at.toISOString();
    time.textContent = clock.format(at);
    time.title = `${moment.format(at)} · ${message.kind} message ${message.id}`;
    fill(element, message);
    this.parts.list.append(element);
    return { element, revisions: message.revisions };
  }
}

const fill = (element, message) => {
  element.querySelector(".bubble").textContent = message.text;
  element.querySelector(".edited").hidden = message.revisions === 0;
};

const restart = (element, animation) => {
  element.classList.remove(animation);
  void element.offsetWidth; // without a layout in between the animation would not start again
  element.classList.add(animation);
};

const vanish = (element, animate) => {
  if (!animate || matchMedia("(prefers-reduced-motion: reduce)").matches) {
    element.remove();
    return;
  }
  element.classList.add("leaves");
  setTimeout(() => element.remove(), 400);
};

async function write(id, form, input) {
  const text = input.value;
  if (!text.trim()) return;
  const answer = await fetch("_sandbox/visitors", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ id, text }),
  }).catch(() => null);
  form.classList.toggle("refused", !answer?.ok);
  if (answer?.ok && input.value === text) {
    input.value = "";
    drafts.delete(id);
  }
}

function layout() {
  const width = grid.clientWidth;
  const columns = Math.max(1, Math.floor((width + GAP) / (CARD_WIDTH + GAP)));
  const cardWidth = (width - GAP * (columns - 1)) / columns;
  const row = CARD_HEIGHT + GAP;
  const most = Math.floor(MOST_HEIGHT / row) * columns;
  const shown = Math.min(total, most);
  const rows = Math.ceil(shown / columns);
  const top = Math.max(0, -grid.getBoundingClientRect().top);
  const first = Math.max(0, Math.min(Math.floor(top / row), rows - 1) - ROWS_BEYOND);
  const last = Math.ceil((top + innerHeight) / row) + ROWS_BEYOND;
  return { columns, cardWidth, row, most, shown, rows, offset: first * columns, limit: Math.min(200, (last - first) * columns) };
}

function place() {
  const { columns, cardWidth, row, shown, rows } = layout();
  grid.style.height = `${Math.max(0, rows * row - GAP)}px`;
  drawn.ids.forEach((id, position) => {
    const index = drawn.offset + position;
    const { element } = cards.get(id);
    element.style.setProperty("--width", `${cardWidth}px`);
    element.style.setProperty("--height", `${CARD_HEIGHT}px`);
    element.style.transform = `translate(${(index % columns) * (cardWidth + GAP)}px, ${Math.floor(index / columns) * row}px)`;
    element.setAttribute("aria-posinset", index + 1);
    element.setAttribute("aria-setsize", shown);
  });
}

function draw(answer) {
  const isSameView = drawn !== null && drawn.view === view();
  total = answer.total;
  const { most } = layout();
  const chats = answer.chats.slice(0, Math.max(0, most - answer.offset));
  drawn = { offset: answer.offset, ids: chats.map((chat) => chat.id), view: view() };
  const wanted = new Set(drawn.ids);
  for (const [id, card] of cards) {
    if (!wanted.has(id)) {
      card.element.remove();
      cards.delete(id);
    }
  }
  let before = null;
  for (const chat of chats) {
    let card = cards.get(chat.id);
    if (card) {
      card.show(chat, isSameView);
    } else {
      card = new Card(chat);
      cards.set(chat.id, card);
    }
    const next = before ? before.nextSibling : grid.firstChild;
    // moved only where it must be: moving an element takes the focus from what is typed in it
    if (next !== card.element) grid.insertBefore(card.element, next);
    card.parts.scroll.scrollTop ||= card.messages.size ? card.parts.scroll.scrollHeight : 0;
    before = card.element;
  }
  const note = byId("note");
  note.hidden = total > 0 && total <= most;
  note.textContent = total === 0
    ? "No visitor has this in their name or id."
    : `The first ${number.format(most)} of ${number.format(total)} visitors. Search to see the others.`;
  place();
}

const view = () => `${order.value} ${search.value.trim()}`;

let fetching = false;
let again = false;
async function refresh() {
  if (fetching) {
    again = true;
    return;
  }
  fetching = true;
  do {
    again = false;
    const asked = view();
    const { offset, limit } = layout();
    const query = new URLSearchParams({ offset, limit, search: search.value.trim(), order: order.value });
    const chats = await fetch(`_sandbox/chats?${query}`)
      .then((answer) => answer.json())
      .catch(() => null); // the sandbox is gone; the events say when it is back
    fetching = false;
    if (chats && asked === view()) draw(chats);
    fetching = again;
  } while (again);
}

const duration = (seconds) => {
  if (seconds < 100) return `${seconds} s`;
  return seconds < 5_400 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3_600)} h`;
};

function showFigures(figures) {
  for (const name of ["visitors", "messages", "requests", "faults"]) byId(name).textContent = number.format(figures[name]);
  byId("faults-figure").hidden = figures.faults === 0;
  const { limit, remaining, reset_in_seconds: reset, is_open: isOpen } = figures.quota;
  byId("remaining").textContent = number.format(remaining);
  byId("limit").textContent = number.format(limit);
  byId("quota").max = Math.max(1, limit);
  byId("quota").value = remaining;
  byId("reset").textContent = isOpen ? `, full again in ${duration(reset)}` : `, for ${duration(reset)}`;
  byId("quota").closest(".quota").classList.toggle("spent", remaining === 0);
}

function listen() {
  const events = new EventSource("_sandbox/events");
  const link = byId("link");
  events.onopen = () => {
    link.textContent = "live";
    link.classList.add("live");
    version = null;
  };
  events.onerror = () => {
    link.textContent = "not running, trying again";
    link.classList.remove("live");
    if (events.readyState === EventSource.CLOSED) setTimeout(listen, 2_000);
  };
  events.onmessage = ({ data }) => {
    const figures = JSON.parse(data);
    showFigures(figures);
    if (figures.version !== version) {
      version = figures.version;
      refresh();
    }
  };
}

let scheduled = false;
function moved() {
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(() => {
    scheduled = false;
    if (drawn) place();
    const { offset, limit } = layout();
    const end = Math.min(total, offset + limit);
    if (!drawn || offset < drawn.offset || end > drawn.offset + drawn.ids.length) refresh();
  });
}

addEventListener("scroll", moved, { passive: true });
addEventListener("resize", moved);
addEventListener("pagehide", () => sessionStorage.setItem("view", JSON.stringify([search.value, order.value])));
document.querySelector(".tools").addEventListener("submit", (event) => event.preventDefault());
const changeView = () => {
  scrollTo({ top: 0 });
  refresh();
};
search.addEventListener("input", changeView);
order.addEventListener("change", changeView);
addEventListener("keydown", (event) => {
  const isTyping = event.target.matches("input, select");
  if (event.key === "/" && !isTyping && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    search.focus();
    search.select();
  } else if (event.key === "Escape" && event.target === search) {
    search.value = "";
    changeView();
  } else if (event.target.matches(".card") && event.key.startsWith("Arrow")) {
    const { columns } = layout();
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
    const id = drawn.ids[drawn.ids.indexOf(event.target.dataset.visitor) + step];
    if (id) {
      event.preventDefault();
      cards.get(id).element.focus();
    }
  }
});

try {
  [search.value, order.value] = JSON.parse(sessionStorage.getItem("view")) ?? ["", "first"];
} catch {
  // nothing to restore
}
// What the page came with, so that it is there at once.
const begin = JSON.parse(byId("begin").textContent);
showFigures(begin.figures);
if (view() === "first ") draw(begin.chats);
refresh();
listen();
