/**
 * The choice of the workers for a sequence. Prefill and decode workers are chosen at once, so that no prompt is
 * computed that no worker can continue.
 */
import { createHash } from 'node:crypto';
import { ServingError } from '../../lib/process/errors.ts';
import type { Logger } from '../../lib/process/log.ts';
import { metrics } from '../../lib/process/metrics.ts';
import type { DecodeClient, PrefillClient } from '../../lib/rpc/contract.ts';
import { homeName, KvFolders } from './kv-folders.ts';
import { choosePrefillLocation } from './prefill-location.ts';
import type { WorkerPoolConfig } from './settings.ts';
import type { Describable, Worker, WorkerLease } from './worker.ts';
import { WorkerSet } from './worker-set.ts';

export interface Placement {
  readonly prefill: WorkerLease<PrefillClient>;
  /** undefined where the sequence ends with its first token. */
  readonly decode: WorkerLease<DecodeClient> | undefined;
}

/** A decode worker as a sequence would find it. */
export interface DecodeRoom {
  readonly address: string;
  readonly slots: number;
  /** Slots that no sequence has or waits for; below 0 where more sequences wait than there are slots. */
  readonly freeSlots: number;
}

/** The needs of one prompt and of each of its sequences. */
export interface PlacementRequest {
  readonly promptTokens: number;
  /** Whether its sequences go on after their first token. */
  readonly continues: boolean;
  /** Positions that one slot must hold, prompt and output together. */
  readonly positions: number;
  /** Prefill worker that may have most of the prompt in its cache. */
  readonly affinityWorker?: string | undefined;
  /** Tokens of the prompt that it may have cached, as far as can be known here. */
  readonly affinityTokens?: number;
  /** Session without such a worker: every gateway prefers the same one for it. */
  readonly homeOf?: string | undefined;
  /** Tokens of the prompt that this worker may have cached; 0 where not given. */
  readonly homeTokens?: number;
  /** Time per output token that the client hopes for, in ms; none where not given. */
  readonly tpotGoalMs?: number | undefined;
  /** Addresses of workers that have failed the prompt: used only where no other is ready. */
  readonly preferNot?: ReadonlySet<string>;
}

/**
 * Prompt tokens that a worker would have to compute, as far as can be known here.
 * @param at address of the worker; default: `affinityWorker`.
 */
export function tokensToCompute(
  { promptTokens, affinityWorker, affinityTokens = 0 }: PlacementRequest,
  at: string | undefined = affinityWorker,
): number {
  return affinityWorker !== undefined && at === affinityWorker
    ? Math.max(1, promptTokens - affinityTokens)
    : promptTokens;
}

export interface WorkerPoolOptions
  extends Pick<WorkerPoolConfig, 'connectTimeoutMs' | 'stallTimeoutMs' | 'localPrefill' | 'localPrefillTokens'> {
  /** SHA-256 (hex) of the bundle that this gateway tokenizes for. */
  readonly fingerprint: string;
  /** @param onBroken called when a connection that was there has broken. */
  readonly connectPrefill: (address: string, onBroken?: () => void) => PrefillClient;
  readonly connectDecode: (address: string, onBroken?: () => void) => DecodeClient;
  /** Sequences that other gateways say they have given a decode worker; 0 by default. */
  readonly sequencesElsewhere?: (address: string) => number;
  /** Pause between two questions to a worker, in ms. */
  readonly askEveryMs?: number;
  /** Whether its workers are those of the gateway's metrics; they are if not given. */
  readonly isMeasured?: boolean;
  readonly log: Logger;
}

/**
 * Prompts that one gateway gives a prefill worker at once: one computes, and one waits, so that the worker is never
 * idle. The other prompts wait in the gateway, where they are served in a fair order and may still go to another
 * worker.
 */
const PROMPTS_PER_WORKER = 2;
/**
 * Shortest time between two questions to all workers that are asked because of news, and longest time for which their
 * answers are gathered so that listeners look once, in ms. Each look at full slots takes up to a few ms.
 */
const GATHER_MS = 50;

