"""The machine under a run: disk, locks, signals, device, exit codes.

Start with errors.py: every mistake of a user is one of its exceptions, with its own exit code.
disk.py writes files that are either old or new after a crash, and regular.py opens regular files
alone. mark.py knows a run's own files, and refusal.py says why a disk refused. locks.py keeps other
processes out. paths.py replaces `~` and `$VARIABLES`. signals.py stops a run between two steps.
lazy_torchmetrics.py spares each command the metrics that Lightning would load.
device.py chooses the device and the precision, and machine.py records the hardware and the commit.
progress.py prints the progress of a run, units.py formats sizes and times, and json_values.py reads
values from JSON that may be damaged.

Nothing here reads tokens, models or checkpoints.
"""
