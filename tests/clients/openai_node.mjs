// The openai package for Node as anyone uses it: prints what it saw as one JSON object.
import { pathToFileURL } from "node:url";

const [folder, url, model, question] = process.argv.slice(2);
const { default: OpenAI } = await import(pathToFileURL(`${folder}/node_modules/openai/index.mjs`).href);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "unused", maxRetries: 0 });
const ask = { model, messages: [{ role: "user", content: question }], temperature: 0, max_tokens: 32 };

const names = [];
for await (const found of client.models.list()) names.push(found.id);

const { data: whole, response } = await client.chat.completions.create(ask).withResponse();

const chunks = [];
const options = { ...ask, stream: true, stream_options: { include_usage: true } };
for await (const chunk of await client.chat.completions.create(options)) chunks.push(chunk);

const broken = await client.chat.completions
  .create({ ...ask, model: "nobody" })
  .then(() => null, (error) => ({ kind: error.constructor.name, status: error.status, code: error.code }));

// leaving in the middle of an answer
const leaving = await client.chat.completions.create({ ...ask, max_tokens: 400, ignore_eos: true, stream: true });
let read = 0;
for await (const _ of leaving) if (++read === 2) break;

const rich = await client.chat.completions.create({ ...ask, temperature: 1, n: 2, logprobs: true, top_logprobs: 3, stop: ["."] });

console.log(
  JSON.stringify({
    names,
    model: whole.model,
    text: whole.choices[0].message.content,
    usage: whole.usage,
    version: response.headers.get("x-adapter-version"),
    streamed: chunks.map((chunk) => chunk.choices[0]?.delta?.content ?? "").join(""),
    streamedModels: [...new Set(chunks.map((chunk) => chunk.model))],
    streamedUsage: chunks.at(-1).usage,
    broken,
    read,
    rich: rich.choices,
  }),
);
