// Two turns by Vercel's AI SDK; the answer goes back as the messages that it came as.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText } from "ai";

const [url, model, first, second] = process.argv.slice(2);
const gateway = createOpenAICompatible({ name: "gateway", baseURL: `${url}/v1`, apiKey: "unused" });
const messages = [{ role: "user", content: first }];
const answers = [];
for (const question of [second, null]) {
  const ask = { model: gateway(model), messages, temperature: 0, maxOutputTokens: 32, maxRetries: 0 };
  const { text, response } = await generateText(ask);
  answers.push(text);
  messages.push(...response.messages, { role: "user", content: question });
}
console.log(JSON.stringify(answers));
