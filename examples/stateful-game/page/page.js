"use strict";

const $ = (id) => document.getElementById(id);
const sea = $("sea");

// The colours of the islands and of those who were born there. White is readable on
// all of them.
const colours = ["#b3261e", "#1d5fc4", "#7b3fb5", "#9a5000", "#00707a", "#a8246f", "#56630f", "#4c5566"];

const servers = new Map(); // id -> { is, el, land, colour }
const players = new Map(); // name -> { is, el, slot }
const notes = new Map();   // number -> element

const reduced = matchMedia("(prefers-reduced-motion: reduce)");

// --- what comes from the game ---

let events;

// listen has no stream while nobody looks: a browser has six connections to a host, for
// the streams and buttons of all its tabs. The next stream begins with all there is.
function listen() {
  events?.close();
  if (document.hidden) return;
  events = new EventSource("events");
  events.onmessage = (e) => apply(JSON.parse(e.data));
  events.onerror = () => {
    answers(false);
    // It comes back by itself, but not to what has answered without being the game.
    if (events.readyState === EventSource.CLOSED) setTimeout(listen, 1000);
  };
  events.onopen = () => answers(true);
}
document.addEventListener("visibilitychange", listen);

function answers(yes) {
  document.body.classList.toggle("stale", !yes);
  say(yes ? "" : "The game does not answer. Trying again…", !yes);
}

function apply(frame) {
  if (frame.whole) forget(frame);
  if (frame.etcd) showEtcd(frame.etcd);
  if (frame.totals) showTotals(frame.totals);
  for (const s of frame.servers || []) showServer(s, frame.whole);
  for (const p of frame.players || []) showPlayer(p);
  for (const n of frame.notes || []) showNote(n);
  tell((frame.notes || []).slice(frame.whole ? -1 : 0));
  if (frame.servers || frame.players) arrange();
}

// forget removes what is not in a whole frame: the game is another one.
function forget(frame) {
  const keep = (map, names) => {
    for (const [name, x] of map) {
      if (names.has(name)) continue;
      (x.el || x).remove();
      map.delete(name);
    }
  };
  keep(servers, new Set((frame.servers || []).map((s) => s.id)));
  keep(players, new Set((frame.players || []).map((p) => p.name)));
  keep(notes, new Set());
}

function text(el, s) {
  s = String(s);
  if (el.textContent !== s) el.textContent = s;
}

function able(button, yes) {
  // Not the attribute "disabled", which would take the focus away.
  button.setAttribute("aria-disabled", String(!yes));
}

function showEtcd(state) {
  $("etcd").dataset.state = state;
  text($("etcd-state"), state);
  const button = $("etcd-button");
  const up = state === "running" || state === "stopping";
  button.dataset.do = up ? "stop-etcd" : "start-etcd";
  text(button, up ? "Stop etcd" : "Start etcd");
  able(button, state === "running" || state === "stopped");
}

function showTotals(t) {
  for (const name of ["needed", "needless", "told", "calls", "failed"]) {
    const n = t[name];
    text($(name), n.toLocaleString("en", n < 10000 ? {} : { notation: "compact", maximumSignificantDigits: 3 }));
  }
  $("needless-tile").classList.toggle("bad", t.needless > 0);
  $("needless-tile").classList.toggle("good", t.needless === 0);
}

function showServer(is, quiet) {
  let s = servers.get(is.id);
  if (!s) {
    const el = $("island").content.firstElementChild.cloneNode(true);
    el.dataset.server = is.id;
    el.setAttribute("aria-label", is.id);
    s = { el, land: el.querySelector(".land"), colour: colours[servers.size % colours.length] };
    el.style.setProperty("--of", s.colour);
    text(el.querySelector(".id"), is.id);
    for (const b of el.querySelectorAll("button")) {
      b.dataset.server = is.id;
      b.setAttribute("aria-label", b.textContent + " " + is.id);
    }
    servers.set(is.id, s);
    $("islands").append(el);
    quiet = true;
  }
  if (!quiet) sparks(s, is.keyless - s.is.keyless);
  s.is = is;
  s.el.dataset.state = is.state;
  able(s.el.querySelector("[data-do=drain]"), is.state === "up");
  able(s.el.querySelector("[data-do=kill]"), ["starting", "up", "draining"].includes(is.state));
}

