"""A process that draws batches and notes them, until it is killed."""

import hashlib
import json
import os
import time

import jax

from dreamer4_jax.data import Draws, EpisodeSource, make_loader


def draw(path: str, log: str, total: int) -> None:
  """Draws until there are `total` batches, and goes on where it was killed.

  Args:
    path: dataset.
    log: file of the digests of all batches and the state of the loader, which
      is written whole or not at all.
    total: number of batches.
  """
  source = EpisodeSource(path, 'train')
  draws = Draws(
    batch_size=4, length=12, seed=1, relevant_share=0.5, separate_images=0.3
  )
  loader = make_loader(path, 'train', source.description, draws, threads=2)
  done = {'seen': [], 'state': None}
  if os.path.exists(log):
    with open(log) as file:
      done = json.load(file)
    loader.set_state(done['state'])
  while len(done['seen']) < total:
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(next(loader)):
      digest.update(leaf.tobytes())
    done['seen'].append(digest.hexdigest())
    done['state'] = loader.get_state()
    with open(log + '.tmp', 'w') as file:
      json.dump(done, file)
    os.replace(log + '.tmp', log)
    time.sleep(0.01)
