"""Long checks: what must hold for a week, tried for minutes. The tests run the same checks small.

Start with ``python -m avfast.benches.soak.run --help``; how a check is written is said in `registry`.
"""