function showPlayer(is) {
  let p = players.get(is.name);
  if (!p) {
    const el = document.createElement("li");
    el.className = "dot";
    el.dataset.player = is.name;
    const letter = document.createElement("span");
    letter.setAttribute("aria-hidden", "true");
    letter.textContent = is.name[0] + (is.name.match(/\d+$/) || "");
    const words = document.createElement("span");
    words.className = "sr";
    el.append(letter, words);
    p = { el, words, slot: -1, is: { reconnects: is.reconnects } };
    players.set(is.name, p);
    $("dots").append(el);
    // A new one sets off from the pier.
    const from = centre($("pier"));
    el.style.transform = `translate(${from.x}px, ${from.y}px)`;
    el.getBoundingClientRect();
  }
  if (is.at !== p.is.at) p.slot = -1;
  if (is.reconnects !== p.is.reconnects) {
    p.el.classList.remove("back");
    void p.el.offsetWidth; // so that it begins again
    p.el.classList.add("back");
  }
  p.is = is;
  p.el.dataset.at = is.at;
  p.el.dataset.state = is.state;
  const born = servers.get(is.born);
  p.el.style.setProperty("--of", born ? born.colour : "#4c5566");
  const where = is.at ? "on " + is.at : "on the way";
  const what = is.state === "playing" ? "" : ", " + is.state;
  p.el.title = `${is.name} ${where}${what}: ${is.score} points`;
  text(p.words, p.el.title);
}

function showNote(n) {
  let li = notes.get(n.n);
  if (!li) {
    li = document.createElement("li");
    li.append(document.createElement("time"), document.createElement("span"));
    notes.set(n.n, li);
    $("notes").prepend(li);
    for (const [old, el] of notes) {
      if (notes.size <= 100) break;
      el.remove();
      notes.delete(old);
    }
  }
  li.dataset.kind = n.kind;
  text(li.firstChild, new Date(n.time).toLocaleTimeString("en-GB"));
  text(li.lastChild, n.text);
}

// tell says what has just happened, the last first, where it is heard and where a phone
// shows it. It waits for a moment, because a note grows while one player after the other
// moves.
const tell = (() => {
  const untold = new Map();
  let soon = 0;
  return (notes) => {
    for (const n of notes) {
      untold.delete(n.n);
      untold.set(n.n, n.text);
    }
    if (!untold.size || soon) return;
    soon = setTimeout(() => {
      text($("latest"), [...untold.values()].reverse().join(" "));
      untold.clear();
      soon = 0;
    }, 1000);
  };
})();

// --- where the dots are ---

// centre returns the middle of an element, as seen from the corner of the sea.
function centre(el) {
  const r = el.getBoundingClientRect(), o = sea.getBoundingClientRect();
  return { x: r.left + r.width / 2 - o.left - sea.clientLeft, y: r.top + r.height / 2 - o.top - sea.clientTop };
}

// arrange gives every dot a place on its island and says how many are there. A dot
// keeps its place as long as it stays, whoever else comes or goes.
function arrange() {
  const there = new Map();
  for (const p of players.values()) {
    if (!there.has(p.is.at)) there.set(p.is.at, []);
    there.get(p.is.at).push(p);
  }
  for (const s of servers.values()) {
    const here = there.get(s.is.id) || [];
    const those = (state) => {
      const n = here.filter((p) => p.is.state === state).length;
      return n ? `, ${n} ${state}` : "";
    };
    text(s.el.querySelector(".state"), s.is.state + (those("waiting") || those("packing")));
    text(s.el.querySelector(".facts"),
      `${here.length} player${here.length === 1 ? "" : "s"} · ${s.is.keyless.toLocaleString("en")} keyless · ${s.is.addr.replace(/.*:/, ":")}`);
    settle(here, centre(s.land), s.land.offsetWidth - 56, s.land.offsetHeight - 52);
  }
  const pier = centre($("pier"));
  settle(there.get("") || [], { x: pier.x, y: pier.y + 26 }, 240, 30);
}

