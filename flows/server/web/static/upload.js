// Sends a chosen file of rows as it is, and says what came of it. The line's page replaces its blocks, so the document
// listens. The form of a new line sends its file first, then itself.
"use strict";

const text = (said) =>
  said.already_there
    ? "The same file was there before."
    : `${said.rows} rows were added${said.malformed ? `, ${said.malformed} cannot be read` : ""}. The next run takes what is new.`;

const send = async (form, action, status) => {
  const file = form.querySelector("input[type=file]").files[0];
  if (!file) return false;
  if (file.size > Number(form.dataset.largest)) {
    status.textContent = "This file is too large for the browser. Use the terminal.";
    return false;
  }
  status.textContent = "Sending and checking…";
  try {
    const answer = await fetch(`${action}?filename=${encodeURIComponent(file.name)}`, {
      method: "POST",
      headers: { "X-Backprop-Token": form.querySelector("[name=token]").value },
      body: file,
    });
    const said = await answer.json();
    status.textContent = answer.ok ? text(said) : `${said.detail}.${said.hint ? ` What to do: ${said.hint}.` : ""}`;
    status.classList.toggle("refused", !answer.ok);
    return answer.ok;
  } catch {
    status.textContent = "No answer came. Send the file again: the same file is added once.";
    return false;
  }
};

const add = async (form) => {
  const button = form.querySelector("button");
  button.disabled = true;
  if (await send(form, form.action, form.querySelector("[role=status]"))) form.reset();
  button.disabled = false;
};

const begin = async (form, button) => {
  const buttons = [...form.querySelectorAll("button")];
  const status = form.querySelector("[role=status]");
  buttons.forEach((each) => (each.disabled = true));
  const name = encodeURIComponent(form.querySelector("[name=name]").value);
  if (await send(form, `/api/v1/new/${name}/rows`, status)) {
    status.textContent += " Making the line…";
    form.querySelector("input[type=file]").value = "";
    buttons.forEach((each) => (each.disabled = false));
    form.requestSubmit(button);
  }
  buttons.forEach((each) => (each.disabled = false));
};

document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.matches("form[data-upload]")) {
    event.preventDefault();
    add(form);
  } else if (form.matches("form[data-new]") && form.querySelector("[name=source]:checked").value === "file") {
    if (!form.querySelector("input[type=file]").files.length) return; // sent before, or the server says that it is missing
    event.preventDefault();
    begin(form, event.submitter);
  }
});
