"""What an examination finds: figures, what is usual, verdicts."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
from typing import Any, Literal

Verdict = Literal['fine', 'look', 'wrong', 'unknown']
_WORDS = {
  'fine': 'fine', 'look': 'look at this', 'wrong': '**wrong**', 'unknown': '-'
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
  """One figure of one phase.

  Attributes:
    phase: name of the phase, or `data`.
    name: of the figure.
    value: the figure; None where it cannot be measured.
    text: the figure as it is shown.
    usual: what a healthy run shows.
    verdict: what to think of it.
    advice: what to do unless it is fine.
  """

  phase: str
  name: str
  value: float | None
  text: str
  usual: str
  verdict: Verdict
  advice: str = ''


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scale:
  """How a figure is judged.

  Attributes:
    fine: it is fine from here on.
    wrong: it is wrong from here on; between the two it is worth a look. If it
      is above `fine`, small figures are good.
    digits: decimals shown.
    unit: shown after the figure.
  """

  fine: float
  wrong: float
  digits: int = 2
  unit: str = ''

  def verdict(self, value: float | None) -> Verdict:
    """Judges a figure; None is unknown."""
    if value is None or value != value:
      return 'unknown'
    sign = 1 if self.fine >= self.wrong else -1
    if sign * value >= sign * self.fine:
      return 'fine'
    return 'look' if sign * value > sign * self.wrong else 'wrong'

  def text(self, value: float | None) -> str:
    """Writes a figure."""
    if value is None or value != value:
      return 'not measured'
    return f'{value:.{self.digits}f}{self.unit}'

  @property
  def usual(self) -> str:
    """Says what is usual."""
    side = 'at least' if self.fine >= self.wrong else 'at most'
    return f'{side} {self.text(self.fine)}'


def judge(
  phase: str, name: str, value: float | None, scale: Scale, advice: str
) -> Finding:
  """Makes a finding of a figure."""
  value = None if value is None else float(value)
  return Finding(
    phase=phase,
    name=name,
    value=value,
    text=scale.text(value),
    usual=scale.usual,
    verdict=scale.verdict(value),
    advice=advice,
  )


def note(
  phase: str, name: str, text: str, value: float | None = None
) -> Finding:
  """Makes a finding that is shown without a verdict."""
  value = None if value is None else float(value)
  return Finding(
    phase=phase, name=name, value=value, text=text, usual='', verdict='unknown'
  )


def page(findings: Sequence[Finding], title: str, extra: str = '') -> str:
  """Returns the findings as one page of Markdown, and what to do."""
  lines = [f'# {title}', '']
  wrong = [f for f in findings if f.verdict == 'wrong']
  look = [f for f in findings if f.verdict == 'look']
  if not wrong and not look:
    lines.append('Nothing found.')
  for heading, some in (('Wrong', wrong), ('Worth a look', look)):
    if some:
      lines += [f'{heading}:', '']
      lines += [
        f'- {f.phase}, {f.name}: {f.text} ({f.usual}). {f.advice}' for f in some
      ]
      lines.append('')
  for phase in dict.fromkeys(f.phase for f in findings):
    lines += ['', f'## {phase.capitalize()}', '']
    lines += ['| figure | found | usual | verdict |', '|---|---|---|---|']
    lines += [
      f'| {f.name} | {f.text} | {f.usual} | {_WORDS[f.verdict]} |'
      for f in findings
      if f.phase == phase
    ]
  return '\n'.join(lines) + '\n' + (f'\n{extra}\n' if extra else '')


def as_json(findings: Sequence[Finding]) -> list[dict[str, Any]]:
  """Returns the findings as plain data."""
  return [dataclasses.asdict(f) for f in findings]
