// Fetches the page again and replaces the blocks that have changed. A block that has the focus, or whose form was
// filled in, stays as it is, and others come and go around it; what a person has opened stays open. A decision that
// arrives would push down what is being read: it is announced at the edge of the window, and comes when it is asked for.
"use strict";

const seconds = Number(document.body.dataset.refresh);
let has = '"nothing yet"'; // the tag of the page as it is shown
let next = seconds;
let wasHidden = false; // since the last refresh: nothing is being read
const wanted = new Set(); // the decisions that a person has asked for

const isFilled = (field) =>
  field.matches("[type=checkbox], [type=radio]") ? field.checked !== field.defaultChecked : field.value !== field.defaultValue;

const isInUse = (block) =>
  block.contains(document.activeElement) ||
  [...block.querySelectorAll("input:not([type=hidden]), textarea")].some(isFilled) ||
  [...block.querySelectorAll("form [role=status]")].some((said) => said.textContent);

const keepOpen = (old, fresh) => {
  for (const details of fresh.querySelectorAll("details[id]")) {
    const before = old.querySelector(`#${CSS.escape(details.id)}`);
    if (before) details.open = before.open;
  }
};

const blocksOf = (page) => [page.querySelector("header"), ...page.querySelectorAll("main > *")];

// The block that is shown from now on.
const renewed = (old, block) => {
  keepOpen(old, block);
  if (old.isEqualNode(block) || isInUse(old)) return old;
  old.replaceWith(block);
  return block;
};

const isDecision = (block) => block.id.startsWith("waits");

// Takes the decisions that arrive out of a page, and announces them.
const hold = (fresh, before) => {
  const isHeld = (block) => isDecision(block) && !wanted.has(block.id) && !before.some((each) => each.id === block.id);
  const held = wasHidden ? [] : blocksOf(fresh).filter(isHeld);
  held.forEach((block) => block.remove());
  announce(held.map((block) => block.id));
};

const announce = (ids) => {
  let notice = document.getElementById("arrived");
  if (!ids.length) return notice?.remove();
  if (!notice) {
    notice = document.createElement("p");
    notice.className = "notice wait";
    notice.id = "arrived";
    notice.setAttribute("role", "status");
    document.body.append(notice);
    const button = Object.assign(document.createElement("button"), { type: "button", className: "small", textContent: "Show" });
    notice.append("A candidate waits for you. ", button);
  }
  notice.querySelector("button").onclick = () => show(ids);
};

const show = async (ids) => {
  ids.forEach((id) => wanted.add(id));
  has = '"nothing yet"';
  await update();
  const block = document.getElementById(ids[0]);
  block?.scrollIntoView({ block: "nearest" });
  block?.querySelector("input:not([type=hidden]), a")?.focus({ preventScroll: true });
};

// A decision that was answered elsewhere leaves its place empty, so that nothing moves up.
const leave = (block) => {
  if (!isDecision(block)) return block.remove();
  if (block.dataset.over) return undefined;
  block.style.minHeight = `${block.getBoundingClientRect().height}px`;
  block.dataset.over = "true";
  const heading = Object.assign(document.createElement("h2"), { textContent: "Nothing waits here now" });
  return block.replaceChildren(heading);
};

// Whether everything is shown as it is now. While a person decides, nothing moves.
const replace = (fresh) => {
  const before = blocksOf(document);
  if (before.some((block) => isDecision(block) && isInUse(block))) return false;
  hold(fresh, before);
  const now = blocksOf(fresh);
  const gone = before.filter((block) => !now.some((each) => each.id === block.id));
  gone.filter((block) => !isInUse(block)).forEach(leave);
  let last = null;
  let kept = gone.filter(isInUse).length;
  for (const block of now) {
    const old = before.find((each) => each.id === block.id);
    if (old) {
      last = renewed(old, block);
      kept += last === old && !old.isEqualNode(block);
    } else {
      if (last.matches("main > *")) last.after(block);
      else document.querySelector("main").prepend(block);
      last = block;
    }
  }
  return kept === 0;
};

const update = async () => {
  try {
    if (document.hidden) {
      wasHidden = true;
    } else {
      const page = location.pathname + location.search;
      const answer = await fetch(page, { headers: { Accept: "text/html", "If-None-Match": has } });
      if (answer.ok) {
        const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
        next = Number(fresh.body.dataset.refresh) || seconds;
        document.getElementById("notice")?.remove();
        if (replace(fresh)) has = answer.headers.get("ETag") ?? has;
      } else if (answer.status === 401 && !blocksOf(document).some(isInUse)) {
        location.reload(); // the session is over: the login page leads back here
      }
      wasHidden = false;
    }
    document.body.classList.remove("stale");
  } catch {
    document.body.classList.add("stale"); // the server is away: the page says so, and tries again
  }
};

const refresh = async () => {
  await update();
  setTimeout(refresh, next * 1000);
};

if (location.search.startsWith("?done=")) history.replaceState(null, "", location.pathname); // it is said once
if (seconds) setTimeout(refresh, seconds * 1000);
