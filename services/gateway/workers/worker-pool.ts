/** Which workers a completion goes to: both halves at once, so that no prompt is computed that nobody can continue. */
import { ServingError } from '../../lib/process/errors.ts';
import type { Logger } from '../../lib/process/log.ts';
import { metrics } from '../../lib/process/metrics.ts';
import type { DecodeClient, PrefillClient } from '../../lib/rpc/contract.ts';
import { choosePrefillLocation, type LocalPrefill } from './prefill-location.ts';
import { type Worker, type WorkerLease, WorkerSet } from './worker-set.ts';

export interface Placement {
  readonly prefill: WorkerLease<PrefillClient>;
  /** One per choice that is to be decoded. */
  readonly decodes: readonly WorkerLease<DecodeClient>[];
}

/** What a prompt asks of the workers. */
export interface PlacementRequest {
  readonly promptTokens: number;
  /** Choices that go on after their first token. */
  readonly decodes: number;
  /** Of a slot: prompt and output together. */
  readonly positions: number;
  /** Prefill worker that may have most of the prompt. */
  readonly affinityWorker?: string | undefined;
  /** How much of it, in tokens, as far as can be known here. */
  readonly affinityTokens?: number;
  /** Workers that have failed it: used where no other is ready. */
  readonly preferNot?: ReadonlySet<string>;
}

/** Prompt tokens that a worker has left to compute of it, as far as can be known here; at any worker, at the best. */
export function tokensToCompute(
  { promptTokens, affinityWorker, affinityTokens = 0 }: PlacementRequest,
  at: string | undefined = affinityWorker,
): number {
  return affinityWorker !== undefined && at === affinityWorker
    ? Math.max(1, promptTokens - affinityTokens)
    : promptTokens;
}

export interface WorkerPoolOptions {
  /** Of the bundle that this gateway tokenizes for. */
  readonly fingerprint: string;
  readonly connectPrefill: (address: string) => PrefillClient;
  readonly connectDecode: (address: string) => DecodeClient;
  /** Deadline of one question to a worker. */
  readonly answerTimeoutMs: number;
  /** See WorkerSetOptions. */
  readonly stallTimeoutMs: number;
  /** Pause between two questions to a worker. */
  readonly askEveryMs?: number;
  readonly localPrefill?: LocalPrefill;
  /** See whereToPrefill. */
  readonly localPrefillTokens?: number;
  readonly log: Logger;
}

/**
 * Prompts that one gateway gives a prefill worker at once: one computes, and one waits so that the worker need not.
 * Others wait here, where they are served in a fair order and may still go to another worker.
 */
const PROMPTS_PER_WORKER = 2;

export class WorkerPool {
  readonly #prefill: WorkerSet<PrefillClient>;
  readonly #decode: WorkerSet<DecodeClient>;
  readonly #closing = new AbortController();
  readonly #localPrefill: LocalPrefill;
  readonly #localPrefillTokens: number;
  #capacity = 0;
  #onChange: () => void = () => {};

