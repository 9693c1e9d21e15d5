"""What a person sees in a terminal, all of it through rich, which nothing outside this folder knows.

Without a terminal, or with TERM=dumb: plain lines and no control characters. NO_COLOR is honoured. Text from models and
data is shown as it is, never obeyed: no markup, no escape sequences.
"""

from lgrpo.screen.show import Show

__all__ = ["Show"]
