"""Whatever a connection string of libpq says holds for the recorder and the workers: TLS,
certificates, every way to a password, peer, several hosts, services, options."""

import asyncio
import contextlib
import os
import re
import socket
import time
from urllib.parse import quote as percent

import pytest

from lib import asks
from lib.disk import needs_mount
from lib.names import NameServer
from lib.postgres import PASSWORD, Pgbouncer, conninfo
from lib.provider import say
from lib.service import as_nobody, run_dacd
from lib.tls import Authority

pytestmark = [pytest.mark.own_store, pytest.mark.limit(90)]

WORKERS = 2
TRUSTED = "local all postgres trust\n"  # for the tests themselves
SCRAM = TRUSTED + "host all all 127.0.0.1/32 scram-sha-256\n"
TLS_ONLY = TRUSTED + "hostssl all all 127.0.0.1/32 scram-sha-256\n"


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("tls") / "ca")


@pytest.fixture
def make_tls(make_postgres, authority):
    """A server with a certificate for `names`."""

    def make(*names, hba=TLS_ONLY, **settings):
        cert, key = authority.issue("server", *(names or ["localhost"]))
        return make_postgres(
            settings={"ssl": "on", "ssl_cert_file": "'server.crt'", "ssl_key_file": "'server.key'",
                      "ssl_ca_file": "'ca.crt'", **settings},
            hba=hba,
            files={"server.crt": cert, "server.key": key, "ca.crt": authority.path},
        )  # fmt: skip

    return make


@pytest.fixture
def start(make_dac):
    """A dacd with that connection string, ready, whether the string is of use or not."""

    def start(text, env=None, user=None, **store):
        dac = make_dac(
            {"server": {"log_level": "debug", "user": user}, "store": {"postgres": text, **store}},
            env=env,
            workers=WORKERS,
            start=False,
        )
        if user:
            as_nobody(dac.folder)
        return dac.start()

    return start


def tcp(server, password=PASSWORD, host="localhost", **more):
    return conninfo(host=host, port=server.port, user="dac", dbname="dac", password=password, **more)


def users(server):
    """Which processes of dacd are connected, as they call themselves."""
    return {r["application_name"] for r in server.sessions()}


async def are_connected(server, after=(), timeout=20):
    """Until the recorder and every worker are, and no session is one of those before."""
    expected = {"dac: recorder", *(f"dac: worker {i}" for i in range(WORKERS))}

    async def all_there():
        now = await asyncio.to_thread(server.sessions)
        return expected <= {s["application_name"] for s in now} and not {s["pid"] for s in now} & set(after)

    await asks.until(all_there, f"sessions of {expected}: {users(server)}", timeout)
    return {s["pid"] for s in server.sessions()}


async def stores_and_reads(dac, thread, turns):
    """One more turn, which every worker then knows."""
    r = await dac.ask_json(thread, say(f"Kumquat {turns}?"))
    assert r.status == 200 and r.json()["stored"] == "postgres", r.text
    for _ in range(2 * WORKERS):  # each a new connection, to any worker
        listed = (await dac.get(f"/api/threads/{thread}/messages")).json()["messages"]
        assert len(listed) == 2 * turns


async def is_used(dac, server):
    """The recorder and every worker write and read by that server, also when they had to connect
    again, and no log tells a password."""
    before = await are_connected(server)
    thread = await dac.thread()
    await stores_and_reads(dac, thread, 1)
    dac.allow_log += ["PostgreSQL"]
    server.terminate()
    await are_connected(server, before)

    async def is_up():
        return "PostgreSQL is there" in dac.log

    await asks.until(is_up, "the recorder is back")
    await stores_and_reads(dac, thread, 2)
    assert "canary" not in dac.log


def checked(dac):
    """What `dacd -t` prints; also all it knows, and no password."""
    code, out, err = run_dacd("-t", "-c", dac.conf)
    assert "canary" not in out + err
    code_all, out_all, err_all = run_dacd("-T", "-c", dac.conf)
    assert "canary" not in out_all + err_all
    return code, out + err


async def is_told(dac, *words):
    """The store is down and says why; questions are answered all the same."""
    dac.allow_log += ["PostgreSQL"]
    assert await dac.counter("dac_store_up") == 0
    r = await dac.chat(say("Kumquat?"))
    assert r.status == 200, r.text
    lines = [line for line in dac.log.splitlines() if "PostgreSQL cannot be used" in line]
    assert lines and all(re.search(w, lines[0]) for w in words), lines
    assert len(lines) == 1, lines
    assert "canary" not in dac.log


