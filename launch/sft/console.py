"""The console of a fine-tuning run: a progress bar on a terminal, one line a step elsewhere."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table

from launch.run.console import View, subtitle
from launch.run.status import SftStatus, describe


class SftConsole(View[SftStatus]):
    """Shows the state of a fine-tuning run."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name
        self._num_steps = 0

    def show(self, status: SftStatus) -> None:
        """See `View`."""
        self._num_steps = status.num_steps
        super().show(status)

    def _line(self, last: Mapping[str, float]) -> str:
        return step_line(last, self._num_steps)

    def _render(self, status: SftStatus) -> RenderableType:
        last, validation = status.last, status.validation
        step = int(last.get("step", 0))
        table = Table.grid(padding=(0, 2))
        table.add_row("step", f"{step} of {self._num_steps}", ProgressBar(max(1, self._num_steps), step, width=30))
        table.add_row("learner", describe(status), "")
        if "loss" in last:
            table.add_row("loss", f"{last['loss']:.4f}", f"perplexity {last['perplexity']:.2f}")
        if validation:
            table.add_row("validation", f"{validation['validation_loss']:.4f}", f"after step {int(validation['step'])}")
        if "lr" in last:
            table.add_row("lr", f"{last['lr']:.2e}", f"gradient norm {last['grad_norm']:.2f}")
            table.add_row("tokens/s", f"{last['tokens_per_s']:.0f}", f"epoch {last['epoch']:.2f}")
        return Panel(table, title=f"azr sft: {self._name}", subtitle=subtitle(status, self._end(status)), expand=False)


def step_line(metrics: Mapping[str, float], num_steps: int) -> str:
    """One step on one line."""
    measured = f" | validation {metrics['validation_loss']:.4f}" if "validation_loss" in metrics else ""
    return (
        f"step {int(metrics['step'])}/{num_steps} | loss {metrics['loss']:.4f} (perplexity "
        f"{metrics['perplexity']:.2f}){measured} | lr {metrics['lr']:.2e} | gradient norm {metrics['grad_norm']:.2f} | "
        f"tokens/s {metrics['tokens_per_s']:.0f} | epoch {metrics['epoch']:.2f}"
    )
