"""The evidence of what a worker was doing when its timer expired.

:func:`~aiotimer.evidence.gather.gather` asks every probe there is, within a budget; :mod:`.verdict` puts
what they found in words.
"""

from .findings import NO_FINDINGS, Answers, Findings, Subject

__all__ = ["NO_FINDINGS", "Answers", "Findings", "Subject"]
