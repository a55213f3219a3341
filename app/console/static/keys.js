import { ask, send } from "/console/static/asking.js";
import { byId } from "/console/static/common.js";

const form = byId("new-key");
const path = form.dataset.path;

function show(made) {
  byId("shown-title").textContent = `The key ${made.name}`;
  byId("shown-key").textContent = made.key;
  byId("shown").hidden = false;
  byId("shown").scrollIntoView({ block: "center" });
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const roles = [...form.querySelectorAll("[name=role]:checked")].map((box) => box.value);
  const days = byId("days").valueAsNumber;
  const body = { name: byId("name").value, roles, ...(days && { expires_in_seconds: Math.round(days * 86400) }) };
  const made = await send(path, "POST", body);
  if (made) {
    form.reset();
    show(made);
  }
});

// ---- rotating and revoking, each after a question ----------------------------------------------------------------------

document.querySelectorAll("[data-rotate]").forEach((button) =>
  button.addEventListener("click", () => {
    const name = button.dataset.rotate;
    ask(`Rotate ${name}?`, "A new key is made under its name; the one before is accepted for an hour more.", "Yes, rotate it", async () => {
      const made = await send(`${path}/${encodeURIComponent(name)}/rotate`, "POST", { overlap_seconds: 3600 });
      if (made) show(made);
    });
  }),
);

document.querySelectorAll("[data-revoke]").forEach((button) =>
  button.addEventListener("click", () => {
    const name = button.dataset.revoke;
    ask(`Revoke ${name}?`, "Every gateway refuses it within a second. Requests that run end as usual.", "Yes, revoke it", async () => {
      if (await send(`${path}/${encodeURIComponent(name)}`, "DELETE")) location.reload();
    });
  }),
);
