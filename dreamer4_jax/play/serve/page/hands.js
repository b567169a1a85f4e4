// What the player holds: keys, buttons, pointer, sliders, gamepad.

const NAMES = {ArrowLeft: '←', ArrowRight: '→', ArrowUp: '↑', ArrowDown: '↓',
  ' ': 'Space'};
const SEND_EVERY = 33;
const FULL_TURN = 120;  // Pixels of the mouse that turn as far as a frame can.
const STICK = 0.15;  // Less is a stick at rest.

export class Hands {
  constructor(world, link, root, screen, pressed) {
    this.link = link;
    this.pressed = pressed;
    this.byKey = new Map();
    this.buttons = new Map();
    this.held = new Map();  // Control to what holds it.
    this.moved = [0, 0];
    this.pointer = null;
    this.sliders = [];
    root.replaceChildren(...world.panels.map((p) => this.panel(p, world)));
    addEventListener('keydown', (event) => this.key(event, true));
    addEventListener('keyup', (event) => this.key(event, false));
    addEventListener('blur', () => this.releaseAll());
    document.addEventListener('visibilitychange', () => {
      if (document.hidden) this.releaseAll();
    });
    if (this.pointer) this.follow(screen);
    setInterval(() => this.flush(), SEND_EVERY);
    this.controls = world.panels.flatMap((p) => p.controls);
  }

  panel(panel, world) {
    const box = document.createElement('div');
    box.className = 'panel';
    if (world.panels.length > 1) {
      const name = document.createElement('h3');
      name.textContent = panel.part.replaceAll('_', ' ');
      box.append(name);
    }
    if (panel.kind === 'pointer') {
      this.pointer = panel.part;
      const pad = document.createElement('div');
      pad.className = 'pad';
      pad.textContent = 'Drag here or on the picture, or click it to use the '
        + 'mouse';
      this.follow(pad);
      box.append(pad);
    }
    if (panel.kind === 'sliders') box.append(...this.slides(panel));
    box.append(...panel.controls.map((c) => this.button(c)));
    return box;
  }

  button(control) {
    const button = document.createElement('button');
    button.type = 'button';
    button.className = 'key';
    button.dataset.control = control.id;
    if (control.key) {
      const cap = document.createElement('kbd');
      cap.textContent = NAMES[control.key] || control.key.toUpperCase();
      button.append(cap);
      this.byKey.set(control.key, control.id);
    }
    button.append(control.label);
    const press = (event) => {
      event.preventDefault();
      button.setPointerCapture(event.pointerId);
      this.press(control.id, 'pointer');
    };
    const release = () => this.release(control.id, 'pointer');
    button.addEventListener('pointerdown', press);
    for (const name of ['pointerup', 'pointercancel', 'lostpointercapture']) {
      button.addEventListener(name, release);
    }
    button.addEventListener('contextmenu', (event) => event.preventDefault());
    button.addEventListener('keydown', (event) => {
      if (event.key === 'Enter' && !event.repeat) {
        event.preventDefault();
        this.press(control.id, 'enter');
      }
    });
    button.addEventListener('keyup', (event) => {
      if (event.key === 'Enter') this.release(control.id, 'enter');
    });
    button.addEventListener('blur', () => this.release(control.id, 'enter'));
    this.buttons.set(control.id, button);
    return button;
  }

  slides(panel) {
    const inputs = panel.labels.map((name) => {
      const label = document.createElement('label');
      label.className = 'slide';
      const text = document.createElement('span');
      text.textContent = name;
      const input = document.createElement('input');
      const rest = Math.min(Math.max(0, panel.low), panel.high);
      Object.assign(input, {type: 'range', min: panel.low, max: panel.high,
        step: (panel.high - panel.low) / 100, value: rest});
      label.append(text, input);
      return [label, input];
    });
    const values = () => inputs.map(([, input]) => Number(input.value));
    for (const [, input] of inputs) {
      input.addEventListener('input', () => this.link.send(
        {type: 'steer', part: panel.part, values: values()}));
    }
    this.sliders.push({panel, inputs: inputs.map(([, input]) => input)});
    return inputs.map(([label]) => label);
  }

