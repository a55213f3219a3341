// Two turns by Vercel's AI SDK; the answer goes back as the messages that it came as. PROVIDER is replaced by a provider.
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText } from "ai";

globalThis.AI_SDK_LOG_WARNINGS = false; // they would stand among the answers
const [url, model, first, second] = process.argv.slice(2);
const at = { baseURL: `${url}/v1`, apiKey: "unused" };
const gateway = { openai: () => createOpenAI(at), compatible: () => createOpenAICompatible({ name: "gateway", ...at }) }["PROVIDER"]();
const messages = [{ role: "user", content: first }];
const answers = [];
for (const question of [second, null]) {
  const providerOptions = { openai: { store: false } }; // else the Responses API would be asked to keep the answer
  const ask = { model: gateway(model), messages, temperature: 0, maxOutputTokens: 32, maxRetries: 0, providerOptions };
  const { text, response } = await generateText(ask);
  answers.push(text);
  messages.push(...response.messages, { role: "user", content: question });
}
console.log(JSON.stringify(answers));
