"""Benchmarks of avfast: interleaved candidates, answers checked first, memory and accuracy beside speed.

Installed as ``avfast.benches``. Start with ``python -m avfast.benches.run --help``;
the protocol is in `harness`.
"""
