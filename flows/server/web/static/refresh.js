// Fetches the page again and replaces the blocks that have changed. A block that has the focus, or whose form was
// filled in, stays as it is, and others come and go around it; what a person has opened stays open.
"use strict";

const seconds = Number(document.body.dataset.refresh);
let has = '"nothing yet"'; // the tag of the page as it is shown
let next = seconds;

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

// Whether everything is shown as it is now. While a person decides, nothing moves.
const replace = (fresh) => {
  const before = blocksOf(document);
  if (before.some((block) => block.id.startsWith("waits") && isInUse(block))) return false;
  const now = blocksOf(fresh);
  const gone = before.filter((block) => !now.some((each) => each.id === block.id));
  gone.filter((block) => !isInUse(block)).forEach((block) => block.remove());
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
