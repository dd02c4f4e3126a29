"""Serves a GGUF by llama.cpp's own server, which the package xllamacpp holds: FILE PORT SLOTS TOKENS-PER-SLOT THREADS."""

import signal
import sys

import xllamacpp

path, port, slots, tokens, threads = sys.argv[1], *map(int, sys.argv[2:6])

params = xllamacpp.CommonParams()
params.model.path = path
params.hostnames = ["127.0.0.1"]
params.port = port
params.n_parallel = slots
params.n_ctx = slots * tokens
params.n_batch = 2048
params.n_ubatch = 512
params.cpuparams.n_threads = threads
params.cpuparams_batch.n_threads = threads

server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
signal.pause()
