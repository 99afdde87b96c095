"""The specification: every op in plain PyTorch, one file per family, readable in one sitting.

These functions are the oracle of the tests (in float64), the fallback where no kernel runs, and the place to read
what an op computes. They have the signature of the registered op, not of the public function.
"""
