// Asks the models of a line, shows their answers while they are written, and takes votes and corrections. The line's
// page replaces its blocks, so the document listens. Everything that models write is set as text.
"use strict";

const made = (tag, className, text) => {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
};

const say = (form, text) => (form.querySelector("[role=status]").textContent = text);

const reason = (problem) => `${problem.detail ?? problem.message}. ${problem.hint ?? ""}`;

const post = async (form, path, body) => {
  const answer = await fetch(`${form.dataset.try}${path}`, {
    method: "POST",
    headers: { "X-Backprop-Token": form.querySelector("[name=token]").value },
    body: body instanceof File ? body : JSON.stringify(body ?? {}),
  });
  const said = await answer.json();
  if (!answer.ok) throw new Error(reason(said));
  return said;
};

// What is to be asked: a file of questions, or the prompt after the conversation so far.
const conversations = async (form, past) => {
  const fields = form.elements;
  const file = fields.file?.files[0];
  const system = fields.system?.value.trim();
  const first = system ? [{ role: "system", content: system }] : [];
  if (file) {
    const found = await post(form, `/questions?filename=${encodeURIComponent(file.name)}`, file);
    return found.map((turns) => (turns[0].role === "system" ? turns : [...first, ...turns]));
  }
  const prompt = fields.prompt.value.trim();
  if (!prompt) throw new Error("Write a question first.");
  return [[...(past.length ? past : first), { role: "user", content: prompt }]];
};

const trials = new WeakMap(); // form -> what is shown below it

class Shown {
  constructor(form, place, asked, state) {
    Object.assign(this, { form, place, asked, state });
    this.columns = asked.map((turns, question) => this.question(turns, question));
    this.left = asked.map(() => state.answers[0].length);
  }

  question(turns, question) {
    const block = made("div");
    if (this.asked.length > 1 || turns.length > 1) block.append(made("div", "question", turns.at(-1).content));
    const beside = made("div", "beside");
    const columns = this.state.answers[question].map((answer, column) => {
      const cell = made("div");
      const name = made("div", "soft small", answer.name ?? "AB"[column]);
      const said = made("div", "said");
      const note = made("div", "soft small");
      cell.append(name, said, note);
      beside.append(cell);
      return { cell, name, said, note };
    });
    block.append(beside);
    this.place.append(block);
    this.blocks = [...(this.blocks ?? []), block];
    return columns;
  }

  listen() {
    const source = new EventSource(`${this.form.dataset.try}/${this.state.id}/events`);
    this.source = source;
    source.onmessage = (message) => this.hear(JSON.parse(message.data));
    source.onerror = () => {
      if (source.readyState === EventSource.CLOSED) this.end("The connection was lost. Ask again.");
      else say(this.form, "The server does not answer. Trying again…");
    };
  }

  hear(event) {
    const at = event.question === undefined ? null : this.columns[event.question][event.column];
    if (event.kind === "begins") say(this.form, event.before ? `Waiting for ${event.before} who asked before…` : "Loading the model…");
    if (event.kind === "text") {
      at.said.textContent += event.text;
      at.cell.classList.add("writing");
      say(this.form, "Writing…");
    }
    if (event.kind === "done") {
      at.said.textContent = event.text;
      at.cell.classList.remove("writing");
      const took = event.seconds < 0.1 ? "" : ` in ${event.seconds.toFixed(1)} s`;
      at.note.textContent = `${event.tokens} tokens${took}${event.stopped ? "" : ", cut at the limit"}`;
      this.left[event.question] -= 1;
      if (!this.left[event.question]) this.complete(event.question);
    }
    if (event.kind === "error") this.problem = reason(event);
    if (event.kind === "end") this.end(this.problem ?? "");
  }

  end(text) {
    this.source.close();
    for (const cell of this.place.querySelectorAll(".writing")) cell.classList.remove("writing");
    this.form.querySelector("[data-stop]").hidden = true;
    this.form.querySelector("button.first").disabled = false;
    say(this.form, text || "Done.");
  }

  complete(question) {
    const { compared, blind } = this.state;
    const row = made("div", "row verdicts");
    if (compared && blind) {
      this.vote(row, question, "A is better", 0);
      this.vote(row, question, "Same", null);
      this.vote(row, question, "B is better", 1);
    } else if (compared) {
      const place = (name) => this.state.answers[question].findIndex((answer) => answer.name === name);
      row.append(made("span", "soft small", `${compared[0]} beside ${compared[1]}:`));
      this.vote(row, question, "Better", place(compared[0]));
      this.vote(row, question, "Same", null);
      this.vote(row, question, "Worse", place(compared[1]));
    }
    if (compared) {
      const note = made("input");
      note.maxLength = 1000;
      note.placeholder = "Note";
      note.setAttribute("aria-label", "Note beside the vote");
      row.append(note);
      this.blocks[question].append(row);
    }
    if (this.asked.length === 1) this.columns[question].forEach((column) => this.goOn(question, column));
    if (this.place.dataset.rows === "true") this.correct(question);
  }

