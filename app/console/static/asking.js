// Changes on a page: a request whose refusal is shown on it, and a question before what cannot be undone.

import { GONE, byId, reason, request } from "/console/static/common.js";

// The answer's JSON, {} if it has none; null if it was refused.
export async function send(url, method, body) {
  const notice = byId("notice");
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

const sure = byId("sure");
let act = null;

export function ask(title, text, yes, then) {
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
