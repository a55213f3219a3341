import { GONE, byId, element, reason, request, stages } from "/console/static/common.js";

// ---- the heat map: one cell's numbers at a time, by pointer or by arrow keys ----------------------------------------

const heat = byId("heat");

function show(cell) {
  const { module, fate, detail } = cell.dataset;
  byId("readout").replaceChildren(element("strong", module), element("span", ` ${fate}`, { class: "fate" }), element("span", detail, { class: "numbers" }));
}

if (heat) {
  const rows = [...heat.tBodies[0].rows].map((row) => [...row.cells].slice(1, -1));
  const cells = rows.flat().filter((cell) => cell.dataset.module);
  const move = (row, column, down, right) => {
    for (let r = row + down, c = column + right; rows[r]?.[c]; r += down, c += right) {
      if (rows[r][c].dataset.module) return rows[r][c];
    }
    return null;
  };
  heat.setAttribute("role", "grid");
  cells.forEach((cell, index) => {
    cell.tabIndex = index ? -1 : 0;
    cell.setAttribute("aria-describedby", "readout");
    cell.removeAttribute("title"); // the readout says it, also to those without a pointer
    cell.addEventListener("pointerenter", () => show(cell));
    cell.addEventListener("focus", () => {
      cells.forEach((other) => (other.tabIndex = other === cell ? 0 : -1));
      show(cell);
    });
  });
  const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  heat.addEventListener("keydown", (event) => {
    const step = steps[event.key];
    const row = rows.findIndex((line) => line.includes(event.target));
    if (!step || row < 0) return;
    event.preventDefault();
    move(row, rows[row].indexOf(event.target), ...step)?.focus();
  });
}

// ---- promoting, rolling back and deleting, each after a question ----------------------------------------------------------------

const sure = byId("sure"); // only on the page of who may do either
const name = sure?.dataset.name;
const path = `/adapters/${encodeURIComponent(name)}`;
let act = null;

const ASKS = {
  "roll-back": (version) => [
    `Roll ${name} back to version ${version}?`,
    `Yes, roll back to version ${version}`,
    () => request(`${path}/rollback?to=${version}`, { method: "POST" }),
    `/console${path}?version=${version}`,
  ],
  abort: (version) => [
    `Abort the roll-out of ${name}?`,
    `Yes, version ${version} gets every request`,
    () => request(`${path}/traffic/abort`, { method: "POST" }),
    `/console${path}`,
  ],
  promote: (version) => [
    `Give version ${version} every request for ${name}?`,
    `Yes, promote version ${version}`,
    () => request(`${path}/traffic/promote?version=${version}`, { method: "POST" }),
    `/console${path}`,
  ],
  delete: () => [`Delete ${name}?`, `Yes, delete ${name}`, () => request(path, { method: "DELETE" }), "/"],
};

document.querySelectorAll("[data-ask]").forEach((button) =>
  button.addEventListener("click", () => {
    const [title, yes, send, next] = ASKS[button.dataset.ask](button.dataset.version);
    byId("sure-title").textContent = title;
    byId("sure-yes").textContent = yes;
    byId("sure-text").replaceChildren(...button.dataset.effects.trim().split("\n").map((line) => element("li", line)));
    act = async () => {
      const response = await send();
      if (response.ok) return location.assign(next);
      complain(await reason(response));
    };
    sure.showModal();
    byId("sure-no").focus();
  }),
);

function complain(text) {
  const notice = byId("notice");
  notice.textContent = text;
  notice.hidden = false;
  notice.scrollIntoView({ block: "center" });
}

byId("sure-no")?.addEventListener("click", () => sure.close());
byId("sure-yes")?.addEventListener("click", async () => {
  sure.close();
  try {
    await act();
  } catch {
    complain(GONE);
  }
});

// ---- a version on its way: follow it, then show what became of it ---------------------------------------------------

const watched = document.querySelector("[data-watch]");

if (watched) {
  const words = { validated: "Validated; being screened.", screened: "Screened; being stored.", stored: "Stored: the engine loads it, and is asked canaries if there are any." };
  try {
    let final = false;
    for await (const step of stages(watched.dataset.watch, "")) {
      if (words[step.state]) byId("stage").textContent = words[step.state];
      final = !["received", ...Object.keys(words)].includes(step.state);
    }
    if (final) location.reload();
  } catch {
    byId("stage").textContent = GONE;
  }
}
