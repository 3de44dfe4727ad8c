"""Answers that tell which upstream call they are of: each call of a question is made of one letter."""

LETTERS = "ABCDEFGH"


async def script(mock, match, tokens, size, **how):
    """Calls of questions that hold `match` answer AAA..., then BBB..., and so on."""
    specs = [{"match": match, "text": c * (tokens * size), "token_size": size, **how} for c in LETTERS]
    await mock.script(*specs)


def judge(events):
    """Of all that a native client got, over all its connections: no event is of a generation before
    one that it had begun, and no generation holds bytes of two calls. Returns the last one's text."""
    newest, text = 0, ""
    for e in events:
        if e.name == "reset":
            assert e.data["generation"] >= newest, e
            newest, text = e.data["generation"], ""
        elif e.name in ("delta", "done"):
            generation = int(e.id.split("-")[0])
            assert generation >= newest, f"{e} behind generation {newest}"
            newest = generation
        if e.name == "delta":
            text += e.data["text"]
            assert len(set(text)) == 1, f"two calls in one answer: {text!r}"
    return text
