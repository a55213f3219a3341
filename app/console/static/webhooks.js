import { ask, send } from "/console/static/asking.js";
import { byId } from "/console/static/common.js";

const form = byId("new-webhook"); // only if the operator allows targets
const path = byId("webhooks")?.dataset.path;

form?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const topics = [...form.querySelectorAll("[name=topic]:checked")].map((box) => box.value);
  const made = await send(form.dataset.path, "POST", { url: byId("url").value, topics });
  if (!made) return;
  form.reset();
  byId("shown-title").textContent = `The secret of ${made.id}`;
  byId("shown-secret").textContent = made.secret;
  byId("shown").hidden = false;
  byId("shown").scrollIntoView({ block: "center" });
});

// The same page, of the same tenant, with the messages of a webhook or without any.
function show(webhook) {
  const there = new URL(location);
  if (webhook) there.searchParams.set("webhook", webhook);
  else there.searchParams.delete("webhook");
  location.assign(there);
}

document.querySelectorAll("[data-ping]").forEach((button) =>
  button.addEventListener("click", async () => {
    if (await send(`${path}/${button.dataset.ping}/ping`, "POST")) show(button.dataset.ping);
  }),
);

document.querySelectorAll("[data-delete]").forEach((button) =>
  button.addEventListener("click", () => {
    const webhook = button.dataset.delete;
    ask(`Delete ${webhook}?`, "It is told nothing more. Messages that wait for it are not sent.", "Yes, delete it", async () => {
      if (await send(`${path}/${webhook}`, "DELETE")) show(null);
    });
  }),
);