# --- TLS ---


async def test_the_name_in_the_certificate_is_checked(make_tls, start, authority):
    server = make_tls("localhost")
    dac = start(tcp(server, sslmode="verify-full", sslrootcert=authority.path))
    await is_used(dac, server)
    rows = server.sql("SELECT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)"
                      " WHERE application_name LIKE 'dac:%'")  # fmt: skip
    assert len(rows) > WORKERS and all(r["ssl"] for r in rows)
    assert checked(dac)[0] == 0


async def test_a_certificate_for_another_name_is_refused(make_tls, start, authority):
    server = make_tls("db.example.net")
    dac = start(tcp(server, sslmode="verify-full", sslrootcert=authority.path))
    await is_told(dac, "does not match host name", "verify-ca")
    assert not server.sessions()


async def test_a_certificate_of_another_authority_is_refused(make_tls, start, tmp_path):
    server = make_tls()
    stranger = Authority(tmp_path / "stranger", "Somebody Else")
    dac = start(tcp(server, sslmode="verify-full", sslrootcert=stranger.path))
    await is_told(dac, "certificate verify failed", "sslrootcert")


async def test_a_missing_file_of_the_authority_is_named(make_tls, start, tmp_path):
    server = make_tls()
    missing = tmp_path / "missing.crt"
    dac = start(tcp(server, sslmode="verify-full", sslrootcert=missing))
    await is_told(dac, f'root certificate file "{missing}" does not exist')


async def test_a_server_without_tls_is_told_from_one_with(make_postgres, start):
    server = make_postgres(hba=SCRAM)
    dac = start(tcp(server, sslmode="require"))
    await is_told(dac, "does not support SSL", "ssl = on")


async def test_a_server_that_wants_tls_says_so(make_tls, start):
    server = make_tls()
    dac = start(tcp(server, sslmode="disable"))
    await is_told(dac, "no encryption", "pg_hba.conf")


async def test_a_client_certificate_is_all_that_is_needed(make_tls, start, authority):
    server = make_tls(hba=TRUSTED + "hostssl all all 127.0.0.1/32 cert\n")
    cert, key = authority.issue("dac")
    text = dict(password=None, sslmode="verify-full", sslrootcert=authority.path)
    dac = start(tcp(server, sslcert=cert, sslkey=key, **text))
    await is_used(dac, server)
    names = server.sql("SELECT client_dn FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)"
                       " WHERE application_name LIKE 'dac:%'")  # fmt: skip
    assert names and all(r["client_dn"] == "/CN=dac" for r in names)


async def test_a_missing_client_certificate_is_told(make_tls, start, authority):
    server = make_tls(hba=TRUSTED + "hostssl all all 127.0.0.1/32 cert\n")
    dac = start(tcp(server, password=None, sslmode="require"))
    await is_told(dac, "valid client certificate", "sslcert")


async def test_a_key_that_others_may_read_is_told(make_tls, start, authority):
    server = make_tls(hba=TRUSTED + "hostssl all all 127.0.0.1/32 cert\n")
    cert, key = authority.issue("dac")
    key.chmod(0o644)
    dac = start(tcp(server, password=None, sslmode="require", sslcert=cert, sslkey=key))
    await is_told(dac, "private key file", "0600")


async def test_channel_binding_is_had_where_it_is_required(make_tls, start, authority):
    server = make_tls()
    dac = start(tcp(server, sslmode="require", channel_binding="require"))
    await is_used(dac, server)


async def test_channel_binding_is_missed_without_tls(make_postgres, start):
    server = make_postgres(hba=SCRAM)
    dac = start(tcp(server, channel_binding="require"))
    await is_told(dac, "channel binding", "sslmode")


