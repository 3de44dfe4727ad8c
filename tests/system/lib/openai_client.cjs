// The stock OpenAI client for Node; prints what it got as one line of JSON.
const OpenAI = require("openai");

async function main() {
    const [baseURL, question] = process.argv.slice(2);
    const client = new OpenAI({ baseURL, apiKey: "unused", maxRetries: 0, timeout: 20000 });
    const messages = [{ role: "user", content: question }];
    const out = {};

    const whole = await client.chat.completions.create({ model: "m-1", messages });
    out.whole = whole.choices[0].message.content;
    out.wholeFinish = whole.choices[0].finish_reason;
    out.wholeUsage = whole.usage;

    const stream = await client.chat.completions.create({
        model: "m-1", messages, stream: true, stream_options: { include_usage: true },
    });
    out.chunks = [];
    for await (const chunk of stream) out.chunks.push(chunk);

    out.models = [];
    for await (const model of client.models.list()) out.models.push(model.id);

    try {
        await client.chat.completions.create({ model: "m-1", messages: [] });
    } catch (e) {
        out.error = { name: e.constructor.name, status: e.status, message: e.message };
    }
    try {
        const broken = await client.chat.completions.create({
            model: "m-1", messages: [{ role: "user", content: "a kumquat [mock tokens=9 cut=3]" }],
            stream: true,
        });
        out.brokenText = "";
        for await (const chunk of broken) out.brokenText += chunk.choices[0].delta.content || "";
        out.brokenEnded = true;
    } catch (e) {
        out.broken = e.constructor.name;
    }
    console.log(JSON.stringify(out));
}

main().catch((e) => {
    console.error(e);
    process.exit(1);
});
