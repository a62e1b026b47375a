"""Command lines of the verbs that are not Lightning's."""

import argparse
import re
from typing import Any

NEGATIVE = re.compile(r"-\.?\d|-(?:inf|nan)$")
"""A value and not an option. Python's own pattern leaves out -1e-3."""


class Arguments(argparse.ArgumentParser):
    """Parser without abbreviations: an option added later would change what they mean."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})
        self._negative_number_matcher = NEGATIVE
