"""TensorBoard event files that fail loudly on a full disk, where the usual writer hangs.

The usual writer hands events to a thread. A full disk ends that thread, and training then waits forever for it to take
more events. This one writes in the thread of the training, so a full disk raises ``OSError``.
"""

import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path


class EventFile:
    """A TensorBoard event file, with the part of the interface of a Lightning logger that the log uses.

    Events that an earlier process wrote of steps after ``step``, the last of the run so far, are marked as void.
    """

    def __init__(self, folder: Path, step: int) -> None:
        try:
            from tensorboardX import summary
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto.event_pb2 import Event, SessionLog
        except ImportError as error:
            raise ValueError('tensorboard: needs the extra: pip install "arcsm[tensorboard]"') from error
        self.folder, self._event, self._scalar = folder, Event, summary.scalar
        folder.mkdir(exist_ok=True)
        self._file = EventsWriter(str(folder / "events"))
        self._file.write_event(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Write numbers of a step."""
        try:
            for name, value in metrics.items():
                event = self._event(wall_time=time.time(), step=step, summary=self._scalar(name, value))
                self._file.write_event(event)
            self._file.flush()
        except OSError as error:
            raise OSError(error.errno, f"cannot be written ({error.strerror})", str(self.folder)) from error

    def log_hyperparams(self, params: Mapping[str, object]) -> None:
        """Ignore the settings; the run keeps them in its configuration."""

    def finalize(self, status: str) -> None:
        """Close the file."""
        with suppress(OSError):  # `log_metrics` has raised it already
            self._file.close()
