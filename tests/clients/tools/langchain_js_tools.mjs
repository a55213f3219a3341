// A form and a tool by LangChain for Node.
import { HumanMessage, ToolMessage } from "@langchain/core/messages";
import { ChatOpenAI } from "@langchain/openai";
import { z } from "zod";

const [url, model, question] = process.argv.slice(2);
const chat = new ChatOpenAI({ configuration: { baseURL: `${url}/v1` }, apiKey: "unused", model, temperature: 0, maxRetries: 0 });
const schema = z.object({ dish: z.enum(["frostbroth", "suncake"]), coins: z.number().int() });
const form = await chat.withStructuredOutput(schema, { name: "price" }).invoke(question);
const tools = [{ name: "price", description: "A price", schema }];
const asked = new HumanMessage(question);
const calling = await chat.bindTools(tools, { tool_choice: "any" }).invoke([asked]);
const [call] = calling.tool_calls;
const result = new ToolMessage({ content: '{"coins": 2}', tool_call_id: call.id });
const after = await chat.bindTools(tools).invoke([asked, calling, result]);
console.log(JSON.stringify({ form, arguments: call.args, after: after.content }));
