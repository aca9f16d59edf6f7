"""How an attempt ended, in a few words: the same in `status` and in the report."""

from __future__ import annotations

from trainer.settings import Json

CLOUDS = {"aws": "AWS", "gcp": "Google", "azure": "Azure"}
_SOURCES = {
    "halt": "halted by its operator",
    "preempt": "rehearsed eviction (preempt.txt)",
    "SIGINT": "Ctrl-C",
    "SIGTERM": "told to go (SIGTERM)",
    "SIGHUP": "its terminal was closed",
    "process": "another of its processes was gone",
}
_OUTCOMES = {
    "superseded": "a newer attempt took over",
    "defect": "a defect: see its log",
    "not set up": "settings, machine or job: see its log",
}


def how(outcome: Json, notices: Json, unsaved: int | None) -> str:
    """By the end's record: what others wrote, so anything may be of another type. `unsaved`: steps."""
    if outcome == "not durable" and unsaved is not None:
        return f"the last {unsaved} steps were not saved"
    if outcome != "stopped":
        return _OUTCOMES.get(outcome, outcome) if isinstance(outcome, str) else "?"
    told = (
        [n for n in notices if isinstance(n, dict) and n.get("action") == "stop"] if isinstance(notices, list) else []
    )
    reasons = [(source, str(n.get("detail"))) for n in told if isinstance(source := n.get("source"), str)]
    source, detail = next((r for r in reasons if r[0] == "halt"), reasons[0] if reasons else ("", ""))
    if source in CLOUDS:
        return f"{'a drill, as if ' * detail.startswith('a drill')}evicted by {CLOUDS[source]}"
    return _SOURCES.get(source, source) or "stopped"