async def test_a_user_of_its_own_does_not_look_into_roots_home(make_tls, start, authority, tmp_path):
    """Root's HOME is none of the user's that the children become."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    server = make_tls()
    dac = start(tcp(server, sslmode="require"), env={"HOME": str(home)}, user="nobody")
    await is_used(dac, server)


# --- passwords ---


def pgpass(path, server, password=PASSWORD, mode=0o600):
    escaped = password.replace("\\", "\\\\").replace(":", "\\:")
    path.write_text(f"localhost:{server.port}:dac:dac:{escaped}\n")
    path.chmod(mode)
    return path


@pytest.mark.parametrize("where", ["string", "uri", "passfile", "credential", "PGPASSFILE", "home", "PGPASSWORD"])
async def test_a_password_comes_from_everywhere(make_postgres, start, tmp_path, where):
    server = make_postgres(hba=SCRAM)
    env, text = {}, tcp(server, password=None)
    if where == "string":
        text = tcp(server)
    elif where == "uri":
        text = f"postgresql://dac:{percent(PASSWORD, safe='')}@localhost:{server.port}/dac?connect_timeout=3"
    elif where == "passfile":
        text = tcp(server, password=None, passfile=pgpass(tmp_path / "it's a file", server))
    elif where == "credential":  # as systemd makes them
        (tmp_path / "credentials").mkdir(mode=0o700)
        path = pgpass(tmp_path / "credentials/dac-postgres", server, mode=0o400)
        text = tcp(server, password=None, passfile=path)
    elif where == "PGPASSFILE":
        env = {"PGPASSFILE": str(pgpass(tmp_path / "pgpass", server))}
    elif where == "home":
        env = {"HOME": str(pgpass(tmp_path / ".pgpass", server).parent)}
    else:
        env = {"PGPASSWORD": PASSWORD}
    dac = start(text, env)
    await is_used(dac, server)
    code, said = checked(dac)
    assert code == 0, said


async def test_a_wrong_password_is_told_without_it(make_postgres, start):
    server = make_postgres(hba=SCRAM)
    dac = start(tcp(server, password="sk-canary-wrong"))
    await is_told(dac, "password authentication failed", "passfile")
    checked(dac)


async def test_a_missing_password_is_told(make_postgres, start):
    server = make_postgres(hba=SCRAM)
    dac = start(tcp(server, password=None))
    await is_told(dac, "no password supplied", "passfile")


async def test_a_password_file_that_others_may_read_is_told(make_postgres, start, tmp_path):
    server = make_postgres(hba=SCRAM)
    path = pgpass(tmp_path / "pgpass", server, mode=0o644)
    dac = start(tcp(server, password=None, passfile=path))
    await is_told(dac, "no password supplied", f'"{path}" .*others', "0600")
    path.chmod(0o600)
    await is_used(dac, server)


# --- peer ---


@pytest.mark.parametrize("user", [None, "nobody"])
async def test_the_user_of_a_process_is_enough_on_a_socket(make_postgres, start, user):
    if user and os.geteuid() != 0:
        pytest.skip("needs root")
    name = user or os.popen("id -un").read().strip()
    server = make_postgres(
        hba="local all postgres trust\nlocal all all peer map=house\n",
        files={"pg_ident.conf": f"house {name} dac\n"},
    )
    dac = start(server.conninfo(), user=user)
    await is_used(dac, server)


async def test_another_user_is_told_what_to_map(make_postgres, start):
    server = make_postgres(hba="local all postgres trust\nlocal all all peer\n")
    dac = start(server.conninfo())
    await is_told(dac, "Peer authentication failed", "pg_ident.conf")


# --- services, options, keepalives ---


async def test_a_service_file_says_it_all(make_postgres, start, tmp_path):
    server = make_postgres(hba=SCRAM)
    path = tmp_path / "services"
    path.write_text(
        f"[house]\nhost=localhost\nport={server.port}\nuser=dac\ndbname=dac\npassword={PASSWORD}\n"
    )
    dac = start("service=house", {"PGSERVICEFILE": str(path)})
    await is_used(dac, server)
    assert checked(dac)[0] == 0


async def test_a_service_that_is_missing_is_named(start, tmp_path):
    dac = start("service=house", {"PGSERVICEFILE": str(tmp_path / "missing")})
    await is_told(dac, "service")


async def test_a_schema_of_its_own(make_postgres, start):
    server = make_postgres(hba=SCRAM)
    server.sql("CREATE SCHEMA house AUTHORIZATION dac")
    dac = start(tcp(server, options="-csearch_path=house -clock_timeout=3s"))
    await is_used(dac, server)
    schemas = server.sql("SELECT DISTINCT schemaname AS s FROM pg_tables WHERE tableowner = 'dac'")
    assert schemas == [{"s": "house"}]
    assert server.value("SELECT count(*) FROM house.messages") == 4


async def test_options_are_refused_by_a_pooler(postgres, start):
    pooler = Pgbouncer(postgres)
    try:
        pooler.start()
        dac = start(pooler.conninfo(options="-csearch_path=house"))
        await is_told(dac, "unsupported startup parameter", "ignore_startup_parameters")
    finally:
        pooler.close()


def keepalive_timers(port):
    """Seconds until the kernel probes each connection to a port of this machine; None: never."""
    found = []
    with open("/proc/net/tcp") as f:
        for line in list(f)[1:]:
            fields = line.split()
            if int(fields[2].split(":")[1], 16) == port and fields[3] == "01":
                kind, when = fields[5].split(":")
                found.append(int(when, 16) / os.sysconf("SC_CLK_TCK") if kind == "02" else None)
    return found


@pytest.mark.parametrize("keep", [True, False])
async def test_keepalives(make_postgres, start, keep):
    server = make_postgres(hba=SCRAM)
    more = dict(keepalives_idle=9, keepalives_interval=3, tcp_user_timeout=7000) if keep else dict(keepalives=0)
    start(tcp(server, **more))
    await are_connected(server)
    timers = keepalive_timers(server.port)
    assert len(timers) > WORKERS
    assert all(0 <= t <= 9 if keep else t is None for t in timers), timers


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("sslmode=bogus", "invalid sslmode value"),
        ("target_session_attrs=bogus", "invalid target_session_attrs value"),
        ("host=a,b port=1,2,3", "could not match 3 port numbers to 2 hosts"),
        ("port=bogus", "invalid integer value"),
        ("connect_timeuot=3", "invalid connection option"),
    ],
)
def test_a_value_that_libpq_refuses_is_found_by_the_check(make_dac, wrong, said):
    dac = make_dac({"store": {"postgres": f"password={PASSWORD.split()[0]} {wrong}"}}, start=False)
    dac.start(wait=False)
    assert dac.process.wait(10) == 1
    assert said in dac.log
    dac.process = None
    code, out = checked(dac)
    assert code != 0 and said in out


# --- several hosts ---


def two(first, second, **more):
    ports = f"{first.port},{second.port}"
    return conninfo(host="localhost,localhost", port=ports, user="dac", dbname="dac", password=PASSWORD, **more)


async def test_the_server_that_writes_is_taken(make_postgres, start):
    reads, writes = make_postgres(hba=SCRAM), make_postgres(hba=SCRAM)
    reads.read_only()
    dac = start(two(reads, writes, target_session_attrs="read-write"))
    await is_used(dac, writes)
    assert not reads.sessions()
    # The other way round: what only reads from now on is left.
    reads.read_only(False)
    writes.read_only()
    writes.terminate()
    await are_connected(reads)
    assert not writes.sessions()


async def test_what_each_server_says_is_told(make_postgres, start):
    """A name may have several addresses, too: the reason is often not the first one's."""
    server = make_postgres(hba=SCRAM)
    ports = f"1,{server.port}"
    dac = start(conninfo(host="127.0.0.1,localhost", port=ports, user="dac", dbname="dac", sslmode="require"))
    await is_told(dac, "port 1 failed: Connection refused; .* does not support SSL.*: set ssl = on")