  vote(row, question, text, better) {
    const button = made("button", "small", text);
    button.type = "button";
    button.addEventListener("click", async () => {
      const note = row.querySelector("input").value;
      try {
        this.voted(row, question, await post(this.form, `/${this.state.id}/votes`, { question, better, note }));
        await countVotes();
      } catch (error) {
        say(this.form, error.message);
      }
    });
    row.append(button);
  }

  voted(row, question, state) {
    const [own, other] = state.compared;
    const said = { better: "better than", same: "the same as", worse: "worse than" }[state.votes[question]];
    row.replaceChildren(made("span", "small", `Kept: ${own} is ${said} ${other}.${state.blind ? ` The order was drawn with seed ${state.seed}.` : ""}`));
    state.answers[question].forEach((answer, column) => (this.columns[question][column].name.textContent = answer.name));
  }

  goOn(question, { cell, said }) {
    const button = made("button", "small", "Continue from this answer");
    button.type = "button";
    button.addEventListener("click", () => {
      this.past = [...this.asked[question], { role: "assistant", content: said.textContent }];
      showPast(this.form, this.past);
    });
    if (said.textContent) cell.append(button);
  }

  correct(question) {
    const details = made("details");
    details.append(made("summary", "small", "Correct the answer"));
    const text = made("textarea");
    text.rows = 2;
    text.setAttribute("aria-label", "The right answer");
    text.value = text.defaultValue = this.columns[question][0].said.textContent;
    const button = made("button", "small", "Add as row");
    const status = made("span", "small");
    status.setAttribute("role", "status");
    button.type = "button";
    button.addEventListener("click", async () => {
      button.disabled = true;
      try {
        const added = await post(this.form, `/${this.state.id}/rows`, { question, answer: text.value });
        status.textContent = added.already_there ? "The same row was there before." : "Added. The next run takes it.";
      } catch (error) {
        status.textContent = error.message;
        button.disabled = false;
      }
    });
    const row = made("div", "row");
    row.append(button, status);
    details.append(text, row);
    this.blocks[question].append(details);
  }
}

// The table of votes on the page, if it has one, as it is now.
const countVotes = async () => {
  const old = document.getElementById("votes");
  const answer = old && (await fetch(location.pathname));
  if (!answer?.ok) return;
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById("votes");
  if (fresh) old.replaceWith(fresh);
};

const showPast = (form, past) => {
  const line = form.querySelector(".past");
  line.hidden = !past.length;
  const turns = past.filter((turn) => turn.role !== "system");
  line.querySelector("span").textContent = turns.map((turn) => `${turn.role === "user" ? "You" : "Model"}: ${turn.content}`).join(" · ");
  form.elements.prompt.value = "";
  form.elements.prompt.focus();
};

const ask = async (form) => {
  const place = form.parentElement.querySelector(".trial");
  const fields = form.elements;
  const past = trials.get(form)?.past ?? [];
  form.querySelector("button.first").disabled = true;
  say(form, "Asking…");
  try {
    const asked = await conversations(form, past);
    const state = await post(form, "", {
      conversations: asked,
      models: fields.models?.value ? fields.models.value.split(",") : [],
      blind: fields.blind?.checked ?? false,
      max_new_tokens: Number(fields.max_new_tokens?.value || 256),
      temperature: Number(fields.temperature?.value || 0),
    });
    if (fields.file) fields.file.value = ""; // the next question is the prompt again
    place.replaceChildren();
    const shown = new Shown(form, place, asked, state);
    shown.past = past.length ? asked[0].slice(0, -1) : [];
    trials.set(form, shown);
    form.querySelector("[data-stop]").hidden = false;
    shown.listen();
  } catch (error) {
    say(form, error.message);
    form.querySelector("button.first").disabled = false;
  }
};

document.addEventListener("submit", (event) => {
  if (!event.target.matches("form[data-try]")) return;
  event.preventDefault();
  ask(event.target);
});

document.addEventListener("click", (event) => {
  const form = event.target.closest("form[data-try]");
  if (!form) return;
  const shown = trials.get(form);
  if (event.target.matches("[data-stop]") && shown) post(form, `/${shown.state.id}/stop`).catch((error) => say(form, error.message));
  if (event.target.matches("[data-anew]")) {
    if (shown) shown.past = [];
    showPast(form, []);
  }
});

document.addEventListener("keydown", (event) => {
  const form = event.target.closest?.("form[data-try]");
  if (!form || event.target.name !== "prompt" || event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault(); // Enter asks, Shift+Enter breaks the line
  if (!form.querySelector("button.first").disabled) form.requestSubmit();
});
