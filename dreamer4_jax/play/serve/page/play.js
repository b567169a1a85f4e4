// The page: what is chosen goes to the server, what it says is shown.

import {Hands} from './hands.js';
import {Link} from './link.js';
import {View} from './view.js';

const find = (id) => document.getElementById(id);
const view = new View(find('dream'), find('real'), find('screen'));
let world = null;
let state = null;
let hands = null;
let seq = 0;
let ready = new Set();
const done = new Set();  // Challenges.

const link = new Link({
  welcome(news) {
    world = news;
    ready = new Set(news.ready);
    build();
  },
  state(news) {
    if (state && (news.start !== state.start || news.last < view.number)) {
      view.forget(news.last);
    }
    state = news;
    choices();
  },
  async frame(said, picture) {
    await view.show(said, picture);
    find('ms').textContent = said.ms ? `${said.ms} ms` : '–';
    find('dropped').textContent = said.dropped;
    hands?.light(said.action, world.panels);
    const beside = said.real > 0;
    if (find('beside').hidden === beside) {
      find('beside').hidden = !beside;
      view.fit();
    }
    find('what').textContent = said.world === 'game' ? 'Real game' : 'Dream';
    find('what').hidden = !beside && said.world !== 'game';
    place(said.n);
    hint(said);
    trying(said);
  },
  ready(news) {
    ready = new Set(news.ready);
    world.together = news.together;
    choices();
  },
  error(news) {
    say('error', news.reason);
  },
  recorded(news) {
    const name = (kind) => `/recordings/${news.id}.${kind}`;
    const box = find('films');
    box.replaceChildren(`Recorded ${news.frames} frames: `,
      anchor('film (mp4)', name('mp4')), ', ',
      anchor('actions (npz)', name('npz')));
    box.hidden = false;
  },
  status(text, connected, final) {
    const chip = find('link');
    chip.textContent = text;
    chip.classList.toggle('on', connected);
    chip.classList.toggle('off', !connected);
    if (final) {
      const again = document.createElement('button');
      again.type = 'button';
      again.textContent = 'Enter';
      again.addEventListener('click', () => link.connect());
      chip.replaceChildren(`${text} `, again);
    }
    if (!connected) hands?.releaseAll();
  },
});

function anchor(text, href) {
  const link = document.createElement('a');
  Object.assign(link, {textContent: text, href, download: ''});
  return link;
}

let saying = 0;
function say(id, text) {
  const box = find(id);
  box.textContent = text;
  box.hidden = !text;
  clearTimeout(saying);
  saying = setTimeout(() => { box.hidden = true; }, 6000);
}

function build() {
  find('title').textContent = world.title;
  document.title = `${world.title}, dreamed`;
  view.size(world.width, world.height);
  const next = () => {
    seq += 1;
    view.sent.push([seq, performance.now()]);
    view.sent = view.sent.slice(-20);
    return seq;
  };
  if (!hands) {
    hands = new Hands(world, link, find('panels'), find('screen'), next);
    find('starts').replaceChildren(...Array.from({length: world.starts},
      (_, i) => startButton(i)));
    find('tries').replaceChildren(...world.challenges.map(tryButton));
    find('tries-card').hidden = !world.challenges.length;
    find('real-start').hidden = !world.real;
    find('steps').replaceChildren(...world.steps.map(stepChoice));
    find('task').replaceChildren(...world.tasks.map((name, i) =>
      new Option(name.replaceAll('_', ' '), i)));
    find('noise').max = world.levels - 1;
    [find('rate').min, find('rate').max] = world.rates;
    find('screen').focus({preventScroll: true});
  }
  find('task-row').hidden = !world.tasks.length;
  find('traces-card').hidden = !world.heads;
  find('value-row').hidden = !world.value;
  for (const input of document.querySelectorAll('#mode input')) {
    input.disabled = !world.policy && input.value !== 'human';
  }
}

function pictureButton(start, message) {
  const button = document.createElement('button');
  button.type = 'button';
  const image = document.createElement('img');
  Object.assign(image, {src: `/starts/${start}`, alt: '', loading: 'lazy'});
  button.append(image);
  button.addEventListener('click', () => {
    link.send(message);
    toGame();
  });
  return button;
}

