"""log_format = json: one object a line, from every process, changed while it runs."""

import json
import os
import signal

from lib.asks import until
from lib.dacd import ABOUT, FIELDS, LOG_LINE, from_json
from lib.provider import say


def lines(dac):
    return dac.log.splitlines()


async def test_changes_in_place_and_back(dac, mock):
    dac.allow_log.append("signal 9")
    dac.sections["server"]["log_format"] = "json"
    dac.reload()
    before = len(lines(dac))
    victims = (dac.workers()[0], dac.recorder())
    await dac.ask_json(await dac.thread(), say(tokens=1))
    for victim in victims:
        os.kill(victim, signal.SIGKILL)

    async def all_said_something():
        return {"master", "worker 0", "recorder"} <= {
            json.loads(line)["process"] for line in lines(dac)[before:] if line.startswith("{")
        } or all(v not in dac.processes() for v in victims)

    await until(all_said_something, "they are started anew")
    dac.wait_ready()
    news = lines(dac)[before:]
    assert news and all(line.startswith("{") for line in news), news
    for line in news:
        o = json.loads(line)
        names = list(o)
        assert names[:5] == ["time", "level", "process", "pid", "message"] and isinstance(o["pid"], int)
        assert set(names[5:]) <= {*ABOUT, *FIELDS} and all(o[name] != "" for name in names)
        assert LOG_LINE.match(from_json(line)), line
    assert any("signal 9" in json.loads(line)["message"] for line in news)
    assert {json.loads(line)["level"] for line in news} <= {"info", "warn", "error"}
    dac.sections["server"]["log_format"] = "human"
    dac.reload()
    dac.process.send_signal(signal.SIGTERM)
    dac.process.wait(20)
    assert LOG_LINE.match(lines(dac)[-1]) and "stopped" in lines(dac)[-1]


async def test_from_the_start(make_dac, mock):
    dac = make_dac({"server": {"log_format": "json"}}, start=False)
    dac.start(wait=False)
    dac.wait_listening()
    await until_ready(dac)
    shown = [json.loads(line) for line in lines(dac)]
    assert any(o["process"] == "master" and o["message"].startswith("ready: ") for o in shown)


async def until_ready(dac):
    async def ready():
        return dac.get_sync("/readyz")[0] == 200 and '"message":"ready: ' in dac.log

    await until(ready, "it is ready")
