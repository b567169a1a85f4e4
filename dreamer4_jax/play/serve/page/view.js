// The picture, the traces and the figures.

const SHOWN = 240;  // Frames that a trace shows.
const LATENCIES = 200;
const TRACES = {reward: [null, null], value: [null, null], cont: [0, 1],
  psnr: [null, null]};

function bitmap(picture) {
  const type = picture[0] === 0x89 ? 'image/png' : 'image/jpeg';
  return createImageBitmap(new Blob([picture], {type}));
}

export class View {
  constructor(canvas, real, screen) {
    this.canvas = canvas;
    this.real = real;
    this.screen = screen;
    this.context = canvas.getContext('2d');
    this.past = new Map();  // Frame number to what was said of it.
    this.number = -1;
    this.arrived = this.drawn = this.shown = 0;
    this.times = [];
    this.sent = [];  // Pairs of seq and time of a key press.
    this.latencies = [];
    addEventListener('resize', () => this.fit());
  }

  size(width, height) {
    // Setting it clears the picture, and a player may only have come back.
    if (this.canvas.width === width && this.canvas.height === height) {
      this.fit();
      return;
    }
    Object.assign(this.canvas, {width, height});
    Object.assign(this.real, {width, height});
    this.fit();
  }

  // The largest whole number of screen pixels for each pixel of the dream.
  fit() {
    const {width, height} = this.canvas;
    const dense = devicePixelRatio || 1;
    const count = this.real.offsetParent ? 2 : 1;
    const across = this.screen.clientWidth - 16 - 10 * (count - 1);
    const room = Math.min(across / count / width,
      Math.max(0.62 * innerHeight, 220) / height);
    const scale = Math.max(1, Math.floor(room * dense)) / dense;
    for (const canvas of [this.canvas, this.real]) {
      canvas.style.width = `${width * scale}px`;
      canvas.style.height = `${height * scale}px`;
    }
  }

  async show(said, picture) {
    const turn = ++this.arrived;
    this.past.set(said.n, said);
    const end = picture.length - said.real;
    const [image, beside] = await Promise.all([
      bitmap(picture.subarray(0, end)),
      said.real ? bitmap(picture.subarray(end)) : null]);
    if (turn < this.drawn) return;  // A later one was faster.
    this.drawn = turn;
    this.number = said.n;
    this.shown += 1;
    this.context.drawImage(image, 0, 0);
    image.close();
    if (beside) this.real.getContext('2d').drawImage(beside, 0, 0);
    const now = performance.now();
    this.times.push(now);
    while (this.sent.length && this.sent[0][0] <= said.seq) {
      this.latencies.push(now - this.sent.shift()[1]);
    }
    this.latencies = this.latencies.slice(-LATENCIES);
  }

  forget(after) {
    for (const n of this.past.keys()) if (n > after) this.past.delete(n);
  }

  figures() {
    const now = performance.now();
    this.times = this.times.filter((t) => t > now - 2000);
    const sorted = [...this.latencies].sort((a, b) => a - b);
    const at = (share) => sorted[Math.min(sorted.length - 1,
      Math.floor(share * sorted.length))];
    return {fps: this.times.length / 2, p50: at(0.5), p95: at(0.95),
      count: sorted.length};
  }

  traces() {
    for (const [name, limits] of Object.entries(TRACES)) {
      const canvas = document.getElementById(`trace-${name}`);
      const width = canvas.clientWidth;
      if (!width) continue;
      if (canvas.width !== width) canvas.width = width;
      this.trace(canvas, name, ...limits);
    }
  }

  trace(canvas, name, low, high) {
    const context = canvas.getContext('2d');
    const {width, height} = canvas;
    const first = Math.max(0, this.number - SHOWN + 1);
    const values = [];
    for (let n = first; n <= this.number; n += 1) {
      values.push(this.past.get(n)?.[name] ?? null);
    }
    const known = values.filter((v) => v !== null);
    const bottom = low ?? Math.min(0, ...known);
    const top = high ?? Math.max(bottom + 0.1, ...known);
    const y = (v) => height - 3 - (height - 6) * (v - bottom) / (top - bottom);
    const style = getComputedStyle(canvas.parentElement.firstElementChild);
    const line = getComputedStyle(document.documentElement)
      .getPropertyValue('--line');
    context.clearRect(0, 0, width, height);
    context.strokeStyle = line;
    context.beginPath();
    context.moveTo(0, Math.round(y(bottom)) + 0.5);
    context.lineTo(width, Math.round(y(bottom)) + 0.5);
    context.stroke();
    context.strokeStyle = style.color;
    context.lineWidth = 1.75;
    context.beginPath();
    let pen = false;
    values.forEach((v, i) => {
      if (v === null) {
        pen = false;
        return;
      }
      const x = width * i / Math.max(SHOWN / 4, values.length);
      if (pen) context.lineTo(x, y(v));
      else context.moveTo(x, y(v));
      pen = true;
    });
    context.stroke();
    const last = values.at(-1);
    document.getElementById(`now-${name}`).textContent = last === null
      || last === undefined ? '–' : last.toFixed(2);
  }
}
