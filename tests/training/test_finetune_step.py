import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer4_jax.models import distributions
from dreamer4_jax.objectives import Mean, TwoHot
from dreamer4_jax.training.finetune_step import (
  TERMS,
  Clips,
  agent_losses,
  clip_losses,
  finetune_objective,
  init_finetune_state,
  make_finetune_step,
  prepare_clips,
  stand_ins,
)
from dreamer4_jax.training.update import combine
from tests.models.tiny_world import (
  ACTIONS,
  CONFIG,
  changed,
  make_batch,
  world_and_params,
)

RUN = CONFIG.edit(
  {
    'phases.finetune.batch_size': 8,
    'phases.finetune.learning_rate': 1e-2,
    'forcing.bootstrap_share': 0.5,
    'optimizer.warmup_steps': 1,
    'optimizer.decay_share': 0.0,
  }
)
WORLD, PARAMS = world_and_params(RUN)
# Odd rows are relevant; of those, row 3 is unlabeled, as is uniform row 4.
LABELS = np.ones((8, 5), bool)
LABELS[[3, 4]] = False
BATCH = make_batch(8, 5, starts=[(1, 2)])
BATCH = BATCH.replace(
  action_mask=LABELS,
  prev_action_mask=BATCH.prev_action_mask & LABELS,
  cloned=BATCH.cloned & LABELS,
)
# What is cloned in row 5 ends before its clip does.
BATCH.cloned[5, 3:] = False
UNIFORM, RELEVANT = [0, 2, 4, 6], [1, 5, 7]


@functools.cache
def start():
  pretrained = {k: PARAMS[k] for k in ('tokenizer', 'latents', 'dynamics')}
  return jax.jit(
    lambda key: nn.unbox(init_finetune_state(WORLD, key, pretrained))
  )(jax.random.key(0))


@functools.cache
def step():
  compiled = jax.jit(make_finetune_step(WORLD))
  return lambda state, batch, seed=0: jax.device_get(
    compiled(state, batch, jax.random.key(seed))
  )


@functools.cache
def first():
  return step()(start(), BATCH)


def equal(a, b):
  pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return all(np.array_equal(x, y) for x, y in pairs)


def change_rows(field, rows):
  """Other values of a field in some rows."""
  moved = {
    'frames': lambda x: 255 - x,
    'reward': lambda x: 1 - x,
    'cont': lambda x: 1 - x,
  }
  if field == 'action':
    value = {k: v.copy() for k, v in BATCH.action.items()}
    value['move'][rows] = (value['move'][rows] + 1) % 3
    value['keys'][rows] = 1 - value['keys'][rows]
    return BATCH.replace(action=value)
  value = getattr(BATCH, field).copy()
  value[rows] = moved[field](value[rows])
  return BATCH.replace(**{field: value})


def test_the_world_model_is_carried_over_and_heads_are_new():
  state = start()
  assert set(state.params) == {
    'dynamics', 'task', 'policy', 'reward', 'continuation'
  }  # fmt: skip
  assert equal(state.params['dynamics'], PARAMS['dynamics'])
  assert equal(state.frozen, {k: PARAMS[k] for k in ('tokenizer', 'latents')})
  assert not np.any(state.params['reward']['out']['kernel'])


@pytest.mark.parametrize('rows', [UNIFORM, [3]], ids=['uniform', 'unlabeled'])
def test_actions_of_uniform_or_unlabeled_rows_are_not_cloned(rows):
  state, metrics = first()
  other, other_metrics = step()(start(), change_rows('action', rows))
  assert equal(state, other) and equal(metrics, other_metrics)


def test_actions_of_relevant_rows_are_cloned():
  _, metrics = first()
  _, other = step()(start(), change_rows('action', RELEVANT))
  assert other['finetune/policy'] != metrics['finetune/policy']
  for name in ('flow', 'bootstrap', 'reward', 'continuation'):
    assert other[f'finetune/{name}'] == metrics[f'finetune/{name}']


