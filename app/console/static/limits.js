import { GONE, byId, reason, request } from "/console/static/common.js";

const form = byId("limits");
const notice = byId("notice");

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const fields = [...form.querySelectorAll("input")].map((field) => [field.name, field.value === "" ? null : Number(field.value)]);
  try {
    const response = await request(form.dataset.path, { method: "PUT", body: JSON.stringify(Object.fromEntries(fields)) });
    notice.textContent = response.ok ? "The limits are set." : await reason(response);
  } catch {
    notice.textContent = GONE;
  }
  notice.hidden = false;
  notice.scrollIntoView({ block: "center" });
});