function startButton(index) {
  const button = pictureButton(index, {type: 'start', index});
  button.setAttribute('aria-label', `Begin from moment ${index + 1}`);
  return button;
}

function tryButton({name, start}, index) {
  const button = pictureButton(start, {type: 'attempt', index});
  button.append(name);
  return button;
}

function stepChoice(steps) {
  const label = document.createElement('label');
  const input = document.createElement('input');
  Object.assign(input, {type: 'radio', name: 'steps', value: steps});
  input.setAttribute('aria-label', `${steps} steps`);
  const text = document.createElement('span');
  text.textContent = steps;
  label.append(input, text);
  return label;
}

// A mouse player goes on with the keys of the game; keyboard players stay.
let byMouse = false;
addEventListener('pointerdown', () => { byMouse = true; }, true);
addEventListener('keydown', () => { byMouse = false; }, true);
function toGame() {
  if (byMouse) find('screen').focus({preventScroll: true});
}

function choices() {
  if (!world || !state) return;
  find('world').hidden = state.start >= 0;
  find('psnr-row').hidden = state.start >= 0;
  find('real-start').setAttribute('aria-pressed', state.start < 0);
  find('none').hidden = state.start < 0;
  find('mode').hidden = state.world === 'game';
  for (const name of ['mode', 'world', 'steps']) {
    for (const input of document.querySelectorAll(`#${name} input`)) {
      input.checked = input.value === String(state[name]);
      if (name === 'steps') {
        input.parentElement.classList.toggle('waiting',
          !ready.has(Number(input.value)));
      }
    }
  }
  find('task').value = state.task;
  find('task-name').textContent = state.mode === 'human'
    ? 'Reward is for' : 'Ask it for';
  find('noise').value = world.levels - 1 - state.level;
  noiseText();
  find('rate').value = state.rate;
  find('rate-now').textContent = state.rate;
  find('pause').textContent = state.paused ? 'Resume' : 'Pause';
  find('pause').setAttribute('aria-pressed', state.paused);
  find('record').setAttribute('aria-pressed', state.recording);
  find('record-text').textContent = state.recording ? 'Stop' : 'Record';
  [...find('starts').children].forEach((button, i) => {
    button.setAttribute('aria-pressed', i === state.start);
  });
  [...find('tries').children].forEach((button, i) => {
    button.setAttribute('aria-pressed', i === state.challenge);
  });
  const box = find('branches');
  box.hidden = !state.branches.length;
  box.replaceChildren('Left behind: ', ...state.branches.map((b, i) => {
    const button = document.createElement('button');
    button.type = 'button';
    button.textContent = `branch ${i + 1}, to frame ${b.last}`;
    button.addEventListener('click', () =>
      link.send({type: 'branch', index: i}));
    return button;
  }));
  place(state.position);
  hint(view.past.get(view.number));
  trying(view.past.get(view.number));
}

function place(number) {
  if (!state || number < 0) return;
  state.last = Math.max(state.last, number);
  const slider = find('frame');
  slider.min = state.first;
  slider.max = state.last;
  if (!scrubbing) slider.value = number;
  find('count').textContent = number === state.last ? number
    : `${number} / ${state.last}`;
}

function hint(said) {
  const waits = world.panels.some((p) => p.type === 'categorical'
    && p.controls.length === p.size);
  let text = '';
  if (said?.over) {
    text = 'The real game is over: ⌫ begins again';
  } else if (said && said.cont !== null && said.cont < 0.5) {
    text = 'It thinks this is the end: ⌫ begins again';
  } else if (state?.paused && view.number < state.last) {
    text = 'Resume and act: the old future stays as a branch';
  } else if (state?.paused) {
    text = 'Paused';
  } else if (state?.mode === 'human' && waits && view.number <= 0) {
    const key = document.querySelector('#panels kbd');
    text = `Press ${key?.textContent ?? 'a key'}: it moves when you do`;
  } else if (state?.mode !== 'human' && view.number < 20) {
    text = state?.mode === 'policy' ? 'The agent plays'
      : 'The agent plays, until you hold a key';
  }
  find('hint').textContent = text;
  find('hint').hidden = !text;
}

