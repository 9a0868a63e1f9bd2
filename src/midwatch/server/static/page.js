// What the page does beside htmx: it follows changes and goes on after a break where it was.
// htmx's own extension for server-sent events opens its address again as it was at first and so misses what came meanwhile.
"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const live = byId("live");
  const MOST_EVENTS = 2000;

  function say(state, text) {
    if (live.dataset.state !== state) { live.dataset.state = state; live.textContent = text; }
  }

  // ------------------------------------------------------------ a stream that goes on where it broke

  // `address` returns the address behind the last event; a hidden page has no stream, as a browser has few connections.
  function follow(address, handlers) {
    let source = null, wait = 500, timer = 0;
    function open() {
      clearTimeout(timer);
      source = new EventSource(address());
      source.onopen = () => { wait = 500; say("on", "live"); };
      source.onerror = () => {
        say("away", "connecting");
        if (source.readyState === EventSource.CLOSED) { again(); }
      };
      for (const [name, handle] of Object.entries(handlers)) { source.addEventListener(name, handle); }
    }
    function again() {
      close();
      timer = setTimeout(open, wait * (0.5 + Math.random() / 2));
      wait = Math.min(wait * 2, 15000);
    }
    function close() { clearTimeout(timer); if (source) { source.close(); source = null; } }
    document.addEventListener("visibilitychange", () => {
      if (document.hidden) { close(); say("away", "paused"); } else if (!source) { open(); }
    });
    addEventListener("pagehide", close);
    addEventListener("pageshow", (event) => { if (event.persisted && !source) { open(); } });
    open();
    return close;
  }

  // ------------------------------------------------------------ parts that are read again

  const isOpen = () => new Set([...document.querySelectorAll("details[open][id]")].map((one) => one.id));
  const isTyped = (part) => part.contains(document.activeElement) && document.activeElement.matches("input, textarea, select")
    || [...part.querySelectorAll("textarea, input:not([type=hidden])")].some((one) => one.value !== one.defaultValue);

  // Put the parts of another version of this page in place; what somebody types in, reads or has opened stays.
  function replaceParts(text) {
    const next = new DOMParser().parseFromString(text, "text/html");
    const shown = new Set([...document.querySelectorAll("details[id]")].map((one) => one.id));
    const opened = isOpen();
    for (const fresh of next.querySelectorAll("[data-live][id]")) {
      const old = byId(fresh.id);
      if (!old || old.dataset.made === fresh.innerHTML || isTyped(old)) { continue; }
      for (const one of fresh.querySelectorAll("details[id]")) {
        if (shown.has(one.id)) { one.open = opened.has(one.id); }
      }
      const focused = old.contains(document.activeElement) && document.activeElement;
      fresh.dataset.made = fresh.innerHTML;
      const put = document.importNode(fresh, true);
      old.replaceWith(put);
      htmx.process(put);
      if (focused) { focusLike(focused, put); }
    }
    for (const fresh of next.querySelectorAll("[data-live][id]")) {
      // A part that this version has for the first time, such as the evidence of a new diagnosis.
      if (!byId(fresh.id) && fresh.parentElement) {
        const before = fresh.nextElementSibling && fresh.nextElementSibling.id && byId(fresh.nextElementSibling.id);
        if (before) { const put = document.importNode(fresh, true); before.before(put); htmx.process(put); }
      }
    }
  }

  // Give the focus to what stands where the focused element stood, or else to the whole content.
  function focusLike(gone, put) {
    const action = gone.closest("form")?.getAttribute("action");
    const form = action && [...put.querySelectorAll("form")].find((one) => one.getAttribute("action") === action);
    const hiding = gone.matches("summary") && byId(gone.parentElement.id)?.querySelector("summary");
    const link = gone.href && [...put.querySelectorAll("a")].find((one) => one.href === gone.href);
    const next = (gone.id && byId(gone.id)) || hiding || link || form?.querySelector("button");
    (next && next.checkVisibility() ? next : byId("main")).focus({ preventScroll: true });
  }

  // ------------------------------------------------------------ the buttons

  function complain(text) {
    const problem = byId("problem");
    problem.hidden = false;
    problem.textContent = text;
  }

  // A button answers with the page as it is now. Its streams go on, so only its parts are put in place.
  document.addEventListener("htmx:afterRequest", (event) => {
    const { elt: form, xhr } = event.detail;
    if (!form.matches("form[hx-post]") || !byId("problem")) { return; }
    if (!xhr.status) { complain("The server did not answer; nothing is known of what it did."); return; }
    if (xhr.status < 400) {
      const shown = new URL(xhr.responseURL || location.href);
      if (shown.pathname !== location.pathname) { location.assign(shown); return; }
      form.reset();
      if (form.closest("details")) { form.closest("details").open = false; }
    }
    if (xhr.responseText.includes('id="problem"')) { replaceParts(xhr.responseText); } else { complain(`The server refused it (${xhr.status}).`); }
  });

  let reading = false, asked = false;
  async function readAgain() {
    if (reading) { asked = true; return; }
    reading = true;
    do {
      asked = false;
      try {
        const answer = await fetch(location.href, { headers: { "X-Midwatch-Live": "1" } });
        if (answer.ok) { replaceParts(await answer.text()); }
      } catch { /* the stream tells when the server is back */ }
    } while (asked);
    reading = false;
  }

  // ------------------------------------------------------------ the list of tickets

  const place = (row) => [Number(row.dataset.severity), Number(row.dataset.opened), Number(row.id.slice(7))];
  function isBefore(one, other) {
    const [a, b] = [place(one), place(other)];
    for (const at of [0, 1, 2]) { if (a[at] !== b[at]) { return a[at] < b[at]; } }
    return false;
  }

  function rowOf(text) {
    const template = document.createElement("template");
    template.innerHTML = text;
    return template.content.firstElementChild;
  }

  let later = 0;
  function readListLater() {
    clearTimeout(later);
    later = setTimeout(() => {
      const shown = new URL(location.href);
      htmx.ajax("GET", shown.pathname + shown.search, { target: "#list", select: "#list", swap: "outerHTML" });
    }, 300 + Math.random() * 700);
  }

  function showChange(change) {
    const list = byId("list"), rows = byId("rows");
    if (!list || !rows) { return; }
    byId("counts").innerHTML = change.counts;
    const fresh = rowOf(change.row), old = byId(fresh.id);
    if (old) {
      const focused = old.contains(document.activeElement);
      old.replaceWith(fresh);
      if (focused) { fresh.querySelector("a").focus(); }
    } else if (change.status === "resolved") {
      if (list.dataset.view !== "open") { readListLater(); }
      return;
    } else if (list.dataset.view === "open") {
      const next = [...rows.children].find((one) => isBefore(fresh, one));
      if (!next && byId("more")) { return; }
      rows.insertBefore(fresh, next || null);
      byId("empty")?.remove();
    } else { readListLater(); return; }
    fresh.classList.add("new");
    htmx.process(fresh);
  }

  function followChanges(part) {
    let cursor = part.dataset.cursor;
    const join = part.dataset.events.includes("?") ? "&" : "?";
    const seen = (event) => { if (event.lastEventId) { cursor = event.lastEventId; } };
    follow(() => `${part.dataset.events}${join}after=${encodeURIComponent(cursor)}`, {
      change: (event) => { seen(event); showChange(JSON.parse(event.data)); },
      reload: (event) => { seen(event); if (byId("list")) { readListLater(); } else { readAgain(); } },
    });
  }

  // ------------------------------------------------------------ the events of a session

  function followSession(part) {
    let after = part.dataset.after;
    const close = follow(() => `${part.dataset.stream}?after=${encodeURIComponent(after)}`, {
      events: (event) => {
        after = event.lastEventId;
        const atEnd = part.scrollHeight - part.scrollTop - part.clientHeight < 40;
        const template = document.createElement("template");
        template.innerHTML = event.data;
        part.append(template.content);
        while (part.children.length > MOST_EVENTS) { part.firstElementChild.remove(); }
        part.dataset.after = after;
        if (atEnd) { part.scrollTop = part.scrollHeight; }
      },
      status: () => readAgain(),
      end: () => { readAgain(); close(); say("off", ""); },
    });
    part.scrollTop = part.scrollHeight;
  }

  // ------------------------------------------------------------ ages

  function age(seconds) {
    for (const [size, name] of [[86400, "d"], [3600, "h"], [60, "m"], [1, "s"]]) {
      if (seconds >= size) { return `${Math.floor(seconds / size)}${name} ago`; }
    }
    return "now";
  }
  // The difference between this clock and the server's, from the page itself.
  const offset = Date.parse(document.body.dataset.now) - Date.now();
  setInterval(() => {
    for (const one of document.querySelectorAll("time[data-age]")) {
      const text = age((Date.now() + offset - Date.parse(one.dateTime)) / 1000);
      if (one.textContent !== text) { one.textContent = text; }
    }
  }, 10000);

  // ------------------------------------------------------------ start

  // A link to a quote opens what hides it.
  function showTarget() {
    const target = location.hash.length > 1 && byId(decodeURIComponent(location.hash.slice(1)));
    const hidden = target && target.closest("details:not([open])");
    if (hidden) { hidden.open = true; target.scrollIntoView(); }
  }
  addEventListener("hashchange", showTarget);
  showTarget();
  for (const part of document.querySelectorAll("[data-live][id]")) { part.dataset.made = part.innerHTML; }
  const changes = document.querySelector("[data-events]"), session = document.querySelector("[data-stream]");
  if (changes) { followChanges(changes); }
  if (session) { followSession(session); }
})();
