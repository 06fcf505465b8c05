// Sends a chosen file of rows as it is, and says what came of it. The line's page replaces its blocks, so the document
// listens.
"use strict";

const text = (said) =>
  said.already_there
    ? "The same file was there before."
    : `${said.rows} rows were added${said.malformed ? `, ${said.malformed} cannot be read` : ""}. The next run takes what is new.`;

document.addEventListener("submit", async (event) => {
  const form = event.target;
  if (!form.matches("form[data-upload]")) return;
  event.preventDefault();
  const status = form.querySelector("[role=status]");
  const file = form.querySelector("input[type=file]").files[0];
  if (!file) return;
  if (file.size > Number(form.dataset.largest)) {
    status.textContent = "This file is too large for the browser. Use the terminal.";
    return;
  }
  const button = form.querySelector("button");
  button.disabled = true;
  status.textContent = "Sending and checking…";
  try {
    const answer = await fetch(`${form.action}?filename=${encodeURIComponent(file.name)}`, {
      method: "POST",
      headers: { "X-Backprop-Token": form.querySelector("[name=token]").value },
      body: file,
    });
    const said = await answer.json();
    status.textContent = answer.ok ? text(said) : `${said.detail}. ${said.hint ?? ""}`;
    if (answer.ok) form.reset();
  } catch {
    status.textContent = "No answer came. Send the file again: the same file is added once.";
  }
  button.disabled = false;
});
