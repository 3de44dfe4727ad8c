"""The fixtures of the system tests, and `faults`; README.md says how to run them."""

import importlib.util
import sys
from pathlib import Path

import pytest

SYSTEM = Path(__file__).resolve().parents[1] / "system"
sys.path.insert(0, str(SYSTEM))

_spec = importlib.util.spec_from_file_location("system_conftest", SYSTEM / "conftest.py")
_module = importlib.util.module_from_spec(_spec)
sys.modules["system_conftest"] = _module
_spec.loader.exec_module(_module)
pytest_plugins = ["system_conftest"]


@pytest.fixture
def faults(tmp_path):
    """A control page; give its `env` to a dacd."""
    from shim import Faults

    return Faults(tmp_path / "faults")
