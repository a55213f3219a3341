import { GONE, byId, reason, request } from "/console/static/common.js";

const form = byId("new-key");
const path = form.dataset.path;
const notice = byId("notice");

async function send(url, method, body) {
  notice.hidden = true;
  try {
    const response = await request(url, { method, ...(body && { body: JSON.stringify(body) }) });
    if (response.ok) return response.status === 204 ? {} : await response.json();
    notice.textContent = await reason(response);
  } catch {
    notice.textContent = GONE;
  }
  notice.hidden = false;
  notice.scrollIntoView({ block: "center" });
  return null;
}

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

const sure = byId("sure");
let act = null;

function ask(title, text, yes, then) {
  byId("sure-title").textContent = title;
  byId("sure-text").textContent = text;
  byId("sure-yes").textContent = yes;
  act = then;
  sure.showModal();
  byId("sure-no").focus();
}

byId("sure-no").addEventListener("click", () => sure.close());
byId("sure-yes").addEventListener("click", () => {
  sure.close();
  act();
});

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
