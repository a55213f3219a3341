// A form and a tool by the openai package for Node, whose runner calls the tool and goes on by itself.
import OpenAI from "openai";

const [url, model, question] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "unused", maxRetries: 0 });
const schema = {
  type: "object",
  properties: { dish: { type: "string", enum: ["frostbroth", "suncake"] }, coins: { type: "integer" } },
  required: ["dish", "coins"],
  additionalProperties: false,
};
const ask = { model, messages: [{ role: "user", content: question }], temperature: 0 };
const formed = await client.chat.completions.parse({ ...ask, response_format: { type: "json_schema", json_schema: { name: "price", strict: true, schema } } });
let given = null;
const price = (text) => {
  given = JSON.parse(text);
  return '{"coins": 2}';
};
const tools = [{ type: "function", function: { name: "price", description: "A price", parameters: schema, function: price } }];
const calling = client.chat.completions.runTools({ ...ask, tools, tool_choice: { type: "function", function: { name: "price" } } });
await calling.done(); // a tool that was named is called once
const after = await client.chat.completions.create({ ...ask, messages: calling.messages, tools: tools.map(({ type, function: { function: _, ...rest } }) => ({ type, function: rest })) });
console.log(JSON.stringify({ form: JSON.parse(formed.choices[0].message.content), arguments: given, after: after.choices[0].message.content }));
