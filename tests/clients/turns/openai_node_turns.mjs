// Two turns by the openai package for Node; the answer goes back as the object that it came as.
import OpenAI from "openai";

const [url, model, first, second] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "unused", maxRetries: 0 });
const messages = [{ role: "user", content: first }];
const answers = [];
for (const question of [second, null]) {
  const answer = await client.chat.completions.create({ model, messages, temperature: 0, max_tokens: 32 });
  answers.push(answer.choices[0].message.content);
  messages.push(answer.choices[0].message, { role: "user", content: question });
}
console.log(JSON.stringify(answers));
