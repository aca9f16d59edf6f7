"""Reasons to stop or to save now, from every source, in one mailbox."""

from watchers.halt import HaltWatcher
from watchers.mailbox import Mailbox, Stopped
from watchers.protocol import Notice, Watcher
from watchers.runner import Watch

__all__ = ["HaltWatcher", "Mailbox", "Notice", "Stopped", "Watch", "Watcher"]