// settle puts dots on their places.
function settle(dots, at, width, height) {
  const taken = new Set(dots.map((p) => p.slot));
  let free = 0;
  for (const p of dots) {
    if (p.slot >= 0) continue;
    while (taken.has(free)) free++;
    p.slot = free;
    taken.add(free);
  }
  const { places, scale } = lattice(width / 2, height / 2, Math.max(0, ...dots.map((p) => p.slot)) + 1);
  for (const p of dots) {
    const [x, y] = places[p.slot];
    p.el.style.transform = `translate(${(at.x + x).toFixed(1)}px, ${(at.y + y).toFixed(1)}px) scale(${scale})`;
  }
}

// lattice returns n places in an ellipse with these radii, from the middle outwards, as
// far apart as dots are wide; or nearer and for smaller dots, if there are too many.
const lattice = (() => {
  const known = new Map();
  return (rx, ry, n) => {
    const name = [rx, ry, n].join();
    for (let scale = 1; !known.has(name); scale -= 0.05) {
      const dx = 33 * scale, dy = 28 * scale, places = [];
      for (let row = -9; row <= 9; row++) {
        for (let col = -12; col <= 12; col++) {
          const x = (col + (row & 1 ? 0.5 : 0)) * dx, y = row * dy;
          const out = (x / rx) ** 2 + (y / ry) ** 2;
          if (out <= 1 || scale < 0.35) places.push([x, y, out]);
        }
      }
      if (places.length >= n) {
        places.sort((a, b) => a[2] - b[2]);
        known.set(name, { places, scale: scale.toFixed(2) });
      }
    }
    const found = known.get(name);
    if (known.size > 100) known.clear(); // a window that is resized has many sizes
    return found;
  };
})();

// When the page is laid out anew the dots go along at once: they have not moved.
new ResizeObserver(() => {
  sea.classList.add("still");
  arrange();
  sea.getBoundingClientRect();
  sea.classList.remove("still");
}).observe(sea);

// --- sparks ---

function sparks(server, n) {
  if (document.hidden || reduced.matches) return;
  const from = centre($("pier")), to = centre(server.land);
  for (let i = 0; i < Math.min(n, 3) && $("sparks").childElementCount < 40; i++) {
    const el = document.createElement("i");
    el.className = "spark";
    $("sparks").append(el);
    const x = to.x + (Math.random() - 0.5) * server.land.offsetWidth * 0.6;
    const y = to.y + (Math.random() - 0.5) * server.land.offsetHeight * 0.6;
    const move = (x, y, k) => `translate(${x}px, ${y}px) scale(${k})`;
    el.animate([
      { transform: move(from.x, from.y, 0.6), opacity: 0 },
      { transform: move(from.x + (x - from.x) * 0.2, from.y + (y - from.y) * 0.2, 1), opacity: 1, offset: 0.2 },
      { transform: move(x, y, 1), opacity: 1, offset: 0.85 },
      { transform: move(x, y, 2.4), opacity: 0 },
    ], { duration: 900, easing: "ease-in-out", delay: i * 60, fill: "backwards" }).onfinish = () => el.remove();
  }
}

// --- buttons ---

// say shows a message: for a while, or until the next.
let unsay = 0;
function say(s, stays) {
  text($("says"), s);
  clearTimeout(unsay);
  if (s && !stays) unsay = setTimeout(say, 10000, "");
}

document.addEventListener("click", async (e) => {
  const button = e.target.closest("button[data-do]");
  if (!button) return;
  const { do: action, server } = button.dataset;
  if (button.getAttribute("aria-disabled") === "true") {
    const state = server ? `${server} is ${servers.get(server).is.state}` : `etcd is ${$("etcd").dataset.state}`;
    say(`${state}: “${button.textContent}” has to wait.`);
    return;
  }
  try {
    const path = ["do", action, server].filter(Boolean).map(encodeURIComponent).join("/");
    const answer = await fetch(path, { method: "POST" });
    const { error } = await answer.json();
    say(error ? error[0].toUpperCase() + error.slice(1) + "." : "");
  } catch {
    say("The game does not answer.");
  }
});

listen();
