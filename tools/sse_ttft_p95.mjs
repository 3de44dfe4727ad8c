#!/usr/bin/env node
// Asks DAC many different questions as streams and prints one line on standard output:
//
//   TTFT (streaming) p95: 12.3 ms (target ≤ 1,500 ms) — PASS
//
// TTFT is from the request to the first `delta` event; a ping does not count. p95 is
// nearest-rank. Node 18 or newer, nothing else. `--help` says the options; exit status: 0 PASS,
// 1 FAIL (the target was missed, or a question got no whole answer), 2 not measured.
import http from "node:http";
import https from "node:https";
import { parseArgs } from "node:util";

const HELP = `usage: sse_ttft_p95.mjs [options]
  --url URL          of DAC (DAC_URL, http://127.0.0.1:8000)
  --n N              questions (DAC_TTFT_N, 40)
  --concurrency N    at the same time (1)
  --model NAME       (DAC_MODEL, else the first of /v1/models)
  --provider NAME    (DAC_PROVIDER, else the first that takes the model)
  --org NAME         (DAC_ORG, ttft-test)
  --limit MS         target of the p95 (1500)
  --timeout MS       for one answer (120000)
The line goes to standard output, all else to standard error.
`;

function fail(text, hint) {
  process.stderr.write(`ttft: ${text}\n${hint ? `ttft: -> ${hint}\n` : ""}`);
  process.exit(2);
}

function readOptions() {
  const env = process.env;
  const text = (value) => ({ type: "string", default: value });
  let values;
  try {
    ({ values } = parseArgs({
      options: {
        url: text(env.DAC_URL || "http://127.0.0.1:8000"),
        n: text(env.DAC_TTFT_N || "40"),
        concurrency: text("1"),
        model: text(env.DAC_MODEL || ""),
        provider: text(env.DAC_PROVIDER || ""),
        org: text(env.DAC_ORG || "ttft-test"),
        limit: text("1500"),
        timeout: text("120000"),
        help: { type: "boolean", short: "h" },
      },
    }));
  } catch (e) {
    fail(e.message, "--help says the options");
  }
  if (values.help) {
    process.stdout.write(HELP);
    process.exit(0);
  }
  for (const name of ["n", "concurrency", "limit", "timeout"]) {
    const number = Number(values[name]);
    if (!Number.isInteger(number) || number < 1 || number > 1e9)
      fail(`--${name} ${values[name]} is no whole number from 1`);
    values[name] = number;
  }
  try {
    values.url = new URL(values.url);
  } catch {
    fail(`--url ${values.url} is no URL`, "such as http://127.0.0.1:8000");
  }
  return values;
}

const options = readOptions();
const client = options.url.protocol === "https:" ? https : http;
const agent = new client.Agent({ keepAlive: true, maxSockets: options.concurrency });

// A request; resolves with the response once its head is there.
function send(method, path, body) {
  return new Promise((resolve, reject) => {
    const headers = { "x-org-id": options.org };
    if (process.env.DAC_API_KEY) headers.authorization = `Bearer ${process.env.DAC_API_KEY}`;
    if (body !== undefined) headers["content-type"] = "application/json";
    const url = new URL(path, options.url);
    const request = client.request(url, { method, headers, agent, timeout: options.timeout });
    request.on("response", resolve);
    request.on("error", reject);
    request.on("timeout", () => request.destroy(new Error(`silent for ${options.timeout} ms`)));
    request.end(body === undefined ? undefined : JSON.stringify(body));
  });
}

async function textOf(response) {
  response.setEncoding("utf8");
  let text = "";
  for await (const piece of response) text += piece;
  return text;
}

async function json(method, path, body) {
  const response = await send(method, path, body);
  const text = await textOf(response);
  if (response.statusCode >= 300) throw new Error(`HTTP ${response.statusCode}: ${text.slice(0, 200)}`);
  return text ? JSON.parse(text) : null;
}

// One question in a thread of its own; resolves with its TTFT in ms, of a whole answer only.
async function ask(number) {
  const { thread_id: thread } = await json("POST", "/api/threads/", { title: "TTFT test" });
  const question = {
    role: "user",
    content: `Answer in one short sentence: what is the number ${number} good for? (request ${nonce}-${number})`,
    model: options.model,
  };
  if (options.provider) question.provider = options.provider;
  try {
    const began = performance.now();
    const response = await send("POST", `/api/threads/${thread}/messages/stream`, question);
    if (response.statusCode !== 200)
      throw new Error(`HTTP ${response.statusCode}: ${(await textOf(response)).slice(0, 200)}`);
    let ttft, done, error;
    let rest = "";
    response.setEncoding("utf8");
    for await (const piece of response) {
      const now = performance.now();
      const lines = (rest + piece).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (line === "event: delta") ttft ??= now - began;
        else if (line === "event: done") done = true;
        else if (line === "event: error") error = "an error event";
        else if (error === "an error event" && line.startsWith("data: ")) error = line.slice(6);
      }
    }
    if (error) throw new Error(error);
    if (!done) throw new Error("the stream broke off");
    if (ttft === undefined) throw new Error("an answer without text");
    return ttft;
  } finally {
    await json("DELETE", `/api/threads/${thread}`).catch(() => {});
  }
}

const nonce = `${Date.now()}-${process.pid}`;

try {
  const response = await send("GET", "/readyz");
  const text = await textOf(response);
  if (response.statusCode !== 200) throw new Error(`/readyz answers ${response.statusCode}: ${text.slice(0, 200)}`);
  if (!options.model) options.model = (await json("GET", "/v1/models")).data[0]?.id;
} catch (e) {
  fail(`no answer at ${options.url}: ${e.message || e.code}`, "is dacd up? --url names another address");
}
if (!options.model) fail("no model to ask: the provider takes any", "--model NAME");

const times = [];
const failures = [];
let next = 0;
await Promise.all(
  Array.from({ length: Math.min(options.concurrency, options.n) }, async () => {
    while (next < options.n) {
      const number = ++next;
      try {
        times.push(await ask(number));
      } catch (e) {
        failures.push(`question ${number}: ${e.message || e.code}`);
      }
    }
  }),
);
agent.destroy();

times.sort((a, b) => a - b);
const p95 = times[Math.max(0, Math.ceil(times.length * 0.95) - 1)];
for (const failure of failures.slice(0, 3)) process.stderr.write(`ttft: ${failure}\n`);
if (failures.length)
  process.stderr.write(`ttft: ${failures.length} of ${options.n} questions got no whole answer\n`);
// Rounded up, so that what is shown as kept is kept.
const shown = p95 === undefined ? "n/a" : (Math.ceil(p95 * 10 - 1e-6) / 10).toFixed(1);
const passed = failures.length === 0 && p95 <= options.limit;
const limit = String(options.limit).replace(/\B(?=(\d{3})+$)/g, ",");
process.stdout.write(`TTFT (streaming) p95: ${shown} ms (target ≤ ${limit} ms) — ${passed ? "PASS" : "FAIL"}\n`);
process.exitCode = passed ? 0 : 1;
