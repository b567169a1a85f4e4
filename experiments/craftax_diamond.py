"""Craftax-Classic from pixels and recordings alone, for two CPU cores."""

import functools

from data_pipelines.collect import record_env
from data_pipelines.pretokenise import pretokenise_run
from dreamer4_jax import config as c

# The ladder; then what comes by the way.
TASKS = (
  'collect_sapling', 'place_plant', 'collect_wood', 'place_table',
  'make_wood_pickaxe', 'make_wood_sword', 'collect_stone', 'place_stone',
  'make_stone_pickaxe', 'make_stone_sword', 'collect_coal', 'place_furnace',
  'collect_iron', 'make_iron_pickaxe', 'collect_diamond', 'make_iron_sword',
  'collect_drink', 'eat_cow', 'wake_up', 'defeat_zombie', 'defeat_skeleton',
  'eat_plant',
)  # fmt: skip

# What leads to a diamond, needs included, by the median step at which held-out
# recordings of the steadiest player have it. Zombies and skeletons are left
# out: whoever is told to defeat one has to look for it.
PROMPT = (
  'collect_sapling', 'place_plant', 'collect_wood', 'place_table',
  'make_wood_pickaxe', 'make_wood_sword', 'collect_stone', 'place_stone',
  'make_stone_pickaxe', 'make_stone_sword', 'place_furnace', 'collect_drink',
  'eat_cow', 'collect_coal', 'collect_iron', 'wake_up', 'make_iron_pickaxe',
  'collect_diamond',
)  # fmt: skip

config = c.Config(
  actions=(c.ActionComponent(name='action', kind='categorical', size=17),),
  tasks=TASKS,
  prompt=PROMPT,
  # A patch for each tile, and a latent for each patch.
  tokenizer=c.TokenizerConfig(
    frame_shape=(63, 63, 3),
    patch_size=7,
    num_latents=81,
    aligned_latents=True,
    bottleneck_dim=8,
    width=64,
    num_heads=2,
    depth=2,
    time_every=2,
    context_length=2,
    rope_base=20.0,
  ),
  # A token for each row of tiles.
  dynamics=c.DynamicsConfig(
    width=192,
    num_heads=3,
    num_kv_heads=1,
    num_spatial_tokens=9,
    num_registers=1,
    context_length=32,
  ),
  agent=c.AgentConfig(bins=63, bin_limit=3.0),
  phases=c.Phases(
    tokenizer=c.TokenizerPhase(
      steps=5000,
      learning_rate=2e-3,
      batch_size=32,
      clip_lengths=(1, 2),
      max_mask_ratio=0.0,
      latent_noise=0.6,
    ),
    dynamics=c.DynamicsPhase(
      steps=10000,
      learning_rate=5e-3,
      clip_lengths=(16, 32),
      relevant_share=0.25,
      bootstrap_start=8000,
    ),
    finetune=c.FinetunePhase(
      steps=2500,
      learning_rate=2e-3,
      clip_lengths=(16, 32),
      context_share=0.5,
      dynamics_rate=0.3,
      baseline_share=0.125,
      distance_decay=0.5,
    ),
    imagination=c.ImaginationPhase(
      steps=1500,
      learning_rate=1e-3,
      batch_size=32,
      clip_lengths=(24,),
      relevant_share=0.5,
      horizon=16,
      sampling_steps=2,
      gamma=0.98,
      beta=0.1,
      stop_at_event=True,
    ),
  ),
  # What an action does to one tile is lost among the new ground of every step.
  forcing=c.ForcingConfig(
    clear_share=0.75, end_share=0.4, low_weight=1.0, event_weight=8.0
  ),
  optimizer=c.OptimizerConfig(muon=('dynamics', 'finetune'), decay_share=0.4),
  saving=c.SavingConfig(log_every=50, checkpoint_every=250),
  data=c.DataConfig(
    sources=(c.SourceConfig(path='runs/craftax'),),
    # Half of what the agent is asked for is further away than a clip.
    lead=64,
  ),
  env=c.EnvConfig(name='craftax:Craftax-Classic-Pixels-v1', max_steps=1500),
  eval=c.EvalConfig(clips=256, episodes=256),
)

# Players who wander off, stand around and slip: the mode of what they do is
# not the answer.
record = functools.partial(
  record_env,
  policy='scripted',
  noise=(0.1, 0.25, 0.5),
  restless=0.008,
  idle=0.004,
  episodes=2600,
  test_episodes=120,
  max_steps=1500,
)
pretokenise = pretokenise_run
