/**
 * Which workers a completion goes to. Addresses are fixed; who answers at them is asked again and again, so that a worker
 * that comes up later is found and one that is gone is dropped. Only workers of this gateway's own bundle are used: the
 * token ids mean nothing to others.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { ServingError } from '../lib/process/errors.ts';
import type { Logger } from '../lib/process/log.ts';
import type { DecodeClient, PrefillClient } from '../lib/rpc/contract.ts';
import type { WorkerDescription__Output } from '../lib/rpc/gen/llavacode/v1/WorkerDescription.ts';

interface Describable {
  describe(signal: AbortSignal): Promise<WorkerDescription__Output>;
  close(): void;
}

interface Worker<C> {
  readonly address: string;
  readonly client: C;
  /** How many positions a slot of it holds; undefined while it cannot be used. */
  capacity: number | undefined;
  /** Why it cannot be used. */
  problem: string;
  /** Work that this gateway has given it and that has not ended. */
  load: number;
  /** When it was last chosen, by count: equals take turns. */
  chosen: number;
}

/** A worker that a completion counts on until `release`. */
export interface Hold<C> {
  readonly address: string;
  readonly client: C;
  /** Gives its load back; twice is harmless. */
  release(): void;
  /** Leaves the worker alone until it answers again, if the error says that it is gone. */
  failed(error: unknown): void;
}

export interface Placement {
  readonly prefill: Hold<PrefillClient>;
  /** One per choice. */
  readonly decodes: readonly Hold<DecodeClient>[];
}

export interface WorkerPoolOptions {
  /** Of the bundle that this gateway tokenizes for. */
  readonly fingerprint: string;
  readonly prefill: readonly { readonly address: string; readonly client: PrefillClient }[];
  readonly decode: readonly { readonly address: string; readonly client: DecodeClient }[];
  /** Deadline of one question to a worker. */
  readonly connectTimeoutMs: number;
  /** Pause between two questions to a worker. */
  readonly askEveryMs?: number;
  readonly log: Logger;
}

/** Errors after which a worker is left alone until it has answered again. */
const GONE: ReadonlySet<string> = new Set(['worker_lost', 'no_worker', 'draining']);

export class WorkerPool {
  readonly #prefill: WorkerSet<PrefillClient>;
  readonly #decode: WorkerSet<DecodeClient>;
  readonly #closing = new AbortController();

  constructor(options: WorkerPoolOptions) {
    this.#prefill = new WorkerSet('prefill', options.prefill, options);
    this.#decode = new WorkerSet('decode', options.decode, options);
  }

  /** Whether a completion could be placed now. */
  get usable(): boolean {
    return this.#prefill.usable.length > 0 && this.#decode.usable.length > 0;
  }

  /**
   * Positions that a slot of every usable worker holds.
   * @throws ServingError no_worker
   */
  get capacity(): number {
    const usable = [...this.#prefill.demandUsable(), ...this.#decode.demandUsable()];
    return Math.min(...usable.map((worker) => worker.capacity ?? 0));
  }

  /**
   * Both halves at once, so that no prompt is computed that nobody can continue. A decoder in the prefill worker's own
   * process comes first: its KV need not travel.
   * @throws ServingError no_worker
   */
  place(promptTokens: number, choices: number): Placement {
    this.#decode.demandUsable();
    const prefill = this.#prefill.choose(promptTokens);
    return { prefill, decodes: Array.from({ length: choices }, () => this.#decode.choose(1, prefill.address)) };
  }

  /** Asks every worker once. */
  async refresh(): Promise<void> {
    await Promise.all([this.#prefill.refresh(this.#closing.signal), this.#decode.refresh(this.#closing.signal)]);
  }

  /** Asks every worker again and again until `close`. */
  watch(): void {
    this.#prefill.watch(this.#closing.signal);
    this.#decode.watch(this.#closing.signal);
  }

  close(): void {
    this.#closing.abort(new ServingError('draining', 'the gateway is shutting down'));
    this.#prefill.close();
    this.#decode.close();
  }
}

/** The workers of one role. */
class WorkerSet<C extends Describable> {
  readonly #role: string;
  readonly #workers: Worker<C>[];
  readonly #options: WorkerPoolOptions;
  #choices = 0;

  constructor(role: string, peers: readonly { address: string; client: C }[], options: WorkerPoolOptions) {
    this.#role = role;
    this.#options = options;
    const fresh = { capacity: undefined, problem: 'has not answered yet', load: 0, chosen: 0 };
    this.#workers = peers.map(({ address, client }) => ({ address, client, ...fresh }));
  }

  get usable(): Worker<C>[] {
    return this.#workers.filter((worker) => worker.capacity !== undefined);
  }

  demandUsable(): Worker<C>[] {
    const usable = this.usable;
    if (usable.length > 0) return usable;
    const states = this.#workers.map((worker) => `${worker.address} ${worker.problem}`).join('; ');
    throw new ServingError('no_worker', `no ${this.#role} worker: ${states || 'none is configured'}`, {
      retryAfterSeconds: 1,
    });
  }

  /** The least loaded worker, or the one at `near`. */
  choose(load: number, near?: string): Hold<C> {
    const usable = this.demandUsable();
    const worker =
      usable.find(({ address }) => address === near) ??
      usable.reduce((a, b) => (b.load < a.load || (b.load === a.load && b.chosen < a.chosen) ? b : a));
    worker.load += load;
    worker.chosen = ++this.#choices;
    let held = load;
    return {
      address: worker.address,
      client: worker.client,
      release: () => {
        worker.load -= held;
        held = 0;
      },
      failed: (error) => {
        const failure = ServingError.from(error);
        if (GONE.has(failure.code)) this.#drop(worker, `failed a request (${failure.message})`);
      },
    };
  }

  async refresh(closing: AbortSignal): Promise<void> {
    await Promise.all(this.#workers.map((worker) => this.#ask(worker, closing)));
  }

  watch(closing: AbortSignal): void {
    for (const worker of this.#workers) void this.#askForever(worker, closing);
  }

  close(): void {
    for (const worker of this.#workers) worker.client.close();
  }

  async #askForever(worker: Worker<C>, closing: AbortSignal): Promise<void> {
    while (!closing.aborted) {
      await this.#ask(worker, closing);
      // Rejects only by the signal, which ends the loop.
      await sleep(this.#options.askEveryMs ?? 1000, undefined, { signal: closing }).catch(() => {});
    }
  }

  async #ask(worker: Worker<C>, closing: AbortSignal): Promise<void> {
    const { fingerprint, connectTimeoutMs, log } = this.#options;
    try {
      const answer = await worker.client.describe(AbortSignal.timeout(connectTimeoutMs));
      if (answer.fingerprint !== fingerprint) {
        this.#drop(worker, `serves bundle ${answer.fingerprint}, this gateway bundle ${fingerprint}`);
        return;
      }
      if (worker.capacity === undefined) log.info({ address: worker.address, role: this.#role }, 'worker is usable');
      worker.capacity = answer.capacity;
    } catch (error) {
      if (!closing.aborted) this.#drop(worker, `does not answer (${error instanceof Error ? error.message : error})`);
    }
  }

  #drop(worker: Worker<C>, problem: string): void {
    if (worker.capacity !== undefined || worker.problem !== problem) {
      this.#options.log.warn({ address: worker.address, role: this.#role, problem }, 'worker is not usable');
    }
    worker.capacity = undefined;
    worker.problem = problem;
  }
}
