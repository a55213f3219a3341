// Two turns by LangChain for Node; the answer goes back as the message that it came as.
import { HumanMessage } from "@langchain/core/messages";
import { ChatOpenAI } from "@langchain/openai";

const [url, model, first, second] = process.argv.slice(2);
const chat = new ChatOpenAI({ configuration: { baseURL: `${url}/v1` }, apiKey: "unused", model, temperature: 0, maxTokens: 32, maxRetries: 0 });
const one = await chat.invoke([new HumanMessage(first)]);
const two = await chat.invoke([new HumanMessage(first), one, new HumanMessage(second)]);
console.log(JSON.stringify([one.content, two.content]));