def test_the_dynamics_learns_from_uniform_rows_only():
  _, metrics = first()
  _, relevant = step()(start(), change_rows('frames', [1, 3, 5, 7]))
  _, uniform = step()(start(), change_rows('frames', UNIFORM))
  for name in ('flow', 'bootstrap'):
    here = metrics[f'finetune/{name}']
    np.testing.assert_allclose(relevant[f'finetune/{name}'], here, rtol=1e-5)
    assert abs(uniform[f'finetune/{name}'] / here - 1) > 1e-3
  assert relevant['finetune/policy'] != metrics['finetune/policy']


@pytest.mark.parametrize('field, term', [('reward', 'reward'), ('cont', 'con')])
@pytest.mark.parametrize('rows', [UNIFORM, [1, 3, 5, 7]])
def test_reward_and_continuation_learn_from_both(field, term, rows):
  name = 'finetune/reward' if term == 'reward' else 'finetune/continuation'
  _, metrics = first()
  state, other = step()(start(), change_rows(field, rows))
  if term == 'reward':  # a zero output layer: only its gradient differs
    state, _ = step()(state, BATCH)
    twice, _ = step()(first()[0], BATCH)
    assert not equal(state.params['reward'], twice.params['reward'])
  else:
    assert other[name] != metrics[name]
  assert other['finetune/policy'] == metrics['finetune/policy']


def test_actions_past_the_event_are_not_cloned():
  # Row 5 is cloned up to frame 2; the actions of frames 3 and 4 do not matter.
  value = {k: v.copy() for k, v in BATCH.action.items()}
  value['move'][5, 3:] = (value['move'][5, 3:] + 1) % 3
  state, metrics = first()
  other, other_metrics = step()(start(), BATCH.replace(action=value))
  assert equal(state, other) and equal(metrics, other_metrics)


@functools.cache
def _prepared():
  return jax.jit(
    lambda batch, key: prepare_clips(WORLD, PARAMS, batch, jnp.int32(0), key)
  )


def test_rows_stand_at_the_levels_at_which_they_train():
  moved = 0
  for seed in range(40):
    clips = jax.device_get(_prepared()(BATCH, jax.random.key(seed)))
    noisy, at = clips.noisy, clips.noisy.levels
    trains = noisy.trains
    assert not trains[1::2].any()
    assert np.all(at.signal_index[~trains] == 7)
    assert np.all(at.step_index[~trains] == 3)
    # Both kinds train reward and continuation; few stand for all uniform rows.
    expected = np.where(BATCH.relevant, 1, np.where(trains, 0, 4))
    assert np.array_equal(clips.judged, expected)
    assert np.all(clips.expected == 1)
    moved += (~trains[::2]).sum()
    tau = at.signal_index[..., None, None] / 8
    noise = (noisy.z_tau - tau * noisy.z1) / (1 - tau)
    assert abs(noise.mean()) < 0.2 and abs(noise.std() - 1) < 0.15
  assert moved == 40  # A quarter of four rows.


@pytest.mark.parametrize('share', [0.0, 0.25, 0.4, 0.9])
@pytest.mark.parametrize('relevant', ['0101010101', '0000000000', '1111111110'])
def test_stand_ins_are_as_many_as_the_share_says(share, relevant):
  rows = jnp.array([c == '1' for c in relevant])
  draw = jax.jit(jax.vmap(lambda key: stand_ins(rows, share, key)))
  chosen = np.asarray(draw(jax.random.split(jax.random.key(0), 2_000)))
  uniform = np.flatnonzero(~np.asarray(rows))
  assert not chosen[:, np.asarray(rows)].any()
  count = chosen.sum(axis=1)
  assert set(count) <= {
    np.floor(share * len(uniform)), np.ceil(share * len(uniform))
  }  # fmt: skip
  # Each uniform row as often as the others.
  np.testing.assert_allclose(chosen[:, uniform].mean(axis=0), share, atol=0.06)


