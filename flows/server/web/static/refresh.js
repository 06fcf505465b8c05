// Fetches the page again and replaces the blocks that have changed. A block that has the focus, or whose form was
// filled in, stays as it is; what a person has opened stays open.
"use strict";

const seconds = Number(document.body.dataset.refresh);

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

const replace = (fresh) => {
  const before = blocksOf(document);
  if (before.some((block) => block.id.startsWith("waits") && isInUse(block))) return;
  const now = blocksOf(fresh);
  const sameOrder = before.length === now.length && before.every((block, i) => block.id === now[i].id);
  if (!sameOrder) {
    if (before.some(isInUse)) return;
    document.querySelector("main").replaceWith(fresh.querySelector("main"));
    return;
  }
  before.forEach((block, i) => {
    keepOpen(block, now[i]);
    if (!block.isEqualNode(now[i]) && !isInUse(block)) block.replaceWith(now[i]);
  });
};

const refresh = async () => {
  let next = seconds;
  try {
    if (!document.hidden) {
      const answer = await fetch(location.pathname, { headers: { Accept: "text/html" } });
      if (answer.ok) {
        const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
        next = Number(fresh.body.dataset.refresh) || seconds;
        document.getElementById("notice")?.remove();
        replace(fresh);
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
