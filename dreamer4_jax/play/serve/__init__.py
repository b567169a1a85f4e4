"""`dreamer4 play`: a dream that people play in, from a browser.

`Game` is what is played, `save_game` writes one to give away, and `Session` is
one player, without any web. `server.serve` needs the extra play.
"""

from dreamer4_jax.play.serve.game import Game, load_game, save_game
from dreamer4_jax.play.serve.session import Session

__all__ = ['Game', 'Session', 'load_game', 'save_game']
