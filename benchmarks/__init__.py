"""What aiotimer promises about speed, measured: ``python -m benchmarks`` (``make bench``).

The laws of this package:

* What is compared is measured side by side: rounds of every candidate take turns, and the ratio of the
  medians is what counts. An absolute number says as much about the machine as about us.
* Targets are asserted here and nowhere else; tests assert order, counts and outcomes.
* Servers and workers are real processes. What a module had to leave out, its docstring says.

Each module measures one thing and exports ``measure(quick) -> Iterator[Row]``.
"""
