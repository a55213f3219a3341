import { GONE, byId, reason, request } from "/console/static/common.js";

const form = byId("sign-in");

form?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const why = byId("why");
  why.hidden = true;
  try {
    const body = new URLSearchParams({ key: byId("key").value });
    const response = await request("/console/session", { method: "POST", body });
    if (response.ok) {
      const there = new URL(form.dataset.next, location.origin);
      location.replace(there.origin === location.origin ? there : "/");
      return;
    }
    why.textContent = response.status === 401 ? "This gateway does not know that key." : await reason(response);
  } catch {
    why.textContent = GONE;
  }
  why.hidden = false;
  byId("key").select();
});
