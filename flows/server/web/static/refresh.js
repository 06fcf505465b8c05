// Fetches the page again and replaces the blocks that have changed. A block that has the focus, or whose form was
// filled in, stays as it is; what a person has opened stays open.
"use strict";

const seconds = Number(document.body.dataset.refresh);
let has = '"nothing yet"'; // the tag of the page as it is shown
let next = seconds;

const isInUse = (block) =>
  block.contains(document.activeElement) ||
  [...block.querySelectorAll("input:not([type=hidden]), textarea")].some((field) => field.value !== field.defaultValue) ||
  [...block.querySelectorAll("form [role=status]")].some((said) => said.textContent);

const keepOpen = (old, fresh) => {
  for (const details of fresh.querySelectorAll("details[id]")) {
    const before = old.querySelector(`#${CSS.escape(details.id)}`);
    if (before) details.open = before.open;
  }
};

const blocksOf = (page) => [page.querySelector("header"), ...page.querySelectorAll("main > *")];

// Whether everything is shown as it is now: what is in use stays as it was.
const replace = (fresh) => {
  const before = blocksOf(document);
  if (before.some((block) => block.id.startsWith("waits") && isInUse(block))) return false;
  const now = blocksOf(fresh);
  const sameOrder = before.length === now.length && before.every((block, i) => block.id === now[i].id);
  if (!sameOrder) {
    if (before.some(isInUse)) return false;
    document.querySelector("main").replaceWith(fresh.querySelector("main"));
    return true;
  }
  const kept = before.filter((block, i) => {
    keepOpen(block, now[i]);
    if (block.isEqualNode(now[i])) return false;
    if (isInUse(block)) return true;
    block.replaceWith(now[i]);
    return false;
  });
  return kept.length === 0;
};

const refresh = async () => {
  try {
    if (!document.hidden) {
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
    }
    document.body.classList.remove("stale");
  } catch {
    document.body.classList.add("stale"); // the server is away: the page says so, and tries again
  }
  setTimeout(refresh, next * 1000);
};

if (location.search.startsWith("?done=")) history.replaceState(null, "", location.pathname); // it is said once
if (seconds) setTimeout(refresh, seconds * 1000);
