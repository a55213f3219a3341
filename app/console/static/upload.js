import { OURS, byId, element, inTenant, request, stages } from "/console/static/common.js";

const form = byId("upload");
const ORDER = ["sending", "received", "validated", "screened", "stored", "ready"];
const NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$/;
const CUT_OFF =
  "The connection closed before an answer came. The gateway closes it when it refuses early: a file over the cap, " +
  "too many uploads at once, no valid key; or it is not running.";

let sending = null; // the XMLHttpRequest under way

const stage = (state) => byId("stages").querySelector(`[data-state="${state}"]`);

function mark(state, how, took = "") {
  const item = stage(state);
  item.className = how;
  if (took) item.querySelector(".took").textContent = took;
}

// All stages before this one are done, the next one is under way.
function reached(state, seconds) {
  const index = ORDER.indexOf(state);
  ORDER.slice(0, index).forEach((earlier) => mark(earlier, "done"));
  mark(state, "done", seconds == null || state === "received" ? "" : `${seconds.toFixed(2)} s`);
  if (index + 1 < ORDER.length) mark(ORDER[index + 1], "now");
  byId("said").textContent = state;
}

function stopped() {
  ORDER.filter((state) => stage(state).className === "now").forEach((state) => mark(state, "broken"));
}

function say(title, lines, kind, links = []) {
  const box = element("div", "", { class: kind });
  box.append(element("p", title, { class: "strong" }));
  lines.filter(Boolean).forEach((line) => box.append(element("p", line)));
  if (links.length) {
    const row = element("p", "", { class: "actions" });
    links.forEach(([text, href], index) => row.append(element("a", text, { href, class: index ? "button secondary" : "button" })));
    box.append(row);
  }
  byId("result").replaceChildren(box);
}

const pageOf = (version) => `/console/adapters/${encodeURIComponent(version.name)}?version=${version.version}`;

function ended(status, body) {
  sending = null;
  busy(false);
  const version = body?.version?.version ? body.version : body?.digest !== undefined ? body : null;
  const links = version ? [[version.report ? "Open its heat map" : "Open its page", pageOf(version)]] : [];
  if (status === 201 || status === 200) {
    const cut = `${body.modules_pruned} of ${body.modules_total} modules were cut out${body.modules_projected ? `, ${body.modules_projected} projected` : ""}.`;
    const known = status === 200 ? "These bytes were here already; nothing was uploaded anew and the name was not moved." : "";
    if (status === 201) reached("ready", null);
    else ORDER.forEach((state) => mark(state, state === "sending" ? "done" : ""));
    const model = encodeURIComponent(`${body.name}@${body.version}`);
    say(`${body.name} v${body.version} is ${body.state}: ${body.outcome}`, [cut, known], "ok", [...links, ["Chat with it", `/console/chat?a=${model}`]]);
  } else if (status === 202) {
    say(`${body.name} v${body.version} is stored`, ["It is served as soon as the engine has loaded it."], "note", links);
  } else {
    stopped();
    const error = body?.error;
    const others = (error?.details ?? []).slice(1).map((fault) => `${fault.message}. ${fault.what_to_do}`);
    say(error ? `Refused: ${error.code}` : "No answer", [error ? error.message : CUT_OFF, ...others], "alert", links);
  }
  byId("result").scrollIntoView({ block: "nearest" });
}

function busy(yes) {
  byId("send").disabled = yes;
  byId("cancel").hidden = !yes;
}

// The highest number that is there before the upload: what comes is above it.
async function before(name) {
  const response = await request(`/adapters/${encodeURIComponent(name)}`);
  if (!response.ok) return 0;
  return (await response.json()).versions[0]?.version ?? 0;
}

async function follow(name, after, stop) {
  try {
    for await (const step of stages(name, `?after=${after}`, stop)) {
      if (ORDER.includes(step.state)) reached(step.state, step.seconds);
    }
  } catch {
    // the answer of the upload itself says how it ended
  }
}

function send(name, config, weights) {
  const data = new FormData(); // name first: it is checked before the weights are read
  data.append("name", name);
  data.append("config", config, "adapter_config.json");
  data.append("weights", weights, "adapter_model.safetensors");
  const xhr = new XMLHttpRequest(); // fetch does not tell how much is sent
  xhr.open("POST", inTenant("/adapters"));
  xhr.responseType = "json";
  Object.entries(OURS).forEach(([key, value]) => xhr.setRequestHeader(key, value));
  xhr.upload.addEventListener("progress", ({ loaded, total }) => {
    byId("sent").value = (100 * loaded) / total;
    byId("sent-text").textContent = `${(loaded / 2 ** 20).toFixed(1)} of ${(total / 2 ** 20).toFixed(1)} MiB`;
  });
  xhr.upload.addEventListener("load", () => {
    if (stage("received").className !== "done") {
      mark("sending", "done");
      mark("received", "now");
    }
  });
  return new Promise((resolve) => {
    xhr.addEventListener("loadend", () => resolve([xhr.status, xhr.response]));
    xhr.send(data);
    sending = xhr;
  });
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const name = byId("name").value.trim();
  const [config] = byId("config").files;
  const [weights] = byId("weights").files;
  byId("progress").hidden = false;
  byId("result").replaceChildren();
  ORDER.forEach((state) => mark(state, ""));
  byId("stages").querySelectorAll(".took").forEach((took) => (took.textContent = ""));
  byId("sent").value = 0;
  if (!NAME.test(name)) return say("Not sent", ["The name needs 1 to 63 of A–Z a–z 0–9 . _ - and begins with a letter or digit."], "alert");
  if (!config || !weights) return say("Not sent", ["Choose both files first."], "alert");
  busy(true);
  mark("sending", "now");
  const watching = new AbortController();
  let after = 0;
  try {
    after = await before(name);
  } catch {
    // then the upload will fail as well, and say why
  }
  const followed = follow(name, after, watching.signal);
  const [status, body] = await send(name, config, weights);
  if (status && status !== 200 && status !== 202) await Promise.race([followed, new Promise((resolve) => setTimeout(resolve, 500))]);
  if (status !== 202) watching.abort();
  ended(status, body);
  if (status === 202) {
    await followed;
    if (stage("ready").className === "done") say(`${body.name} v${body.version} is ready`, [], "ok", [["Open its heat map", pageOf(body)]]);
  }
});

byId("cancel").addEventListener("click", () => sending?.abort());

// Both files at once, by their names.
const drop = byId("drop");
["dragover", "dragleave", "drop"].forEach((kind) =>
  drop.addEventListener(kind, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", kind === "dragover");
  }),
);
drop.addEventListener("drop", (event) => {
  for (const file of event.dataTransfer.files) {
    const kind = file.name.endsWith(".json") ? "config" : file.name.endsWith(".safetensors") ? "weights" : null;
    if (!kind) continue;
    const one = new DataTransfer();
    one.items.add(file);
    byId(kind).files = one.files;
  }
});