async def test_no_server_writes(make_postgres, start):
    servers = make_postgres(hba=SCRAM), make_postgres(hba=SCRAM)
    for s in servers:
        s.read_only()
    dac = start(two(*servers, target_session_attrs="read-write"))
    await is_told(dac, "read-only", "primary")


@pytest.fixture
def pair(make_postgres):
    """A primary, which commits only what its standby has, too, and that."""
    primary = make_postgres(
        settings={"wal_level": "replica", "max_wal_senders": "4"}, hba=SCRAM + "local replication postgres trust\n"
    )
    standby = primary.standby()
    try:
        standby.start()
        primary.set(synchronous_standby_names="standby")
        yield primary, standby
    finally:
        standby.close()


async def test_a_standby_takes_over_when_the_primary_dies(pair, start):
    primary, standby = pair
    dac = start(two(standby, primary, target_session_attrs="read-write"), commit_timeout="500ms")
    dac.allow_log += ["PostgreSQL"]
    await are_connected(primary)
    threads = [await dac.thread() for _ in range(4)]
    told, stop = {t: [] for t in threads}, asyncio.Event()

    async def client(thread):
        n = 0
        while not stop.is_set():
            r = await dac.ask_json(thread, say(f"Kumquat {thread} {n}?", tokens=2))
            assert r.status == 200, r.text
            told[thread].append((r.json()["turn_id"], r.json()["stored"]))
            n += 1

    work = asyncio.gather(*[client(t) for t in threads])

    async def each_has(n):
        await asks.until(lambda: _true(all(len(v) >= n for v in told.values())), f"{n} turns in each", 30)

    await each_has(5)
    await asyncio.to_thread(primary.stop, "kill")
    await each_has(10)
    await asyncio.to_thread(standby.promote)
    await are_connected(standby)

    async def directly():
        return all(v[-1][1] == "postgres" for v in told.values())

    await asks.until(directly, "turns go to the new primary", 30)
    stop.set()
    await work
    assert any(place == "spool" for v in told.values() for _, place in v)
    rows = standby.sql("SELECT id, thread_id FROM turns ORDER BY created_at, id")
    for thread, turns in told.items():
        assert [str(r["id"]) for r in rows if str(r["thread_id"]) == thread] == [t for t, _ in turns]