export class WorkerPool {
  readonly #prefill: WorkerSet<PrefillClient>;
  readonly #decode: WorkerSet<DecodeClient>;
  readonly #closing = new AbortController();
  readonly #location: Pick<WorkerPoolConfig, 'localPrefill' | 'localPrefillTokens'>;
  readonly #kvFolders = new KvFolders();
  #capacity = 0;
  #refreshing: Promise<unknown> | undefined;
  /** When all workers were asked last, on the monotonic clock. */
  #refreshedMs = -Infinity;
  /** Asks all of them when it runs out. */
  #soon: NodeJS.Timeout | undefined;
  /** While it runs, answers are gathered. */
  #gathering: NodeJS.Timeout | undefined;
  #hasGathered = false;
  readonly #listeners = new Set<() => void>();

  constructor(options: WorkerPoolOptions) {
    const { fingerprint, connectPrefill, connectDecode, connectTimeoutMs, stallTimeoutMs, log } = options;
    this.#location = options;
    const shared = {
      fingerprint,
      answerTimeoutMs: Math.min(connectTimeoutMs, stallTimeoutMs),
      askEveryMs: options.askEveryMs ?? 1000,
      stallTimeoutMs,
      isMeasured: options.isMeasured ?? true,
      onRoom: () => this.#notify(),
      onBroken: () => this.refreshSoon(),
      onAnswer: () => {
        if (this.#gathering === undefined) this.#notify();
        else this.#hasGathered = true;
      },
      log,
    };
    this.#prefill = new WorkerSet({
      ...shared,
      role: 'prefill',
      connect: connectPrefill,
      reportedLoad: ({ queued }) => queued,
      loadElsewhere: () => 0,
      rate: ({ prefillTokensPerSecond }) => prefillTokensPerSecond,
      hasRoom: ({ jobs }) => jobs < PROMPTS_PER_WORKER,
      onAnswer: () => {
        this.#kvFolders.heard(this.#prefill.usable);
        shared.onAnswer();
      },
    });
    this.#decode = new WorkerSet({
      ...shared,
      role: 'decode',
      connect: connectDecode,
      reportedLoad: ({ slots, freeSlots, queued }) => slots - freeSlots + queued,
      loadElsewhere: options.sequencesElsewhere ?? (() => 0),
      rate: () => 0,
      hasRoom: hasDecodeRoom,
    });
  }

  /** @param lapsed addresses that are not listed any more: their workers stay as long as they answer. */
  setPrefill(listed: readonly string[], lapsed?: readonly string[]): void {
    this.#prefill.setAddresses(listed, lapsed);
  }

  setDecode(listed: readonly string[], lapsed?: readonly string[]): void {
    this.#decode.setAddresses(listed, lapsed);
  }

  /**
   * Calls `listener` whenever there may be room where there was none, or no worker where there was one.
   * @returns ends the subscription.
   */
  onChange(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  /** Whether a completion could be placed, now or when there is room. */
  get usable(): boolean {
    return this.#prefill.usable.length > 0 && this.#decode.usable.length > 0;
  }

  /** All workers that are listed, to look at. */
  get known(): {
    readonly prefill: readonly Worker<PrefillClient>[];
    readonly decode: readonly Worker<DecodeClient>[];
  } {
    return { prefill: this.#prefill.known, decode: this.#decode.known };
  }

  /** How many workers of each role are usable. */
  get usableWorkers(): { readonly prefill: number; readonly decode: number } {
    return { prefill: this.#prefill.usable.length, decode: this.#decode.usable.length };
  }

  /** @throws ServingError no_worker, unless workers of both roles are usable. */
  assertUsable(): void {
    this.#prefill.assertUsable();
    this.#decode.assertUsable();
  }

  /**
   * Positions that a slot of every usable worker holds; the last known number where none is usable now.
   * @throws ServingError no_worker, where none was ever usable.
   */
  get capacity(): number {
    if (this.usable) {
      const usable = [...this.#prefill.usable, ...this.#decode.usable];
      this.#capacity = Math.min(...usable.map(({ capacity }) => capacity));
    }
    if (this.#capacity === 0) this.assertUsable();
    return this.#capacity;
  }

  /** Prompt tokens that usable workers compute per second, as they measured it; 0 where none has measured it yet. */
  get prefillTokensPerSecond(): number {
    return sum(this.#prefill.usable, ({ description }) => description?.prefillTokensPerSecond ?? 0);
  }

  /** Prompt tokens that wait, or are still to be computed, on usable prefill workers. */
  get prefillBacklog(): number {
    return sum(this.#prefill.usable, ({ totalLoad }) => totalLoad);
  }

  /** Whether there are workers that could take the prompt, now or when they have room. */
  fits({ continues, positions }: PlacementRequest): boolean {
    const hold = ({ capacity }: Worker<Describable>) => capacity >= positions;
    return this.#prefill.usable.some(hold) && (!continues || this.#decode.usable.some(hold));
  }

  /** Workers with room for the prompt and one of its sequences, or undefined. */
  place(asked: PlacementRequest): Placement | undefined {
    const { continues, positions, preferNot, affinityWorker } = asked;
    const heir = this.#kvFolders.heirOf(affinityWorker, this.#prefill.usable);
    const request = { ...asked, affinityWorker: heir?.address ?? affinityWorker };
    const prefills = without(this.#prefill.ready(positions), preferNot);
    const decoders = continues ? this.#readyToDecode(asked) : [];
    if (prefills.length === 0 || (continues && decoders.length === 0)) return undefined;
    const prefill = continues ? this.#choosePrefill(request, prefills, decoders) : preferred(prefills, request);
    const decoder = decoders.find(({ address }) => address === prefill.address) ?? decoders[0];
    return {
      prefill: this.#prefill.lease(prefill, tokensToCompute(request, prefill.address)),
      decode: decoder && this.#decode.lease(decoder, 1),
    };
  }

  /** A decode worker with room for one more sequence of a prompt that was placed just now, or undefined. */
  placeOneMore(request: PlacementRequest, { prefill, decode }: Placement): WorkerLease<DecodeClient> | undefined {
    // In a worker that computes the prompt itself a second sequence does not wait for a slot.
    const isLocal = decode?.address === prefill.address;
    const worker = isLocal
      ? this.#decode.ready(request.positions).find((each) => each.address === prefill.address && freeSlots(each) > 0)
      : this.#readyToDecode(request)[0];
    return worker && this.#decode.lease(worker, 1);
  }

  /**
   * Decode workers that take one more sequence: those with a free slot, then those where it would wait for one. With a
   * hope for the time per token they are those alone, with a free slot where any has one, that {@link quickEnough}
   * finds.
   */
  #readyToDecode({ positions, preferNot, tpotGoalMs }: PlacementRequest): readonly Worker<DecodeClient>[] {
    const ready = without(this.#decode.ready(positions), preferNot);
    const free = ready.filter((worker) => freeSlots(worker) > 0);
    if (tpotGoalMs !== undefined) return quickEnough(free.length > 0 ? free : ready, tpotGoalMs);
    return [...free, ...ready.filter((worker) => freeSlots(worker) <= 0)];
  }

  /** Decode workers whose slots hold the request; none where no prefill worker has room for its prompt. */
  decodeRoom({ positions }: PlacementRequest): DecodeRoom[] {
    return this.#prefill.ready(positions).length === 0 ? [] : this.slotsFor(positions);
  }

  /** Decode workers whose slots hold so many positions, whatever prefill workers do. */
  slotsFor(positions: number): DecodeRoom[] {
    const hold = this.#decode.usable.filter(({ capacity }) => capacity >= positions);
    return hold.map((worker) => {
      return { address: worker.address, slots: worker.description?.slots ?? 0, freeSlots: freeSlots(worker) };
    });
  }

  /** Slots of the decode workers together, and how many of them sequences have. */
  get slots(): { readonly total: number; readonly busy: number } {
    const workers = this.#decode.usable.map((worker) => ({
      total: worker.description?.slots ?? 0,
      free: Math.max(freeSlots(worker), 0),
    }));
    const sum = (of: (worker: (typeof workers)[number]) => number) => workers.reduce((all, each) => all + of(each), 0);
    return { total: sum(({ total }) => total), busy: sum(({ total, free }) => total - free) };
  }

  /** What one worker of each role does, on average: prompt tokens per second, and slots; 0 where that is not known. */
  get perWorker(): { readonly prefillRate: number; readonly slots: number } {
    const rates = this.#prefill.usable.map(({ description }) => description?.prefillTokensPerSecond ?? 0);
    const known = rates.filter((rate) => rate > 0);
    const decoders = this.#decode.usable;
    return {
      prefillRate: known.length === 0 ? 0 : sum(known, (rate) => rate) / known.length,
      slots: decoders.length === 0 ? 0 : this.slots.total / decoders.length,
    };
  }

  /** Devices that the decode workers compute on, by name. */
  get devices(): readonly string[] {
    return [...new Set(this.#decode.usable.flatMap(({ description }) => description?.device || []))];
  }

  /** The prefill worker for a prompt that is to be decoded on one of `decoders`. */
  #choosePrefill(
    request: PlacementRequest,
    prefills: readonly Worker<PrefillClient>[],
    decoders: readonly Worker<DecodeClient>[],
  ): Worker<PrefillClient> {
    const { promptTokens, affinityWorker, affinityTokens = 0 } = request;
    const local = prefills.filter((prefill) => decoders.some(({ address }) => address === prefill.address));
    // Workers that decode as well and are full are left out: a prompt would wait there for sequences.
    const remote = prefills.filter(({ address }) => !this.#decode.has(address));
    if (local.length + remote.length === 0) return preferred(prefills, request);
    const decision = choosePrefillLocation({
      policy: this.#location.localPrefill,
      localTokens: local.some(({ address }) => address === affinityWorker)
        ? promptTokens - affinityTokens
        : promptTokens,
      localMaxTokens: this.#location.localPrefillTokens,
      local: local.length > 0,
      remote: remote.length > 0,
      remoteIdle: remote.some(({ totalLoad }) => totalLoad === 0),
    });
    metrics.prefillPlaced.inc({ ...decision });
    return preferred(decision.where === 'local' ? local : remote, request);
  }

  /** Asks every worker once, unless all are being asked just now. Resolves when they have answered. */
  async refresh(): Promise<void> {
    this.#refreshing ??= this.#askAll().finally(() => {
      this.#refreshing = undefined;
    });
    await this.#refreshing;
  }

  /** The same, without waiting for the answers: at once, or 50 ms after all were asked last if that is later. */
  refreshSoon(): void {
    if (this.#soon !== undefined || this.#closing.signal.aborted) return;
    const ask = () => {
      this.#soon = undefined;
      void this.refresh();
    };
    const leftMs = this.#refreshedMs + GATHER_MS - performance.now();
    if (leftMs <= 0) ask();
    else this.#soon = setTimeout(ask, leftMs).unref();
  }

  async #askAll(): Promise<void> {
    const { signal } = this.#closing;
    this.#refreshedMs = performance.now();
    this.#gathering = setTimeout(() => this.#endGathering(), GATHER_MS).unref();
    try {
      await Promise.all([this.#prefill.refresh(signal), this.#decode.refresh(signal)]);
    } finally {
      this.#endGathering();
    }
  }

  #endGathering(): void {
    clearTimeout(this.#gathering);
    this.#gathering = undefined;
    if (!this.#hasGathered) return;
    this.#hasGathered = false;
    this.#notify();
  }

  #notify(): void {
    for (const listener of this.#listeners) listener();
  }

  /** Asks every worker, and those that come later, again and again until `close`. */
  watch(): void {
    this.#prefill.watch(this.#closing.signal);
    this.#decode.watch(this.#closing.signal);
  }

  close(): void {
    this.#closing.abort(new ServingError('draining', 'the gateway is shutting down'));
    clearTimeout(this.#soon);
    this.#prefill.close();
    this.#decode.close();
  }
}

/**
 * Whether a decode worker may be given one more sequence, so that KV pressure stays bounded: at most 1.5 x its slots.
 * A sequence whose prompt is computed then finds the next free slot; the others wait in the gateway as tokens that cost
 * nothing yet. A gateway with no sequence there may always send one, because its view of other gateways is old by then.
 */
function hasDecodeRoom({ description, load, totalLoad }: Worker<DecodeClient>): boolean {
  const slots = description?.slots ?? 0;
  return load === 0 || totalLoad < slots + Math.ceil(slots / 2);
}

/**
 * The worker that has most of the prompt, or the home of its session, unless its backlog exceeds the tokens that its
 * cache would save; else the least loaded.
 * @param workers at least one, the least loaded first.
 */
function preferred<C extends Describable>(
  workers: readonly Worker<C>[],
  { affinityWorker, affinityTokens = 0, homeOf, homeTokens = 0 }: PlacementRequest,
): Worker<C> {
  const least = workers[0] as Worker<C>;
  const known = workers.find(({ address }) => address === affinityWorker);
  const cached = known ?? (homeOf === undefined ? least : homeAmong(workers, homeOf));
  return cached.totalLoad <= least.totalLoad + (known ? affinityTokens : homeTokens) ? cached : least;
}

/**
 * The home of a session by rendezvous hashing: a worker that comes or goes moves its own sessions alone. Of workers
 * that share a folder, which have the same KV, it is the least loaded.
 */
function homeAmong<C extends Describable>(workers: readonly Worker<C>[], session: string): Worker<C> {
  const weighed = workers.map((worker) => {
    const weight = createHash('sha256')
      .update(`${session} ${homeName(worker)}`)
      .digest('hex');
    return { worker, weight };
  });
  return weighed.reduce((best, each) => (each.weight > best.weight ? each : best)).worker;
}

function without<C extends Describable>(
  workers: readonly Worker<C>[],
  preferNot: ReadonlySet<string> = new Set(),
): readonly Worker<C>[] {
  const others = workers.filter(({ address }) => !preferNot.has(address));
  return others.length > 0 ? others : workers;
}

/** Decode workers whose steps take up to so much of the time of the quickest one's count as equally quick. */
const EQUALLY_QUICK = 1.1;

/**
 * The decode workers that keep a hope for the time per token, in ms, with one sequence more; where none does, those
 * that have measured no step, such as workers of an earlier release; else the quickest. They are in the order given,
 * and equal otherwise: what they have cached and their load decide among them.
 */
function quickEnough(workers: readonly Worker<DecodeClient>[], goalMs: number): readonly Worker<DecodeClient>[] {
  const timed = workers.map((worker) => ({ worker, ms: nextStepMs(worker) }));
  const atMost = (mostMs: number) => timed.flatMap(({ worker, ms = Infinity }) => (ms <= mostMs ? [worker] : []));
  const keeping = atMost(goalMs);
  if (keeping.length > 0) return keeping;
  const unknown = timed.flatMap(({ worker, ms }) => (ms === undefined ? [worker] : []));
  return unknown.length > 0 ? unknown : atMost(EQUALLY_QUICK * Math.min(...timed.map(({ ms = Infinity }) => ms)));
}

/**
 * Time that a step of a decode worker takes with one sequence more than it has, in ms, as it has measured it: that of
 * the next larger size where it has lately made no step of that one, else of the largest that it has made. 0 where it
 * has lately made none, and is idle; undefined where it has never made one, or does not say.
 */
function nextStepMs({ description, totalLoad }: Worker<DecodeClient>): number | undefined {
  const { stepMs = [], slots = 0 } = description ?? {};
  if (stepMs.length === 0) return undefined;
  const sequences = Math.min(Math.ceil(totalLoad) + 1, slots);
  const atLeast = stepMs.slice(Math.max(sequences - 1, 0)).find((ms) => ms > 0);
  return atLeast ?? stepMs.findLast((ms) => ms > 0) ?? 0;
}

const freeSlots = ({ description, totalLoad }: Worker<DecodeClient>) => (description?.slots ?? 0) - totalLoad;

const sum = <T>(items: readonly T[], of: (item: T) => number) => items.reduce((total, item) => total + of(item), 0);
