// The socket: messages out, frames and news in; it comes back by itself.

const KEPT = 'dreamer4-session';
const PING_EVERY = 5000;
const HEAD = 5;
const FINAL = /another window|silent for|too many|places are taken/;

export class Link {
  // `on` has functions `frame(said, picture)`, `state`, `welcome`, `error`,
  // `ready`, `recorded`, and `status(text, connected, final)`.
  constructor(on) {
    this.on = on;
    this.tries = 0;
    this.session = sessionStorage.getItem(KEPT);
    this.connect();
    setInterval(() => this.send({type: 'ping', t: performance.now()}),
      PING_EVERY);
  }

  connect() {
    const scheme = location.protocol === 'https:' ? 'wss:' : 'ws:';
    this.socket = new WebSocket(`${scheme}//${location.host}/play`);
    this.socket.binaryType = 'arraybuffer';
    this.socket.onopen = () => {
      const hello = {type: 'hello'};
      if (this.session) hello.session = this.session;
      this.send(hello);
    };
    this.socket.onmessage = (event) => this.receive(event.data);
    this.socket.onclose = (event) => this.closed(event.reason);
  }

  get open() {
    return this.socket.readyState === WebSocket.OPEN;
  }

  send(message) {
    if (this.open) this.socket.send(JSON.stringify(message));
  }

  receive(data) {
    if (data instanceof ArrayBuffer) {
      const view = new DataView(data);
      const end = HEAD + view.getUint32(1, true);
      const text = new TextDecoder().decode(new Uint8Array(data, HEAD,
        end - HEAD));
      this.on.frame(JSON.parse(text), new Uint8Array(data, end));
      return;
    }
    const news = JSON.parse(data);
    if (news.type === 'welcome') {
      this.tries = 0;
      this.session = news.session;
      sessionStorage.setItem(KEPT, news.session);
      this.on.status('Connected', true, false);
    }
    if (news.type === 'error' && news.reason.startsWith('session:')) {
      this.forget();
      this.send({type: 'hello'});
      return;
    }
    if (news.type === 'error' && !this.session) {
      this.on.status(news.reason, false, false);  // No place: asks again.
    }
    if (this.on[news.type]) this.on[news.type](news);
  }

  forget() {
    this.session = null;
    sessionStorage.removeItem(KEPT);
  }

  closed(reason) {
    if (FINAL.test(reason)) {
      if (!reason.includes('another window')) this.forget();
      this.on.status(reason, false, true);
      return;
    }
    this.on.status('Connection lost, trying again…', false, false);
    this.tries += 1;
    setTimeout(() => this.connect(), Math.min(4000, 250 * 2 ** this.tries));
  }
}