  constructor({
    connectPrefill,
    connectDecode,
    askEveryMs = 1000,
    localPrefill = 'auto',
    localPrefillTokens = 256,
    ...rest
  }: WorkerPoolOptions) {
    this.#localPrefill = localPrefill;
    this.#localPrefillTokens = localPrefillTokens;
    const options = { ...rest, askEveryMs, onChange: () => this.#onChange() };
    this.#prefill = new WorkerSet({
      ...options,
      role: 'prefill',
      connect: connectPrefill,
      reportedLoad: ({ queued }) => queued,
      rate: ({ prefillTokensPerSecond }) => prefillTokensPerSecond,
      hasRoom: (worker) => worker.jobs.size < PROMPTS_PER_WORKER,
    });
    this.#decode = new WorkerSet({
      ...options,
      role: 'decode',
      connect: connectDecode,
      reportedLoad: ({ slots, freeSlots, queued }) => slots - freeSlots + queued,
      rate: () => 0,
      hasRoom: hasDecodeRoom,
    });
  }

  setPrefill(addresses: readonly string[]): void {
    this.#prefill.setAddresses(addresses);
  }

  setDecode(addresses: readonly string[]): void {
    this.#decode.setAddresses(addresses);
  }

  /** Called whenever there may be room where there was none, or no worker where there was one. */
  set onChange(onChange: () => void) {
    this.#onChange = onChange;
  }

  /** Whether a completion could be placed, now or when there is room. */
  get usable(): boolean {
    return this.#prefill.usable.length > 0 && this.#decode.usable.length > 0;
  }

  /** @throws ServingError no_worker, unless there are both halves. */
  assertUsable(): void {
    this.#prefill.assertUsable();
    this.#decode.assertUsable();
  }

  /**
   * Positions that a slot of every usable worker holds; what it was last where none is usable now.
   * @throws ServingError no_worker, where none ever was.
   */
  get capacity(): number {
    if (this.usable) {
      const usable = [...this.#prefill.usable, ...this.#decode.usable];
      this.#capacity = Math.min(...usable.map((worker) => worker.described?.capacity ?? 0));
    }
    if (this.#capacity === 0) this.assertUsable();
    return this.#capacity;
  }

  /** Prompt tokens that usable workers compute per second, as they measured it; 0 where none has yet. */
  get prefillTokensPerSecond(): number {
    return sum(this.#prefill.usable, (worker) => worker.described?.prefillTokensPerSecond ?? 0);
  }

  /** Prompt tokens that wait, or are still to be computed, on usable prefill workers. */
  get prefillBacklog(): number {
    return sum(this.#prefill.usable, (worker) => worker.load + worker.otherGatewaysLoad);
  }

  /** Whether there are workers that could take it, now or when they have room. */
  fits({ decodes, positions }: PlacementRequest): boolean {
    const hold = ({ described }: Worker<unknown>) => (described?.capacity ?? 0) >= positions;
    return this.#prefill.usable.some(hold) && (decodes === 0 || this.#decode.usable.some(hold));
  }

  /** Workers with room for all of it, or undefined. */
  place(demand: PlacementRequest): Placement | undefined {
    const { decodes, positions, preferNot } = demand;
    const prefills = without(this.#prefill.ready(positions), preferNot);
    // More choices than there are slots have room nowhere: what is over waits in the decode worker.
    const ready = decodes === 0 ? [] : without(this.#decode.ready(positions), preferNot);
    if (prefills.length === 0 || (decodes > 0 && ready.length === 0)) return undefined;
    const prefill = decodes === 0 ? preferred(prefills, demand) : this.#wherePrefilled(demand, prefills, ready);
    const sameWorker = ready.find(({ address }) => address === prefill.address);
    const chosen = Array.from({ length: decodes }, () => {
      const worker = sameWorker ?? ready.reduce((a, b) => (busier(a, b) ? b : a));
      return this.#decode.lease(worker, 1);
    });
    return { prefill: this.#prefill.lease(prefill, tokensToCompute(demand, prefill.address)), decodes: chosen };
  }

  /** The prefill worker for a prompt that is to be decoded on one of `ready`. */
  #wherePrefilled(
    demand: PlacementRequest,
    prefills: readonly Worker<PrefillClient>[],
    ready: readonly Worker<DecodeClient>[],
  ): Worker<PrefillClient> {
    const { promptTokens, affinityWorker, affinityTokens = 0 } = demand;
    const local = prefills.filter((prefill) => ready.some(({ address }) => address === prefill.address));
    // Not those that decode as well and are full: prompts would wait there for sequences.
    const remote = prefills.filter(({ address }) => !this.#decode.has(address));
    if (local.length + remote.length === 0) return preferred(prefills, demand);
    const decision = choosePrefillLocation({
      policy: this.#localPrefill,
      localTokens: local.some(({ address }) => address === affinityWorker)
        ? promptTokens - affinityTokens
        : promptTokens,
      localMaxTokens: this.#localPrefillTokens,
      local: local.length > 0,
      remote: remote.length > 0,
      remoteIdle: remote.some(({ load, otherGatewaysLoad }) => load + otherGatewaysLoad === 0),
    });
    metrics.prefillPlaced.inc({ ...decision });
    return preferred(decision.where === 'local' ? local : remote, demand);
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

/**
 * KV pressure: a decoder is given half as many sequences again as it has slots, so that one whose prompt is computed finds
 * the next slot, and no more; the rest waits here as tokens that cost nothing yet. One of ours always goes, since what we
 * know of others is a second old.
 */
function hasDecodeRoom({ described, load, otherGatewaysLoad }: Worker<DecodeClient>): boolean {
  const slots = described?.slots ?? 0;
  return load === 0 || load + otherGatewaysLoad < slots + Math.ceil(slots / 2);
}

/**
 * The one at `near`, unless more waits there than it saves; else the least loaded.
 * @param workers at least one, the least loaded first.
 */
function preferred<C>(
  workers: readonly Worker<C>[],
  { affinityWorker, affinityTokens = 0 }: PlacementRequest,
): Worker<C> {
  const least = workers[0] as Worker<C>;
  const known = workers.find(({ address }) => address === affinityWorker) ?? least;
  return known.load + known.otherGatewaysLoad <= least.load + least.otherGatewaysLoad + affinityTokens ? known : least;
}

function without<C>(workers: readonly Worker<C>[], preferNot: ReadonlySet<string> = new Set()): readonly Worker<C>[] {
  const others = workers.filter(({ address }) => !preferNot.has(address));
  return others.length > 0 ? others : workers;
}

const busier = <C>(a: Worker<C>, b: Worker<C>) => {
  const difference = a.load + a.otherGatewaysLoad - b.load - b.otherGatewaysLoad;
  return difference > 0 || (difference === 0 && a.chosen > b.chosen);
};

const sum = <T>(items: readonly T[], of: (item: T) => number) => items.reduce((total, item) => total + of(item), 0);
