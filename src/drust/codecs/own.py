"""Blocks that the runtime makes for itself, by codec number: what `drust memory` and an account call them."""

from drust import _core

FUNCTION_CODEC = 0xFFFFFFF4
"""What a task's function travels as: shipping.py."""

NAMES = {
    _core.HOLDER_CODEC: "holder of an object elsewhere",
    _core.TASK_CODEC: "task",
    _core.RECORD_CODEC: "record of a task",
    _core.COMPLETION_CODEC: "result of a task",
    _core.LOSS_CODEC: "loss of a task",
    FUNCTION_CODEC: "function",
    _core.SHARED_CODEC: "shared object",
    _core.HOLD_CODEC: "handle of a shared object",
    _core.SEGMENT_CODEC: "queue of a channel",
    _core.NOTE_CODEC: "note of a lock's holder",
}
