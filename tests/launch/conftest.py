"""What all tests of the launch files share."""

from __future__ import annotations

import sys

# What jsonschema would hold addresses to, before it is imported: its grammar takes each process five seconds to load.
sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]