// What is tried, and how far it is.
function trying(said) {
  const box = find('trying');
  const own = world?.challenges[state?.challenge];
  box.hidden = !own;
  if (!own) return;
  const stage = said?.stage ?? 0;
  if (stage === own.stages && !done.has(state.challenge)) {
    done.add(state.challenge);
    find('tries').children[state.challenge].classList.add('done');
  }
  const far = own.stages > 1 ? ` (${stage} of ${own.stages})` : '';
  const text = stage === own.stages ? `✓ Done: ${own.name}`
    : `Try: ${own.name}${far}`;
  if (box.textContent !== text) box.textContent = text;
  box.classList.toggle('good', stage === own.stages);
}

function noiseText() {
  const share = 1 - (world.levels - 1 - find('noise').value) / world.levels;
  find('noise-now').textContent = `${Math.round(100 * share)} %`;
}

// At once here as well, or a second press would begin from what was before.
const set = (chosen) => {
  Object.assign(state, chosen);
  link.send({type: 'set', ...chosen});
};
find('mode').addEventListener('change', (event) => {
  set({mode: event.target.value, paused: false});
  toGame();
});
find('world').addEventListener('change', (event) => {
  set({world: event.target.value, paused: false});
  toGame();
});
find('real-start').addEventListener('click', () => {
  link.send({type: 'start', index: -1});
  toGame();
});
find('steps').addEventListener('change', (event) => {
  const steps = Number(event.target.value);
  if (!ready.has(steps)) {
    say('error', `${steps} steps a frame are compiled first; the dream goes on `
      + 'meanwhile, and switches by itself');
  }
  set({steps});
  toGame();
});
find('task').addEventListener('change', (event) => {
  set({task: Number(event.target.value)});
  toGame();
});
find('noise').addEventListener('input', noiseText);
find('noise').addEventListener('change', (event) =>
  set({level: world.levels - 1 - Number(event.target.value)}));
find('rate').addEventListener('change', (event) =>
  set({rate: Number(event.target.value)}));
find('rate').addEventListener('input', (event) => {
  find('rate-now').textContent = event.target.value;
});

const actions = {
  pause: () => set({paused: !state.paused}),
  once: () => {
    if (view.number < state.last) rewind(view.number + 1);
    else link.send({type: 'step'});
  },
  back: () => {
    if (view.number > state.first) rewind(view.number - 1);
  },
  reset: () => link.send({type: 'reset'}),
  record: () => link.send({type: 'record', on: !state.recording}),
};
for (const [id, act] of Object.entries(actions)) {
  find(id).addEventListener('click', () => {
    act();
    toGame();
  });
}

const rewind = (frame) => link.send({type: 'rewind', frame});
let scrubbing = false;
let wanted = null;
find('frame').addEventListener('input', (event) => {
  scrubbing = true;
  wanted = Number(event.target.value);
});
find('frame').addEventListener('change', () => { scrubbing = false; });
setInterval(() => {
  if (wanted !== null) rewind(wanted);
  wanted = null;
}, 50);

const shortcuts = {Enter: 'pause', '.': 'once', ',': 'back',
  Backspace: 'reset'};
addEventListener('keydown', (event) => {
  const own = event.target.closest?.('button, input, select, textarea, a');
  if (!state || event.ctrlKey || event.metaKey || event.altKey) return;
  if (own && (event.key === 'Enter' || own.matches('select'))) return;
  if (event.key === '/') {
    const modes = world.policy ? ['human', 'mixed', 'policy'] : ['human'];
    const now = modes.indexOf(state.mode);
    set({mode: modes[(now + 1) % modes.length], paused: false});
  } else if (event.key in shortcuts) {
    if (event.key === 'Backspace' && event.repeat) return;
    actions[shortcuts[event.key]]();
  } else return;
  event.preventDefault();
});

function draw() {
  view.traces();
  const {fps, p50, p95} = view.figures();
  const ms = (x) => (x === undefined ? '–' : `${Math.round(x)} ms`);
  find('fps').textContent = fps.toFixed(1);
  find('p50').textContent = ms(p50);
  find('p95').textContent = ms(p95);
}
setInterval(draw, 250);

// For whoever measures: benchmarks and tests.
window.dream = {view, link, state: () => state, hands: () => hands,
  world: () => world};
