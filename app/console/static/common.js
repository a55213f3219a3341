// What every page's script shares: requests to the API under the visitor's cookie, server-sent events, signing out.

export const byId = (id) => document.getElementById(id);

// No other site can send this header; without it the cookie counts for nothing (app/console/cookie_auth.py).
export const OURS = { "X-Console": "1" };

// An operator's page acts in the tenant that it shows, whichever another tab has chosen meanwhile.
export function inTenant(path) {
  const tenant = document.body.dataset.actsIn;
  return tenant ? `${path}${path.includes("?") ? "&" : "?"}tenant=${tenant}` : path;
}

export function request(path, options = {}) {
  return fetch(inTenant(path), { ...options, headers: { ...OURS, ...options.headers }, credentials: "same-origin" });
}

// What went wrong, in words: the gateway's own where it gave any.
export async function reason(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `The gateway answered ${response.status} without a reason.`;
  }
}

export const GONE = "The connection to the gateway broke. Try again; GET /ready says how it is.";

// The `data:` of each server-sent event, as text.
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const blocks = (rest + value).split(/\r?\n\r?\n/);
      rest = blocks.pop();
      for (const block of blocks) {
        const lines = block.split(/\r?\n/).filter((line) => line.startsWith("data:"));
        if (lines.length) yield lines.map((line) => line.slice(5).trimStart()).join("\n");
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

// The stages of an upload, until its end: {state, version, seconds, outcome, error, …}.
export async function* stages(name, query, signal) {
  const response = await request(`/adapters/${encodeURIComponent(name)}/events${query}`, { signal });
  if (!response.ok) return;
  for await (const data of events(response)) yield JSON.parse(data);
}

export function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

document.querySelector("[data-sign-out]")?.addEventListener("click", async () => {
  await request("/console/session", { method: "DELETE" });
  location.assign("/console/sign-in");
});

// ---- the tenant in which an operator's pages act ---------------------------------------------------------------------

function actIn(tenant) {
  const ends = tenant ? "" : "; max-age=0";
  document.cookie = `gateway_tenant=${tenant}; path=/; samesite=strict${ends}`;
  location.assign("/");
}

document.querySelectorAll("[data-tenant]").forEach((button) => button.addEventListener("click", () => actIn(button.dataset.tenant)));
byId("new-tenant")?.addEventListener("submit", (event) => {
  event.preventDefault();
  actIn(byId("tenant").value);
});
