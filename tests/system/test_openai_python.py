"""The stock OpenAI client for Python, streaming and not."""

import asyncio

import openai
import pytest

from lib.provider import say


def client(dac):
    return openai.OpenAI(
        base_url=f"http://127.0.0.1:{dac.port}/v1", api_key="unused", max_retries=0, timeout=20
    )


def message(question):
    return [{"role": "system", "content": "Be brief."}, {"role": "user", "content": question}]


def in_thread(f):
    """The blocking client runs beside the event loop."""
    return asyncio.to_thread(f)


@pytest.mark.smoke
async def test_a_whole_answer(dac, mock):
    question = say(tokens=5, utf8=True)

    def ask():
        with client(dac) as c:
            return c.chat.completions.create(model="m-1", messages=message(question))

    r = await in_thread(ask)
    assert r.object == "chat.completion" and r.id and r.created > 0
    assert r.model == "m-1"
    assert r.choices[0].message.role == "assistant"
    assert r.choices[0].message.content == await mock.text(question)
    assert r.choices[0].finish_reason == "stop"
    assert r.usage.completion_tokens == 5
    assert r.usage.total_tokens == r.usage.prompt_tokens + 5


@pytest.mark.smoke
@pytest.mark.parametrize("include_usage", [False, True])
async def test_a_stream(dac, mock, include_usage):
    question = say(tokens=8, utf8=True, gap="2ms")

    def ask():
        options = {"stream_options": {"include_usage": True}} if include_usage else {}
        with client(dac) as c:
            return list(
                c.chat.completions.create(
                    model="m-1", messages=message(question), stream=True, **options
                )
            )

    chunks = await in_thread(ask)
    assert {c.object for c in chunks} == {"chat.completion.chunk"}
    assert len({c.id for c in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    deltas = [c.choices[0] for c in chunks if c.choices]
    assert "".join(d.delta.content or "" for d in deltas) == await mock.text(question)
    assert [d.finish_reason for d in deltas if d.finish_reason] == ["stop"]
    assert deltas[-1].finish_reason == "stop"
    usages = [c.usage for c in chunks if c.usage]
    if include_usage:
        assert len(usages) == 1 and chunks[-1].choices == []
        assert usages[0].completion_tokens == 8
    else:
        assert not usages


@pytest.mark.smoke
async def test_models(make_dac, mock):
    dac = make_dac({"provider perplexity": {"models": "sonar-pro, *"}})
    def ask():
        with client(dac) as c:
            return c.models.list().data

    models = await in_thread(ask)
    assert [(m.id, m.object, m.owned_by) for m in models] == [("sonar-pro", "model", "perplexity")]


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, openai.BadRequestError),
        (401, openai.AuthenticationError),
        (403, openai.PermissionDeniedError),
        (404, openai.NotFoundError),
        (422, openai.UnprocessableEntityError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
        (503, openai.InternalServerError),
    ],
)
async def test_errors_are_the_clients_own(make_dac, mock, status, error):
    dac = make_dac({"provider perplexity": {"retry_deadline": "0s"}})
    for stream in (False, True):

        def ask(stream=stream):
            with client(dac) as c, pytest.raises(error) as caught:
                question = message(say(f"kumquat {stream}", status=status))
                c.chat.completions.create(model="m-1", messages=question, stream=stream)
            return caught.value

        e = await in_thread(ask)
        assert e.status_code == (502 if status == 500 else status)
        assert isinstance(e.body, dict) and e.body["message"] and e.body["type"]


async def test_a_break_raises_in_the_stream(dac, mock):
    question = say(tokens=10, cut=3)

    def ask():
        got = []
        with client(dac) as c, pytest.raises(openai.APIError):
            stream = c.chat.completions.create(
                model="m-1", messages=message(question), stream=True
            )
            for chunk in stream:
                got.append(chunk)
        return got

    got = await in_thread(ask)
    assert "".join(c.choices[0].delta.content or "" for c in got)
    assert not any(c.choices[0].finish_reason for c in got)


async def test_bad_requests(dac, mock):
    def ask():
        with client(dac) as c:
            with pytest.raises(openai.BadRequestError) as caught:
                c.chat.completions.create(model="m-1", messages=[])
            assert "messages" in str(caught.value)
            with pytest.raises(openai.BadRequestError) as caught:
                c.chat.completions.create(
                    model="m-1", messages=message("kumquat"), extra_body={"stream": "yes"}
                )
            assert "stream" in str(caught.value)

    await in_thread(ask)
    assert await mock.calls() == 0


@pytest.mark.smoke
async def test_tool_calls_come_through(dac, mock):
    tools = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}]
    question = say(tool_calls=True)

    def ask():
        with client(dac) as c:
            whole = c.chat.completions.create(model="m-1", messages=message(question), tools=tools)
            chunks = list(
                c.chat.completions.create(
                    model="m-1", messages=message(question), tools=tools, stream=True
                )
            )
        return whole, chunks

    whole, chunks = await in_thread(ask)
    (call,) = whole.choices[0].message.tool_calls
    assert call.function.name == "look_up" and call.function.arguments == '{"place":"Bern"}'
    assert whole.choices[0].finish_reason == "tool_calls"
    pieces = [t for c in chunks if c.choices for t in c.choices[0].delta.tool_calls or []]
    assert pieces[0].function.name == "look_up"
    assert "".join(p.function.arguments or "" for p in pieces) == '{"place":"Bern"}'


async def test_fifty_clients_at_once_are_one_call(dac, mock):
    question = say(tokens=20, ttft="500ms", gap="5ms")
    url = f"http://127.0.0.1:{dac.port}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="unused", max_retries=0) as c:

        async def ask(i):
            if i % 2:
                r = await c.chat.completions.create(model="m-1", messages=message(question))
                return r.choices[0].message.content
            stream = await c.chat.completions.create(
                model="m-1", messages=message(question), stream=True
            )
            return "".join([k.choices[0].delta.content or "" async for k in stream])

        answers = await asyncio.gather(*[ask(i) for i in range(50)])
    assert set(answers) == {await mock.text(question)}
    assert await mock.calls() == 1


@pytest.mark.smoke
@pytest.mark.parametrize("stream", [False, True])
async def test_an_idempotency_key_in_extra_headers(dac, mock, stream):
    """As one would send it with this client, whose own retries repeat it."""
    question = say(tokens=5)

    def ask(words=question):
        with client(dac) as c:
            r = c.chat.completions.create(
                model="m-1",
                messages=message(words),
                temperature=1,
                stream=stream,
                extra_headers={"Idempotency-Key": "kumquat-7f3a"},
            )
            if not stream:
                return r.id, r.choices[0].message.content
            chunks = list(r)
            deltas = [c.choices[0].delta.content or "" for c in chunks if c.choices]
            return chunks[0].id, "".join(deltas)

    first = await in_thread(ask)
    assert first[1] == await mock.text(question)
    assert await in_thread(ask) == first
    with pytest.raises(openai.UnprocessableEntityError) as e:
        await in_thread(lambda: ask("Another kumquat?"))
    assert e.value.code == "idempotency_key_reused" and e.value.param == "Idempotency-Key"
    dac.stop()
    dac.start()
    assert await in_thread(ask) == first
    assert await mock.calls() == 1
