import { GONE, byId, events, reason, request } from "/console/static/common.js";

const SIDES = ["left", "right"];
let stop = null; // ends both answers
const conversations = {}; // side → {model, system, messages}: the turns so far, each side's own answers among them

// The side's conversation: another model or another system prompt begins a new one.
function conversation(id) {
  const [model, system] = [byId(id).value.trim(), byId("system").value.trim()];
  if (conversations[id]?.model !== model || conversations[id].system !== system) {
    conversations[id] = { model, system, messages: system ? [{ role: "system", content: system }] : [] };
  }
  return conversations[id];
}

const turn = ({ messages }) => 1 + messages.filter(({ role }) => role === "assistant").length;

const seconds = (since) => `${((performance.now() - since) / 1000).toFixed(2)} s`;

async function ask(talk, prompt, side, signal) {
  const [title, text, meta] = ["h2", ".text", ".meta"].map((selector) => side.querySelector(selector));
  const asked = { role: "user", content: prompt };
  title.textContent = `${talk.model}${turn(talk) > 1 ? `, turn ${turn(talk)}` : ""}`;
  meta.textContent = "…";
  const start = performance.now();
  const facts = [];
  try {
    const response = await request("/v1/chat/completions", {
      method: "POST",
      signal,
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({
        model: talk.model,
        messages: [...talk.messages, asked],
        temperature: Number(byId("temperature").value),
        max_tokens: Number(byId("tokens").value),
        stream: true,
        stream_options: { include_usage: true },
      }),
    });
    if (!response.ok) throw new Error(await reason(response));
    const version = response.headers.get("x-adapter-version");
    if (version) facts.push(`v${version} ${(response.headers.get("x-adapter-digest") ?? "emptied").slice(0, 12)}`);
    for await (const data of events(response)) {
      if (data === "[DONE]") break;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      const piece = chunk.choices?.[0]?.delta?.content;
      if (piece && !text.textContent) facts.push(`first token ${seconds(start)}`);
      if (piece) text.append(piece);
      if (chunk.usage) facts.push(`${chunk.usage.completion_tokens} tokens`);
    }
    talk.messages.push(asked, { role: "assistant", content: text.textContent }); // a broken answer is not kept
    meta.textContent = [...facts, `all ${seconds(start)}`].join(" · ");
  } catch (error) {
    const stopped = error.name === "AbortError";
    side.classList.toggle("refused", !stopped);
    meta.textContent = stopped ? "stopped" : error instanceof TypeError ? GONE : error.message;
  }
}

byId("chat").addEventListener("submit", async (event) => {
  event.preventDefault();
  stop?.abort();
  const mine = (stop = new AbortController());
  const prompt = byId("prompt").value.trim();
  if (!prompt) return;
  const exchange = byId("exchange").content.cloneNode(true).querySelector("article");
  exchange.querySelector(".asked").textContent = prompt;
  byId("exchanges").prepend(exchange);
  byId("stop").hidden = byId("anew").hidden = false;
  const answers = exchange.querySelectorAll(".answer");
  await Promise.all(SIDES.map((id, index) => ask(conversation(id), prompt, answers[index], mine.signal)));
  if (stop !== mine) return;
  byId("stop").hidden = true;
  if (!mine.signal.aborted && byId("prompt").value.trim() === prompt) byId("prompt").value = "";
});

byId("anew").addEventListener("click", () => {
  stop?.abort();
  SIDES.forEach((id) => delete conversations[id]);
  byId("exchanges").replaceChildren();
  byId("anew").hidden = true;
  byId("prompt").focus();
});

// The list of models filters by what stands in the field: so the first letter typed replaces it.
SIDES.forEach((id) => byId(id).addEventListener("focus", (event) => event.target.select()));

byId("stop").addEventListener("click", () => stop?.abort());
byId("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("chat").requestSubmit();
});