@pytest.mark.parametrize('decay', [1.0, 0.5])
def test_head_losses_match_a_loop(decay):
  world = changed(WORLD, {'phases.finetune.distance_decay': decay})
  h = np.random.default_rng(0).normal(size=(8, 5, 16)).astype(np.float32)
  batch = jax.tree.map(jnp.asarray, BATCH)
  twohot = TwoHot(CONFIG.agent.bins, CONFIG.agent.bin_limit)
  judged = np.array([0, 1, 4, 1, 0, 1, 0, 1.0], np.float32)
  # As if no row of the last kind were ever judged.
  expected = np.array([1, 1, 1, 1, 1, 1, 0, 1.0], np.float32)

  noisy = _prepared()(batch, jax.random.key(0)).noisy
  clips = Clips(noisy=noisy, judged=judged, expected=expected)

  @jax.jit
  def compute(h):
    found = agent_losses(world, PARAMS, h, clips)
    logits = WORLD.head(PARAMS, 'policy', h)
    rewards = WORLD.head(PARAMS, 'reward', h)
    conts = WORLD.head(PARAMS, 'continuation', h)
    losses = []
    for n in range(3):
      at = {k: v[:, : 5 - n, n] for k, v in logits.items()}
      later = {k: v[:, n:] for k, v in batch.action.items()}
      nll = -distributions.log_prob(at, later, ACTIONS)
      # The loss of both tasks' rewards; the loop takes the labeled task's.
      reward = [
        twohot.loss(rewards[:, : 5 - n, n], batch.reward[:, n:, k])
        for k in range(2)
      ]
      losses.append((nll, reward, conts[:, : 5 - n, n]))
    entropy = distributions.entropy(logits, ACTIONS)[..., 0]
    return found, losses, twohot.mean(rewards[:, :, 0]), entropy

  (terms, others), losses, read, entropy = jax.device_get(
    compute(jnp.asarray(h))
  )
  # Every (frame, distance); the loop picks those that count.
  ahead = {'policy': [], 'reward': [], 'continuation': []}
  counted = 0
  now = {
    name: []
    for name in (
      'policy_nll_now',
      'policy_entropy',
      'reward_error',
      'reward_error_on_events',
    )
  }

  for n, (nll, reward, x) in enumerate(losses):
    x, y = x.astype(float), BATCH.cont[:, n:]
    bce = np.log1p(np.exp(x)) - x * y
    for b in range(8):
      for t in range(5 - n):
        if BATCH.segment_ids[b, t] != BATCH.segment_ids[b, t + n]:
          continue
        task, weight = BATCH.task[b, t], decay**n
        counted += weight * expected[b]
        ahead['reward'].append((reward[task][b, t], weight * judged[b]))
        ahead['continuation'].append((bce[b, t], weight * judged[b]))
        cloned = BATCH.relevant[b] and LABELS[b, t + n]
        if cloned and not (b == 5 and t + n >= 3):
          ahead['policy'].append((nll[b, t], weight))
          if n == 0:
            now['policy_nll_now'].append((nll[b, t], 1))
            now['policy_entropy'].append((entropy[b, t], 1))
        if n == 0:
          error = abs(read[b, t] - BATCH.reward[b, t, task])
          now['reward_error'].append((error, judged[b]))
          if BATCH.reward[b, t, task] > 0:
            now['reward_error_on_events'].append((error, judged[b]))
  # Labels change within segments, so that it matters whose reward counts.
  assert (np.diff(BATCH.task, axis=1) != 0).sum() > 8
  assert len(ahead['policy']) < len(ahead['reward']) / 2
  for found, wanted in ((terms, ahead), (others, now)):
    assert set(found) == set(wanted)
    for name, pairs in wanted.items():
      values, weights = zip(*pairs, strict=True)
      total = counted if name in ('reward', 'continuation') else sum(weights)
      np.testing.assert_allclose(
        found[name].value(),
        np.dot(values, weights) / total,
        rtol=1e-4,
        err_msg=name,
      )


def test_the_loss_is_the_sum_of_its_terms():
  objective = finetune_objective(WORLD)
  assert objective.weights == dict.fromkeys(TERMS, 1.0)
  # Divided by its own RMS, every term is 1 in the first step.
  terms = {name: Mean.of(jnp.float32(7)) for name in objective.weights}
  loss, _ = combine(terms, start().rms, objective)
  np.testing.assert_allclose(loss, 4, rtol=1e-5)
  np.testing.assert_allclose(first()[1]['loss'], 4, rtol=1e-5)


