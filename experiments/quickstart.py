"""MiniGrid DoorKey 6x6 from pixels and random play, for two CPU cores."""

import functools

from data_pipelines.collect import record_env
from data_pipelines.pretokenise import pretokenise_run
from dreamer4_jax import config as c

config = c.Config(
  actions=(c.ActionComponent(name='action', kind='categorical', size=5),),
  tasks=('key', 'door', 'goal'),
  # A patch for each tile, and a latent for each patch.
  tokenizer=c.TokenizerConfig(
    frame_shape=(48, 48, 3),
    patch_size=8,
    num_latents=36,
    aligned_latents=True,
    bottleneck_dim=8,
    width=64,
    num_heads=2,
    depth=2,
    time_every=2,
    context_length=2,
    rope_base=10.0,
  ),
  # Few wide tokens cost what more narrow ones do, and learn more.
  dynamics=c.DynamicsConfig(
    width=96,
    num_heads=2,
    num_kv_heads=1,
    num_spatial_tokens=6,
    num_registers=0,
    context_length=8,
  ),
  # Rewards are 0 or 1: bins up to 19 are enough, and the mean is not a sum
  # over bins of millions.
  agent=c.AgentConfig(bins=63, bin_limit=3.0),
  phases=c.Phases(
    tokenizer=c.TokenizerPhase(
      # Some seeds leave their plateau after a thousand (docs/doorkey.md).
      steps=1800,
      learning_rate=2e-3,
      batch_size=32,
      # Many different images a step, and pairs for the time layers.
      clip_lengths=(1, 2),
      # A patch is a tile: a masked one hides what nothing else tells.
      max_mask_ratio=0.0,
      # Or a player who turns moves the latents by a hair, and dreams lose it.
      latent_noise=0.6,
    ),
    dynamics=c.DynamicsPhase(
      steps=4000,
      learning_rate=8e-3,
      clip_lengths=(8,),
      relevant_share=0.25,
      bootstrap_start=3200,
    ),
    finetune=c.FinetunePhase(
      steps=900,
      learning_rate=3e-3,
      clip_lengths=(12,),
      # Reward is to be learned where there is none, too.
      context_share=0.5,
      # What the dynamics learned in its last steps is not to be unlearned.
      dynamics_rate=0.3,
      # A clip in sixteen for each of the two clones without a task.
      baseline_share=0.125,
      # Imagining uses the reward that is read at a frame, distance 0.
      distance_decay=0.5,
    ),
    imagination=c.ImaginationPhase(
      steps=600,
      learning_rate=3e-3,
      batch_size=32,
      clip_lengths=(8,),
      # Dreams begin everywhere, and not only where a task is as good as done.
      relevant_share=0.25,
      horizon=16,
      sampling_steps=1,
      gamma=0.95,
      beta=0.05,
      stop_at_event=True,
    ),
  ),
  # A frame that is all noise after a clear one: so it is when sampling.
  forcing=c.ForcingConfig(clear_share=1.0, end_share=0.7, low_weight=1.0),
  optimizer=c.OptimizerConfig(muon=('dynamics', 'finetune'), decay_share=0.4),
  saving=c.SavingConfig(log_every=50, checkpoint_every=800),
  # An event is rewarded under the label of its own task; labels that advance
  # have left it by then.
  data=c.DataConfig(
    sources=(c.SourceConfig(path='runs/doorkey6-random'),),
    novel_share=0.5,
    switch_tasks=0.25,
  ),
  # About twice what a perfect player needs; recordings may take longer.
  env=c.EnvConfig(name='navix:Navix-DoorKey-Random-6x6-v0', max_steps=24),
  eval=c.EvalConfig(clips=512),
)

# Nobody ever means to do anything. It is the same for every training seed.
record = functools.partial(
  record_env,
  policy='random',
  episodes=2500,
  test_episodes=200,
  max_steps=130,
  # More processes would compile as often, for a few seconds of playing.
  workers=1,
)
pretokenise = pretokenise_run
