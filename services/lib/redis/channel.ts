/**
 * Messages between the processes that use one Redis, each to all of them, the sender included. All receive them in the
 * same order: they are published by one server, of a cluster too. Delivery is not promised: a message is lost where
 * Redis or the connection is. Each process that hears them says so every few seconds.
 */
import { randomBytes } from 'node:crypto';
import type { RedisConnection } from './connection.ts';

export interface Message {
  /** Name of the sending process. */
  readonly from: string;
  readonly kind: string;
  readonly body: unknown;
}

export interface ChannelOptions {
  readonly redis: Pick<RedisConnection, 'run' | 'subscribe'>;
  /** Processes of one name hear each other. */
  readonly name: string;
  /** Takes messages of all kinds but the one by which processes say that they are there. */
  readonly onMessage: (message: Message) => void;
  /** Pause between two signs of life, in ms. */
  readonly aliveEveryMs?: number;
}

const ALIVE_EVERY_MS = 2_000;
/** Signs of life that a process may miss, until it counts as gone or the connection counts as dead. */
const MISSED = 4;
/** Messages that may be on their way at once; more are dropped, so that a Redis that hangs costs no memory. */
const MOST_PENDING = 1_000;
const PUBLISH = `return redis.call('PUBLISH', KEYS[1], ARGV[1])`;

export class RedisChannel {
  /** Name of this process. */
  readonly self = randomBytes(9).toString('base64url');
  readonly #options: ChannelOptions;
  readonly #aliveEveryMs: number;
  readonly #reconnect: () => void;
  #signs: NodeJS.Timeout | undefined;
  #closed = false;
  /** When each process was heard last, in ms of the monotonic clock. */
  readonly #heardAtMs = new Map<string, number>();
  /** Own signs of life that were published and have not come back. */
  #unheard = 0;
  #pending = 0;

  constructor(options: ChannelOptions) {
    this.#options = options;
    this.#aliveEveryMs = options.aliveEveryMs ?? ALIVE_EVERY_MS;
    const hears = () => {
      this.#unheard = 0;
      if (this.#closed) return;
      this.#signs ??= setInterval(() => void this.#signOfLife(), this.#aliveEveryMs).unref();
      void this.#signOfLife();
    };
    this.#reconnect = options.redis.subscribe(options.name, (text) => this.#receive(text), hears);
  }

  /** Processes that hear each other, this one included. 0 while nothing is heard at all. */
  get alive(): number {
    return this.#heardAtMs.size;
  }

  /** @returns whether Redis has taken the message. */
  async publish(kind: string, body: unknown): Promise<boolean> {
    if (this.#pending >= MOST_PENDING) return false;
    this.#pending++;
    try {
      const text = JSON.stringify({ from: this.self, kind, body } satisfies Message);
      await this.#options.redis.run((client) => client.eval(PUBLISH, 1, this.#options.name, text), 'never');
      return true;
    } catch {
      return false;
    } finally {
      this.#pending--;
    }
  }

  close(): void {
    this.#closed = true;
    clearInterval(this.#signs);
  }

  async #signOfLife(): Promise<void> {
    const latest = performance.now() - MISSED * this.#aliveEveryMs;
    for (const [name, heardAtMs] of this.#heardAtMs) if (heardAtMs < latest) this.#heardAtMs.delete(name);
    if (!(await this.publish('alive', null))) return;
    if (++this.#unheard <= MISSED) return;
    this.#unheard = 0;
    this.#reconnect();
  }

  #receive(text: string): void {
    const message = parse(text);
    if (message === undefined) return;
    this.#heardAtMs.set(message.from, performance.now());
    if (message.kind !== 'alive') this.#options.onMessage(message);
    else if (message.from === this.self) this.#unheard = 0;
  }
}

/** undefined for what no such process has sent. */
function parse(text: string): Message | undefined {
  try {
    const { from, kind, body } = JSON.parse(text);
    return typeof from === 'string' && typeof kind === 'string' ? { from, kind, body } : undefined;
  } catch {
    return undefined;
  }
}
