"""Fixtures of the system tests; README.md says how to run them and how to write one."""

import asyncio
import inspect
import resource

import pytest

from lib.dacd import BUILD, STORED, Dacd
from lib.provider import Provider


def pytest_configure(config):
    config.addinivalue_line("markers", "smoke: also run under sanitizers by make check-asan")
    config.addinivalue_line("markers", "crashpoints: of a build with --enable-crashpoints")
    config.addinivalue_line("markers", "limit(seconds): time limit of an async test, default 60")
    config.addinivalue_line("markers", "store: make check also runs it on PostgreSQL")
    config.addinivalue_line("markers", "sqlite: of the SQLite store alone")
    config.addinivalue_line("markers", "own_store: chooses its store by itself")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def pytest_collection_modifyitems(config, items):
    """On PostgreSQL those that have nothing to say there are left out."""
    if STORED != "postgres":
        return
    out = [i for i in items if any(i.get_closest_marker(m) for m in ("sqlite", "own_store"))]
    config.hook.pytest_deselected(items=out)
    items[:] = [i for i in items if i not in out]


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """Runs `async def` tests in an event loop of their own, with a time limit."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    marker = pyfuncitem.get_closest_marker("limit")
    limit = marker.args[0] if marker else 60
    names = pyfuncitem._fixtureinfo.argnames
    args = {name: pyfuncitem.funcargs[name] for name in names}

    async def bounded():
        async with asyncio.timeout(limit):
            await pyfuncitem.obj(**args)

    asyncio.run(bounded())
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    setattr(item, f"report_{report.when}", report)
    return report


def _failed(request):
    report = getattr(request.node, "report_call", None)
    return report is None or report.failed


@pytest.fixture
def mock(tmp_path):
    """A dac-mock of this test."""
    provider = Provider(tmp_path / "mock").start()
    yield provider
    provider.stop()


@pytest.fixture
def make_dac(request, tmp_path):
    """Factory of dacds: make_dac({section: {key: value}}, env={}, workers=4, provider=mock).
    Each is stopped behind the test, with all of Dacd.stop()'s checks."""
    made = []

    def make(overrides=None, *, env=None, workers=4, provider="mock", start=True):
        if provider == "mock":
            provider = request.getfixturevalue("mock")
        url = provider if provider is None or isinstance(provider, str) else provider.url
        folder = tmp_path / f"dacd{len(made)}"
        dac = Dacd(folder, url, overrides, env, workers)
        made.append(dac)
        if start:
            dac.start()
        return dac

    yield make
    failed = _failed(request)
    problems = []
    for dac in made:
        try:
            dac.stop(check=not failed)
        except AssertionError as e:
            problems.append(str(e))
        if failed or problems:
            tail = "\n".join(dac.log.splitlines()[-60:])
            print(f"--- end of {dac.log_path} ---\n{tail}")
        dac.forget()
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)


@pytest.fixture
def dac(make_dac):
    """A dacd with 4 workers and the mock as provider `perplexity`."""
    return make_dac()


@pytest.fixture
def make_postgres():
    """Factory of servers: make_postgres(settings={...}, disk="160m"), started."""
    from lib.postgres import Postgres

    made = []

    def make(**kw):
        start = kw.pop("start", True)
        server = Postgres(**kw)
        made.append(server)
        return server.start() if start else server

    yield make
    for server in made:
        server.close()


@pytest.fixture
def postgres(make_postgres):
    """A PostgreSQL server of this test, with an empty database `dac`."""
    return make_postgres()


@pytest.fixture
def disk(tmp_path):
    """A file system of 8 MiB."""
    from lib.disk import Disk

    small = Disk(tmp_path / "disk", "8m")
    yield small
    small.close()


@pytest.fixture
def pgbouncer(postgres):
    """pgbouncer in transaction mode in front of `postgres`."""
    from lib.postgres import Pgbouncer

    pooler = Pgbouncer(postgres)
    try:
        yield pooler.start()
    finally:
        pooler.close()


def pytest_sessionfinish():
    import sys

    if "lib.postgres" in sys.modules:
        sys.modules["lib.postgres"].remove_shared()


def pytest_report_header():
    return f"binaries: {BUILD}, store: {STORED}"