async def _true(value):
    return value


# --- nobody waits for a connection ---


async def lives_on(dac, seconds):
    """Every process beats and requests are answered quickly for so long. Who connects for the first
    time at the start: the recorder has done so for 5 s when the workers begin."""
    until = time.monotonic() + seconds
    worst = 0
    while time.monotonic() < until:
        began = time.monotonic()
        r = await dac.chat(say("Kumquat?", tokens=2))
        assert r.status == 200, r.text
        worst = max(worst, time.monotonic() - began)
        await asyncio.sleep(0.05)
    assert await dac.counter("dac_restarts_total") == 0
    assert worst < 2, worst


WATCHED = {"server": {"watchdog_timeout": "1s"}}


@pytest.fixture
def name_server(tmp_path):
    server = NameServer(tmp_path / "names", {"db.test": "127.0.0.1"})
    yield server
    server.close()


@needs_mount
async def test_a_name_server_that_is_silent_holds_up_nobody(make_postgres, make_dac, name_server):
    server = make_postgres(hba=SCRAM)
    name_server.silent = True
    dac = make_dac({**WATCHED, "store": {"postgres": tcp(server, host="db.test")}}, workers=WORKERS, start=False)
    dac.wrapper = name_server.wrapper()
    dac.allow_log += ["PostgreSQL"]
    dac.start()
    await lives_on(dac, 3)
    assert name_server.asked >= WORKERS + 1
    assert re.search("cannot be used: the name server did not answer for PostgreSQL's host", dac.log)
    name_server.silent = False
    await are_connected(server)
    # Known once, an address serves while the name server is away: the resolver takes 10 s.
    name_server.silent = True
    server.terminate()
    await lives_on(dac, 3)
    await are_connected(server, timeout=6)
    assert (await dac.chat(say("Kumquat again?"))).status == 200


@contextlib.contextmanager
def black_hole():
    """A port of an address that answers nothing: its queue is full, so packets are dropped."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            s = stack.enter_context(socket.socket())
            s.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                s.connect(listener.getsockname())
        yield listener.getsockname()[1]


async def test_an_address_that_drops_packets_holds_up_nobody(make_postgres, make_dac):
    server = make_postgres(hba=SCRAM)
    with black_hole() as port:
        text = conninfo(host="127.0.0.1", port=port, user="dac", dbname="dac", password=PASSWORD)
        dac = make_dac({**WATCHED, "store": {"postgres": text}}, workers=WORKERS)
        dac.allow_log += ["PostgreSQL"]
        await lives_on(dac, 3)
        assert f'PostgreSQL at "127.0.0.1" port {port} did not answer in time' in dac.log
        text = conninfo(
            host="127.0.0.1,localhost", port=f"{port},{server.port}", user="dac", dbname="dac", password=PASSWORD
        )
        other = make_dac({**WATCHED, "store": {"postgres": text}}, workers=WORKERS)
        other.allow_log += ["PostgreSQL"]
        # Half of 5 s for each of two, then the other one first.
        await are_connected(server, timeout=4.5)
        await lives_on(other, 1)


async def test_a_server_that_says_nothing_holds_up_nobody(postgres, make_dac):
    with postgres.frozen():
        dac = make_dac({**WATCHED, "store": {"postgres": postgres.conninfo_tcp()}}, workers=WORKERS)
        dac.allow_log += ["PostgreSQL"]
        await lives_on(dac, 3)
        assert "did not answer in time" in dac.log
    await are_connected(postgres)