  key(event, down) {
    const id = this.byKey.get(event.key)
      || this.byKey.get(event.key.toLowerCase());
    const typing = event.target.closest?.('input, select, textarea');
    if (!id || (typing && down) || event.ctrlKey || event.metaKey
      || event.altKey) return;
    if (down) event.preventDefault();
    if (down && !event.repeat) this.press(id, `key ${id}`);
    if (!down) this.release(id, `key ${id}`);
  }

  press(id, by) {
    if (!this.held.has(id)) this.held.set(id, new Set());
    const holders = this.held.get(id);
    if (holders.has(by)) return;
    holders.add(by);
    if (holders.size > 1) return;
    this.buttons.get(id).classList.add('held');
    this.link.send({type: 'press', control: id, seq: this.pressed()});
  }

  release(id, by) {
    const holders = this.held.get(id);
    if (!holders?.delete(by) || holders.size) return;
    this.buttons.get(id).classList.remove('held');
    this.link.send({type: 'release', control: id});
  }

  releaseAll() {
    this.held.clear();
    for (const button of this.buttons.values()) button.classList.remove('held');
    for (const {panel, inputs} of this.sliders) {
      const rest = Math.min(Math.max(0, panel.low), panel.high);
      for (const input of inputs) input.value = rest;
    }
    this.link.send({type: 'blur'});
  }

  // Lights what was done on a frame, by whomever.
  light(action, panels) {
    for (const panel of panels) {
      const value = action[panel.part];
      if (panel.kind !== 'keys') continue;
      for (const c of panel.controls) {
        const on = value !== undefined && (panel.type === 'binary'
          ? value[c.index] === 1 : value === c.index);
        this.buttons.get(c.id).classList.toggle('lit', on);
      }
    }
  }

  follow(element) {
    element.addEventListener('pointerdown', (event) => {
      element.setPointerCapture(event.pointerId);
      if (element.id === 'screen' && event.pointerType === 'mouse') {
        element.requestPointerLock?.();
      }
    });
    element.addEventListener('pointermove', (event) => {
      const locked = document.pointerLockElement === element;
      if (!locked && !element.hasPointerCapture(event.pointerId)) return;
      this.moved[0] += event.movementX / FULL_TURN;
      this.moved[1] += event.movementY / FULL_TURN;
    });
  }

  flush() {
    this.pad();
    const [x, y] = this.moved;
    if (!this.pointer || (!x && !y)) return;
    const clip = (v) => Math.max(-1, Math.min(1, v));
    this.link.send({type: 'move', part: this.pointer, x: clip(x), y: clip(y)});
    this.moved = [0, 0];
  }

  // A gamepad: its cross and buttons are the controls, its sticks the rest.
  pad() {
    const pad = [...(navigator.getGamepads?.() || [])].find(Boolean);
    if (!pad) return;
    const cross = {12: 'ArrowUp', 13: 'ArrowDown', 14: 'ArrowLeft',
      15: 'ArrowRight'};
    const others = this.controls.filter((c) => !c.key.startsWith('Arrow'));
    pad.buttons.forEach((button, i) => {
      const id = cross[i] ? this.byKey.get(cross[i]) : others[i]?.id;
      if (!id) return;
      if (button.pressed) this.press(id, `pad ${i}`);
      else this.release(id, `pad ${i}`);
    });
    const axes = pad.axes.map((v) => (Math.abs(v) < STICK ? 0 : v));
    if (this.pointer) {
      this.moved[0] += axes[0] / 4 || 0;
      this.moved[1] += axes[1] / 4 || 0;
    }
    const moved = JSON.stringify(axes) !== JSON.stringify(this.axes);
    if (!moved || !this.sliders.length) return;
    this.axes = axes;
    const {panel, inputs} = this.sliders[0];
    const rest = Math.min(Math.max(0, panel.low), panel.high);
    inputs.forEach((input, i) => {
      const v = axes[i] || 0;
      input.value = rest + v * (v < 0 ? rest - panel.low : panel.high - rest);
    });
    this.link.send({type: 'steer', part: panel.part,
      values: inputs.map((input) => Number(input.value))});
  }
}