def test_accumulation_changes_nothing():
  # Rows are relevant, unlabeled or not, so no two parts are alike.
  world = changed(WORLD, {'accumulate': 8})
  split = jax.jit(make_finetune_step(world))(start(), BATCH, jax.random.key(0))
  whole = first()
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5),
    (split[1], split[0].rms, split[0].opt_state),
    (whole[1], whole[0].rms, whole[0].opt_state),
  )


def test_overfitting_lowers_every_term():
  state, metrics = first()
  for _ in range(39):
    state, last = step()(state, BATCH)
  for name in ('flow', 'policy', 'reward', 'continuation'):
    before, after = metrics[f'finetune/{name}'], last[f'finetune/{name}']
    assert np.isfinite(after) and after < 0.8 * before, name
  assert state.step == 40 and equal(state.frozen, start().frozen)


@pytest.mark.parametrize('relevant', [False, True])
def test_a_batch_of_one_kind_leaves_the_other_terms_alone(relevant):
  batch = BATCH.replace(
    relevant=np.full(8, relevant),
    cloned=np.full((8, 5), relevant) & LABELS,
  )
  state, metrics = step()(start(), batch)
  assert np.isfinite(list(metrics.values())).all()
  seen = {k: bool(v.weight > 0) for k, v in state.rms.items()}
  assert seen == {
    'dynamics': not relevant,
    'policy': relevant,
    'reward': True,
    'continuation': True,
  }


@functools.cache
def with_baseline():
  """Clips, terms and their slopes by prompt, for a world with baselines."""
  config = RUN.edit({'phases.finetune.baseline_share': 0.125})
  world, params = world_and_params(config)

  @jax.jit
  def run(batch):
    step = jnp.int32(0)
    clips = prepare_clips(world, params, batch, step, jax.random.key(0))

    def terms(task):
      found, others = clip_losses(world, {**params, 'task': task}, clips)
      return {k: v.value() for k, v in {**found, **others}.items()}

    slopes = jax.jacrev(terms)(params['task'])
    prompts = {name: x['task']['table'] for name, x in slopes.items()}
    return clips, terms(params['task']), prompts

  return lambda batch: jax.device_get(run(batch))


# Row 7 is a baseline's, whose prompt is the first behind those of two tasks.
BASELINE = BATCH.replace(
  task=np.where(np.arange(8)[:, None] == 7, 2, BATCH.task)
)


def test_a_baseline_is_not_judged_and_trains_no_dynamics():
  clips, terms, _ = with_baseline()(BASELINE)
  assert not clips.noisy.trains[7] and clips.judged[7] == clips.expected[7] == 0
  assert clips.judged[5] == clips.expected[5] == 1
  assert (clips.noisy.levels.signal_index[7] == 7).all()
  assert np.isfinite([*terms.values()]).all()
  # With a task for a prompt it would be a relevant row like the others.
  clips, _, _ = with_baseline()(BATCH)
  assert clips.judged[7] == clips.expected[7] == 1


def test_a_baseline_trains_the_policy_alone():
  _, terms, prompts = with_baseline()(BASELINE)
  assert set(terms) >= {'dynamics', 'policy', 'reward', 'continuation'}
  changed = BASELINE
  for name in ('frames', 'action', 'reward', 'cont'):
    other = getattr(change_rows(name, [7]), name)
    changed = changed.replace(**{name: other})
  _, others, _ = with_baseline()(changed)
  moved = {'policy', 'policy_nll_now', 'policy_entropy'}
  for name, value in terms.items():
    if name in moved:
      assert abs(others[name] - value) > 1e-4, name
    else:
      np.testing.assert_allclose(others[name], value, rtol=1e-5, err_msg=name)
  # What its prompt learns, it learns of the policy.
  for name in ('dynamics', 'reward', 'continuation'):
    assert not prompts[name][2].any() and not prompts[name][3].any()
  assert np.abs(prompts['policy'][2]).max() > 1e-6
  assert not prompts['policy'][3].any()
