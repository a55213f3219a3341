// A form and a tool by Vercel's AI SDK, which calls the tool and goes on by itself. PROVIDER is replaced by a provider.
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, jsonSchema, Output, stepCountIs, tool } from "ai";

const [url, model, question] = process.argv.slice(2);
const at = { baseURL: `${url}/v1`, apiKey: "unused" };
const gateway = { openai: () => createOpenAI(at), compatible: () => createOpenAICompatible({ name: "gateway", supportsStructuredOutputs: true, ...at }) }["PROVIDER"]();
const schema = jsonSchema({
  type: "object",
  properties: { dish: { type: "string", enum: ["frostbroth", "suncake"] }, coins: { type: "integer" } },
  required: ["dish", "coins"],
  additionalProperties: false,
});
const ask = { model: gateway(model), prompt: question, temperature: 0, maxRetries: 0, providerOptions: { openai: { store: false } } };
const { output } = await generateText({ ...ask, output: Output.object({ schema, name: "price" }) });
let given = null;
const price = tool({
  description: "A price",
  inputSchema: schema,
  execute: async (input) => {
    given = input;
    return { coins: 2 };
  },
});
const prepareStep = ({ stepNumber }) => ({ toolChoice: stepNumber ? "auto" : "required" });
const { text } = await generateText({ ...ask, tools: { price }, prepareStep, stopWhen: stepCountIs(2) });
console.log(JSON.stringify({ form: output, arguments: given, after: text }));
