/**
 * Admission before work: a prompt waits here, in a fair order, until workers have room for its prefill and decode. The
 * queue is bounded by tokens, not by requests: it holds no more than can be computed within the target TTFT. A place is
 * reserved at the moment of the check, so that a burst cannot pass the check together.
 *
 * What is granted is a sequence: those of one prompt whose turns come together are granted together, and those for
 * which there is no room wait on and hold nothing. Tenants with their share of the slots leave some free for others
 * (spare-slots.ts). A prompt that finds all slots taken by tenants with more than their share gets one of them after a
 * moment (preemption.ts).
 */
import { ServingError } from '../../lib/process/errors.ts';
import { metrics, partOf } from '../../lib/process/metrics.ts';
import type { DecodeClient } from '../../lib/rpc/contract.ts';
import { TRIAL_TENANT } from '../request.ts';
import type { WorkerPoolConfig } from '../workers/settings.ts';
import type { WorkerLease } from '../workers/worker.ts';
import type { DecodeRoom, Placement, PlacementRequest, WorkerPool } from '../workers/worker-pool.ts';
import { FairQueue } from './fair-queue.ts';
import {
  type Exchange,
  type HeldElsewhere,
  isAboveShare,
  type PlacedSequence,
  SlotHolders,
  type Standing,
  sequencesToPreempt,
  sequencesToYield,
} from './preemption.ts';
import { type DecodeLease, type Grant, PREEMPTED, QueuedPrompt, type QueueRequest } from './queued-prompt.ts';
import {
  type BlockedElsewhere,
  HEARD_WITHIN_MS,
  NEWS_EVERY_MS,
  PATIENCE_MS,
  type ServiceExchange,
  type SlotNews,
} from './service-exchange.ts';
import { ServiceRate } from './service-rate.ts';
import type { AdmissionConfig } from './settings.ts';
import { ActiveTenants, leavesSpare, type Sharing, sharingTenants } from './spare-slots.ts';

export interface DispatcherOptions
  extends Pick<AdmissionConfig, 'targetTtftMs' | 'queueOrder' | 'preemptAfterMs' | 'spareSlots'>,
    Pick<WorkerPoolConfig, 'connectTimeoutMs'> {
  readonly pool: Pick<
    WorkerPool,
    | 'place'
    | 'placeOneMore'
    | 'decodeRoom'
    | 'slotsFor'
    | 'fits'
    | 'usable'
    | 'assertUsable'
    | 'prefillBacklog'
    | 'prefillTokensPerSecond'
    | 'onChange'
  >;
  /** A tenant's share of the service, relative to the others'; 1 for all where not given. */
  readonly weightOf?: (tenant: string) => number;
  /** Fairness with other gateways; undefined where there are none. */
  readonly exchange?:
    | Pick<ServiceExchange, 'served' | 'yields' | 'freed' | 'lacksSlots' | 'heldElsewhere' | 'blockedElsewhere'>
    | undefined;
  /** Monotonic clock, in ms. */
  readonly now?: () => number;
}

/** A sequence that was given to a decode worker, and has not ended. */
interface RunningSequence extends PlacedSequence {
  readonly preempted: AbortController;
  readonly needs: PlacementRequest;
  /** When it was given to the worker, by our clock. */
  readonly sentMs: number;
  /** It computes there: until then it may wait for a slot. */
  hasJoined: boolean;
}

/** A tenant of another gateway that sequences made way for. */
interface Obligation {
  readonly tenant: string;
  readonly sinceMs: number;
  /** Until then the slots that came free are its own. */
  readonly untilMs: number;
  /** Until then no more make way for it. */
  readonly againMs: number;
}

/** A sequence of a tenant came back from a worker for a slot that somebody has to leave. */
interface Recall {
  /** On our clock. */
  readonly atMs: number;
  /**
   * Who held how many sequences then. As long as that is so and no sequence of the tenant has got a slot, nobody has
   * left it one: gateways may differ on what tenants were served.
   */
  inVainWith: string | undefined;
}

/** Workers for sequences of one prompt whose turns came together. */
interface GrantedWorkers {
  readonly placement: Placement;
  readonly decodes: DecodeLease[];
}

/** Longest Retry-After: a client that is told to wait longer goes elsewhere. */
const LONGEST_RETRY_SECONDS = 60;
/**
 * How long new prompts wait for a worker after the last one was lost, in ms. Longer than the gap of a rolling restart.
 */
const GRACE_MS = 2_000;
/**
 * After sequences made way for a tenant of another gateway, the time until news tell how many slots it has then, in ms:
 * the other gateway asks the workers with one news, and tells what it has placed with the next.
 */
const OBLIGED_MS = 3 * NEWS_EVERY_MS;
/**
 * Longest time between two exchanges for a tenant of another gateway that does not get the slots, in ms. A gateway that
 * does not know what is told of slots (version 0.1) takes them, and each exchange has to be computed again.
 */
const LONGEST_OBLIGED_MS = 16 * OBLIGED_MS;
/**
 * How long a sequence waits in a worker for a slot before it may come back, in ms: until then all workers have been
 * asked again, and what other gateways say is newer than what it was sent by.
 */
const RECALL_AFTER_MS = 1_000;
/**
 * Time between two sequences of a tenant that come back for a slot which somebody has to leave, in ms. In between it
 * waits in the worker, where sequences have slots in the order in which they come: gateways may not hear each other.
 */
const RECALL_AGAIN_MS = 10_000;

export class Dispatcher {
  // A gateway has one dispatcher per bundle.
  readonly #countWaiting = partOf(metrics.waiting);
  readonly #countWaitingTokens = partOf(metrics.waitingTokens);
  readonly #options: DispatcherOptions;
  readonly #now: () => number;
  /** Time after which sequences make way, in ms. */
  readonly #preemptAfterMs: number;
  readonly #standing: Standing;
  readonly #queue: FairQueue<QueuedPrompt>;
  /** Prompts that were admitted before and lost their worker, in the order in which they came back. */
  readonly #replays: QueuedPrompt[] = [];
  /** Sequences that run, without those that make way. */
  readonly #running = new Set<RunningSequence>();
  /** Sequences that make way and have not left their workers yet. */
  readonly #leaving = new Set<RunningSequence>();
  /** The prompt that sequences make way for, and how many of its own go first: one per slot that they free. */
  #claim: { readonly prompt: QueuedPrompt; sequences: number } | undefined;
  #preemptTimer: NodeJS.Timeout | undefined;
  /** Prompts that wait for sequences of other gateways to make way, or for the slots of those that did. */
  #blocked: readonly QueuedPrompt[] = [];
  /** Tenants of other gateways that sequences made way for lately, by gateway and tenant. */
  readonly #obliged = new Map<string, Obligation>();
  /** The last recall of each tenant for a slot that somebody has to leave. */
  readonly #recalled = new Map<string, Recall>();
  /** Made when it is asked for, and again after a change. */
  #holders: SlotHolders<RunningSequence> | undefined;
  #placed = 0;
  readonly #rate = new ServiceRate();
  readonly #active = new ActiveTenants();
  /** Made when it is asked for, and again with other holders. */
  #shared: { readonly holders: SlotHolders<RunningSequence>; readonly tenants: Sharing } | undefined;
  /** Start of the outage that lasts now, on our clock; undefined while there are workers. */
  #outageSinceMs: number | undefined = -Infinity;
  /** End of the last outage, on our clock. */
  #upSinceMs = -Infinity;
  #outageTimers: NodeJS.Timeout[] = [];

  constructor(options: DispatcherOptions) {
    this.#options = options;
    this.#now = options.now ?? (() => performance.now());
    this.#preemptAfterMs = Math.max(options.preemptAfterMs, options.exchange ? HEARD_WITHIN_MS : 0);
    const { weightOf = () => 1, queueOrder, pool } = options;
    this.#queue = new FairQueue(weightOf, queueOrder);
    this.#standing = { weightOf, servedOf: (tenant) => this.#queue.servedOf(tenant) };
    pool.onChange(() => this.#pump());
  }

  /**
   * Resolves with workers for the first choices of a prompt, when it is their turn. See {@link Grant} for the others.
   * @throws ServingError saturated, no_worker; the signal's reason.
   */
  async place(request: QueueRequest, signal: AbortSignal): Promise<Grant> {
    signal.throwIfAborted();
    const settled = () => signal.removeEventListener('abort', leave);
    const giveBack = (tokens: number) => this.#giveBack(request.tenant, tokens);
    const prompt: QueuedPrompt = new QueuedPrompt(request, this.#now(), settled, giveBack);
    const leave = () => this.#leave(prompt, signal.reason);
    if (this.#now() - (this.#outageSinceMs ?? Infinity) >= this.#patienceMs(prompt.wasServed)) {
      this.#options.pool.assertUsable();
    }
    this.#asked(prompt.tenant);
    if (prompt.isReplay) this.#replays.push(prompt);
    else if (prompt.cameBack) this.#queue.add(prompt);
    else this.#admit(prompt);
    signal.addEventListener('abort', leave, { once: true });
    const granted = prompt.first;
    this.#pump();
    return granted;
  }

  /**
   * Takes a new prompt into the queue. A queue that is full drops the last prompts of the tenant with the largest
   * share. An idle system takes any one prompt, whatever its length. A request has one waiting prompt at a time.
   * @throws ServingError saturated
   */
  #admit(newcomer: QueuedPrompt): void {
    const { targetTtftMs } = this.#options;
    const { rate, backlog } = this.#load;
    const ahead = this.#queue.tokens + backlog;
    if (ahead > 0 && rate > 0) {
      const refusal = (limit: string, ms: number) =>
        new ServingError(
          'saturated',
          `${ahead} prompt tokens wait or compute at ${Math.round(rate)}/s: the first token would come later than the ` +
            `${Math.round(ms)} ms of ${limit}`,
          { limit, retryAfterSeconds: Math.min(Math.max(1, Math.ceil(ahead / rate)), LONGEST_RETRY_SECONDS) },
        );
      const { remainingMs, tokens } = newcomer;
      // Waiting prompts count in full, cached tokens included: the measured rate may be that of decoding, which does
      // not depend on cached tokens.
      const own = newcomer.tokensToCompute;
      const before = backlog + this.#queue.ahead(newcomer);
      if (((before + own) / rate) * 1000 > remainingMs) throw refusal('timeout-ms', remainingMs);
      // The queue holds the tokens that can be computed within the target TTFT, less the backlog in front of it, plus
      // the newcomer's cached tokens: its `tokens` count them, but nobody computes them.
      const limit = newcomer.sibling ? Infinity : (rate * targetTtftMs) / 1000 - backlog + tokens - own;
      const victims = this.#queue.victims(newcomer, limit);
      if (victims === undefined) throw refusal('target-ttft-ms', targetTtftMs);
      for (const victim of victims) {
        this.#queue.remove(victim);
        if (this.#claim?.prompt === victim) this.#claim = undefined;
        victim.refuse(refusal('target-ttft-ms', targetTtftMs));
      }
    }
    this.#queue.add(newcomer);
  }

  /** How fast prompts are served, in tokens per second, and the prompt tokens that go before all that wait here. */
  get #load(): { readonly rate: number; readonly backlog: number } {
    const { pool } = this.#options;
    const replays = this.#replays.reduce((sum, { pendingTokens }) => sum + pendingTokens, 0);
    return { rate: this.#rate.bounded(pool.prefillTokensPerSecond), backlog: pool.prefillBacklog + replays };
  }

  /**
   * Time until it would be the turn of a prompt that came now, in ms; 0 while nothing is known of how fast prompts are
   * served. Changes nothing.
   */
  waitMs(tenant: string, priority: number): number {
    const { rate, backlog } = this.#load;
    if (rate <= 0) return 0;
    const request = { tenant, priority, promptTokens: 0, positions: 1, choices: 1, continues: true };
    const nothing = () => {};
    const asked = { ...request, remainingMs: Infinity, isReplay: false };
    return ((backlog + this.#queue.ahead(new QueuedPrompt(asked, this.#now(), nothing, nothing))) / rate) * 1000;
  }

  /** Charges tenants for what other gateways served to them, and goes on: see {@link ServiceExchange}. */
  charge(costs: ReadonlyMap<string, number>): void {
    for (const [tenant, cost] of costs) {
      this.#asked(tenant);
      this.#queue.charge(tenant, cost);
    }
    this.#pump();
  }

  /** A tenant asks, here or at another gateway: others leave it slots from now on. */
  #asked(tenant: string): void {
    if (tenant !== TRIAL_TENANT) this.#active.asked(tenant, this.#now());
  }

  #giveBack(tenant: string, tokens: number): void {
    this.#queue.giveBack(tenant, tokens);
    this.#options.exchange?.served(tenant, -tokens);
  }

  /** For the other gateways: see {@link SlotNews}. */
  get slotNews(): SlotNews {
    const held = new Map<string, [string, string, number, number]>();
    const holders = this.#slotHolders;
    for (const sequence of this.#running) {
      const { tenant, address } = sequence;
      const key = `${address} ${tenant}`;
      const [, , sequences, movable] = held.get(key) ?? [tenant, address, 0, 0];
      held.set(key, [tenant, address, sequences + 1, movable + Number(holders.mayMove(sequence))]);
    }
    const waiting = this.#queue.entries.filter(({ continues }) => continues);
    const blocked = this.#blocked.flatMap(({ tenant, needs, sequences, isReplay, blockedSinceMs }) => {
      if (blockedSinceMs === undefined || sequences === 0) return [];
      const own = waiting.filter((prompt) => prompt.tenant === tenant);
      const wanted = own.reduce((sum, prompt) => sum + prompt.sequences, isReplay ? sequences : 0);
      return wanted === 0 ? [] : [[tenant, wanted, needs.positions, this.#now() - blockedSinceMs] as const];
    });
    return { held: [...held.values()], blocked };
  }

  /** Whether prompts wait here while other gateways use the same slots: news of slots matter then. */
  get contends(): boolean {
    return this.#queue.size + this.#replays.length > 0 && this.#heldElsewhere.length > 0;
  }

  /** Whether prompts wait for slots that other gateways are to leave them. */
  get isBlocked(): boolean {
    return this.#blocked.length > 0;
  }

  get waitingTenants(): ReadonlySet<string> {
    return new Set(this.#queue.entries.map(({ tenant }) => tenant));
  }

  /** What waits here for workers: prompts, and their tokens. */
  get waiting(): { readonly prompts: number; readonly tokens: number } {
    return { prompts: this.#queue.size + this.#replays.length, tokens: this.#queue.tokens };
  }

  /** Gives out workers as long as they have room: one sequence at a time, each in its turn. */
  #pump(): void {
    this.#holders = undefined; // other gateways may have told what they hold
    this.#watchOutage();
    this.#recall();
    const { pool } = this.#options;
    const blocked = this.#serve(() => this.#first);
    if (blocked && pool.usable && !pool.fits(blocked.needs)) {
      // Its workers are gone and the new ones have smaller slots: waiting is of no use, and others wait behind it.
      const { positions } = blocked.needs;
      this.#leave(blocked, new ServingError('no_worker', `no worker is left whose slots hold ${positions} tokens`));
      return;
    }
    // Before others take the room for its prompt: sequences make way only for a prompt that could be computed.
    this.#makeWay();
    // A prompt that waits for nothing but a slot does not hold up those that need none.
    if (blocked?.continues && pool.decodeRoom(blocked.needs).length > 0) this.#serve(() => this.#firstWithoutSlot);
    // A prompt that was served in part waits for slots: that tells nothing of how fast new prompts are served.
    if (this.#queue.tokens === 0) this.#rate.idle();
    this.#observe();
  }

  /** Gives workers to one prompt after the other. Returns the one for which there is no room. */
  #serve(first: () => QueuedPrompt | undefined): QueuedPrompt | undefined {
    const { exchange } = this.#options;
    const rounds = new Map<QueuedPrompt, GrantedWorkers>();
    let next = first();
    let yields = false;
    for (; next !== undefined; next = first()) {
      // A prompt that finds too few slots is behind in its share of both resources.
      yields = !next.isReplay && next.blockedSinceMs === undefined && exchange?.yields(next.tenant) === true;
      if (yields || !this.#placeOne(next, rounds)) break;
    }
    for (const [prompt, { placement, decodes }] of rounds) prompt.grant(placement.prefill, decodes);
    return yields ? undefined : next;
  }

  /** Gives the next sequence of a prompt its workers. Returns false when they have no room for it. */
  #placeOne(next: QueuedPrompt, rounds: Map<QueuedPrompt, GrantedWorkers>): boolean {
    const { pool } = this.#options;
    if (next.continues && this.#waitsForSlot(next)) return false;
    const round = rounds.get(next);
    const more = round && next.continues ? pool.placeOneMore(next.needs, round.placement) : undefined;
    if (round && more) round.decodes.push(this.#track(next, more));
    else {
      const placement = pool.place(next.needs);
      if (placement === undefined) return false;
      if (round) next.grant(round.placement.prefill, round.decodes);
      rounds.set(next, { placement, decodes: placement.decode ? [this.#track(next, placement.decode)] : [] });
    }
    this.#take(next);
    return true;
  }

  #take(next: QueuedPrompt): void {
    next.owedMs = undefined; // one slot is made free at a time
    // Time during an outage does not count: nobody was served slowly, nobody was served at all.
    const sinceMs = Math.max(next.waitsSinceMs, this.#upSinceMs);
    if (next.pendingTokens > 0) this.#rate.served(next.tokens, sinceMs, this.#now());
    if (next.isReplay) {
      next.pendingTokens = 0;
      if (--next.sequences === 0) this.#replays.splice(this.#replays.indexOf(next), 1);
    } else {
      const cost = this.#queue.take(next);
      if (cost > 0) this.#options.exchange?.served(next.tenant, cost);
    }
    if (this.#claim?.prompt === next && (--this.#claim.sequences === 0 || next.sequences === 0))
      this.#claim = undefined;
  }

  get #first(): QueuedPrompt | undefined {
    return this.#replays[0] ?? this.#claim?.prompt ?? this.#firstInQueue;
  }

  /**
   * The first prompt, or where it has to leave the free slots to others, the first of those that need not. One that
   * another gateway makes way for gets the slot also where its tenant is ahead in tokens of the one that is first, as
   * one with a claim does: otherwise the slot would go back to whoever made way, again and again.
   */
  get #firstInQueue(): QueuedPrompt | undefined {
    const first = this.#firstByNews;
    if (first === undefined || !this.#leavesSpare(first)) return first;
    const needNot = (prompt: QueuedPrompt) => !this.#leavesSpare(prompt);
    const sinceMs = this.#now() - PATIENCE_MS;
    const isOwed = ({ owedMs = -Infinity }: QueuedPrompt) => owedMs > sinceMs;
    return this.#queue.firstOf(needNot) ?? this.#queue.firsts.find((each) => isOwed(each) && needNot(each)) ?? first;
  }

  /**
   * Whether the slots that are free are left to tenants below their share.
   * @param held sequences that the tenant holds; all that it has if not given.
   */
  #leavesSpare(
    { tenant, needs, continues }: Pick<QueuedPrompt, 'tenant' | 'needs' | 'continues'>,
    held = this.#slotHolders.counts.get(tenant) ?? 0,
  ): boolean {
    const { pool, spareSlots } = this.#options;
    if (!continues || spareSlots === 0) return false;
    // Further choices of a prompt that is placed already need no room for prefill.
    return leavesSpare(tenant, held, pool.slotsFor(needs.positions), this.#sharing, spareSlots, this.#standing);
  }

  /** Counted once for each state of the slots: many prompts wait, and there may be many tenants. */
  get #sharing(): Sharing {
    const holders = this.#slotHolders;
    if (this.#shared?.holders !== holders) {
      const tenants = sharingTenants(this.#active.at(this.#now()), holders.counts, this.#standing);
      this.#shared = { holders, tenants };
    }
    return this.#shared.tenants;
  }

  /** The first prompt that need not leave a free slot to a tenant of another gateway with less than its share. */
  get #firstByNews(): QueuedPrompt | undefined {
    const { exchange } = this.#options;
    if (exchange === undefined) return this.#queue.first;
    const [nowMs, latestMs] = [this.#now(), this.#preemptAfterMs + PATIENCE_MS];
    const obliged = [...this.#obliged.values()].filter(({ untilMs }) => untilMs > nowMs);
    // A gateway whose tenant waits still longer has no use for the slots that come free here.
    const owed = [...obliged, ...exchange.blockedElsewhere.filter(({ forMs }) => forMs < latestMs)];
    const { firsts } = this.#queue;
    const own = firsts.filter((prompt) => this.#mayBeLeftSlot(prompt));
    if (owed.length + own.length === 0) return this.#queue.first;
    const others = [...owed, ...own].map(({ tenant }) => tenant);
    return firsts.find(({ tenant, continues }) => {
      return !continues || !isAboveShare(tenant, others, this.#slotHolders, this.#standing);
    });
  }

  /**
   * Whether a prompt found its slots taken a moment ago, so that other gateways may have left it one. It is not blocked
   * any more once their news say so, but the slot is seen only when the worker says that it is free.
   */
  #mayBeLeftSlot({ blockedSinceMs }: QueuedPrompt): boolean {
    if (blockedSinceMs === undefined || this.#heldElsewhere.length === 0) return false;
    return this.#now() - blockedSinceMs < this.#preemptAfterMs + PATIENCE_MS;
  }

  /** Tenants that have waited long enough here for slots that other gateways have to free, alone or with this one. */
  get #owedHere(): readonly BlockedElsewhere[] {
    const blocked = this.slotNews.blocked.map(([tenant, sequences, positions, forMs]) => {
      return { gateway: '', tenant, sequences, positions, forMs };
    });
    return blocked.filter(({ forMs }) => forMs >= this.#preemptAfterMs);
  }

  get #heldElsewhere(): readonly HeldElsewhere[] {
    return this.#options.exchange?.heldElsewhere ?? [];
  }

  get #slotHolders(): SlotHolders<RunningSequence> {
    this.#holders ??= new SlotHolders(this.#running, this.#heldElsewhere);
    return this.#holders;
  }

  /** Tenants that have waited long enough for a slot at other gateways. */
  get #owedElsewhere(): readonly BlockedElsewhere[] {
    return (this.#options.exchange?.blockedElsewhere ?? []).filter(({ forMs }) => forMs >= this.#preemptAfterMs);
  }

  get #firstWithoutSlot(): QueuedPrompt | undefined {
    const needsNone = ({ continues }: QueuedPrompt) => !continues;
    return this.#replays.find(needsNone) ?? this.#queue.firstOf(needsNone);
  }

  /** Counts a sequence as running until its worker is released. */
  #track({ tenant, queuedAtMs, needs }: QueuedPrompt, worker: WorkerLease<DecodeClient>): DecodeLease {
    const preempted = new AbortController();
    const sequence: RunningSequence = {
      tenant,
      address: worker.address,
      enteredMs: queuedAtMs,
      order: ++this.#placed,
      preempted,
      needs,
      sentMs: this.#now(),
      hasJoined: false,
    };
    this.#running.add(sequence);
    this.#holders = undefined;
    const over = () => {
      this.#holders = undefined;
      if (this.#running.delete(sequence) || this.#leaving.delete(sequence)) this.#options.exchange?.freed();
    };
    return {
      ...worker,
      preempted: preempted.signal,
      started: () => {
        sequence.hasJoined = true;
        const recall = this.#recalled.get(tenant);
        if (recall) recall.inVainWith = undefined;
        worker.started();
      },
      releaseLoad: () => {
        over();
        worker.releaseLoad();
      },
      release: () => {
        over();
        worker.release();
      },
    };
  }

  /**
   * Whether a prompt must not be sent now though the workers would take it. It may have to leave the last free slots
   * to others. Where all slots are taken it would wait in the worker: a tenant with more than its share must not wait
   * there before others, and one with less waits here for a slot that is made free for it.
   */
  #waitsForSlot(prompt: QueuedPrompt): boolean {
    const { tenant, needs } = prompt;
    // A slot that others have left to it is its own.
    if (!prompt.isReplay && prompt !== this.#claim?.prompt && this.#leavesSpare(prompt)) return true;
    const decoders = this.#options.pool.decodeRoom(needs);
    if (decoders.length === 0 || decoders.some(({ freeSlots }) => freeSlots > 0)) return false;
    if (this.#leaving.size > 0) return true;
    const [holders, standing] = [this.#slotHolders, this.#standing];
    const others = new Set([...this.#queue.firsts.map((other) => other.tenant), ...holders.counts.keys()]);
    if (isAboveShare(tenant, others, holders, standing)) return true;
    const { slots, elsewhere } = sequencesToPreempt(tenant, 1, holders, decoders, standing);
    if (slots > 0) return true;
    // A gateway that does not free a slot in time may not do so at all: then wait in the worker.
    return (elsewhere && prompt.blockedSinceMs === undefined) || this.#mayBeLeftSlot(prompt);
  }

  /**
   * Calls a sequence back that waits in a worker for a slot, where it would get one sooner from here: one is free
   * elsewhere, or its tenant has less than its share of them. A worker is chosen by what was known then, and a sequence
   * that waits there would wait for the longest one before it. The youngest goes: the older ones are served first.
   */
  #recall(): void {
    if (this.#leaving.size > 0) return;
    const nowMs = this.#now();
    const waiting = [...this.#running].filter(({ hasJoined, sentMs }) => {
      return !hasJoined && nowMs - sentMs >= RECALL_AFTER_MS;
    });
    const tenants = new Set(waiting.map(({ tenant }) => tenant));
    for (const [tenant, { atMs }] of this.#recalled) {
      if (nowMs - atMs >= RECALL_AGAIN_MS && !tenants.has(tenant)) this.#recalled.delete(tenant);
    }
    for (const sequence of waiting.reverse()) {
      const decoders = this.#options.pool.decodeRoom(sequence.needs);
      const own = decoders.find(({ address }) => address === sequence.address);
      if (own === undefined || own.freeSlots >= 0) continue;
      const { tenant, needs } = sequence;
      // It would not hold the place that it waits for now.
      const held = (this.#slotHolders.counts.get(tenant) ?? 0) - 1;
      const isFree =
        decoders.some(({ freeSlots }) => freeSlots > 0) && !this.#leavesSpare({ tenant, needs, continues: true }, held);
      if (!isFree) {
        const last = this.#recalled.get(tenant);
        if (last && nowMs - last.atMs < RECALL_AGAIN_MS) continue;
        const holders = JSON.stringify([...this.#slotHolders.counts].sort());
        if (last?.inVainWith === holders || !this.#couldGain(sequence, decoders)) continue;
        this.#recalled.set(tenant, { atMs: nowMs, inVainWith: holders });
      }
      this.#callBack([sequence]);
      return;
    }
  }

  /** Whether somebody would have to leave a slot to a sequence if it waited here rather than in its worker. */
  #couldGain(sequence: RunningSequence, decoders: readonly DecodeRoom[]): boolean {
    const others = [...this.#running].filter((each) => each !== sequence);
    const rooms = decoders.map(({ address, freeSlots }) => {
      return { address, freeSlots: address === sequence.address ? freeSlots + 1 : freeSlots };
    });
    const holders = new SlotHolders(others, this.#heldElsewhere);
    const { slots, elsewhere } = sequencesToPreempt(sequence.tenant, 1, holders, rooms, this.#standing);
    return slots > 0 || elsewhere;
  }

  /**
   * Frees slots for a prompt whose tenant has less than its share of them: the first such prompt in the queue's order
   * that has no more than another one of them, which need not be the first of all. It gives the slots
   * --preempt-after-ms to come free by themselves, because what makes way has to be computed again.
   */
  #makeWay(): void {
    clearTimeout(this.#preemptTimer);
    if (this.#leaving.size > 0) return;
    const blocked: QueuedPrompt[] = [];
    this.#blocked = blocked;
    let isNew = false;
    const entitled: { readonly prompt: QueuedPrompt; readonly way: Exchange<RunningSequence> }[] = [];
    for (const prompt of [...this.#replays.slice(0, 1), ...this.#queue.firsts]) {
      const decoders = prompt.continues ? this.#options.pool.decodeRoom(prompt.needs) : [];
      const { tenant, sequences } = prompt;
      const way = sequencesToPreempt(tenant, sequences, this.#slotHolders, decoders, this.#standing);
      const isEntitled = way.slots > 0 || way.elsewhere;
      if (way.elsewhere && prompt.blockedSinceMs === undefined) isNew = true;
      if (isEntitled) prompt.blockedSinceMs ??= this.#now();
      if (way.elsewhere) prompt.owedMs = this.#now();
      // Gateways that have made way for it go on to leave it the slot.
      if (way.elsewhere || (!isEntitled && this.#mayBeLeftSlot(prompt))) blocked.push(prompt);
      if (way.slots > 0 || (way.elsewhere && this.#mayBeLeftSlot(prompt))) entitled.push({ prompt, way });
    }
    if (isNew) this.#options.exchange?.lacksSlots();
    const tenants = entitled.map(({ prompt }) => prompt.tenant);
    const isNext = ({ prompt, way }: (typeof entitled)[number]) =>
      way.slots > 0 && !isAboveShare(prompt.tenant, tenants, this.#slotHolders, this.#standing);
    const next = entitled.find(isNext);
    if (next === undefined) {
      this.#makeWayForOthers();
      return;
    }
    const { prompt, way } = next;
    const leftMs = prompt.blockedSinceMs! + this.#preemptAfterMs - this.#now();
    if (leftMs > 0) this.#preemptTimer = setTimeout(() => this.#pump(), leftMs).unref();
    else this.#preempt(way.victims, { prompt, sequences: way.slots });
  }

  /** The same for prompts that wait at other gateways. They have no claim here, and come to the workers themselves. */
  #makeWayForOthers(): void {
    if (this.#options.exchange === undefined) return;
    const nowMs = this.#now();
    const owed = [...this.#owedHere, ...this.#owedElsewhere];
    const stillOwed = new Set(owed.map(keyOf));
    for (const [key, { untilMs }] of this.#obliged) {
      if (untilMs <= nowMs && !stillOwed.has(key)) this.#obliged.delete(key);
    }
    for (const each of owed) {
      const { tenant, sequences, positions, forMs } = each;
      const last = this.#obliged.get(keyOf(each));
      if (last !== undefined && nowMs < last.againMs) continue;
      const decoders = this.#options.pool.slotsFor(positions);
      const victims = sequencesToYield(tenant, sequences, this.#slotHolders, decoders, this.#standing);
      if (victims.length === 0) continue;
      // Until the news say how many slots the tenant has then. If it has waited ever since the last time, somebody else
      // took the slots: then the next time comes later and later.
      const inVain = last !== undefined && forMs > nowMs - last.sinceMs;
      const pauseMs = inVain ? Math.min(2 * (last.againMs - last.sinceMs), LONGEST_OBLIGED_MS) : OBLIGED_MS;
      const obligation = { tenant, sinceMs: nowMs, untilMs: nowMs + OBLIGED_MS, againMs: nowMs + pauseMs };
      this.#obliged.set(keyOf(each), obligation);
      this.#preempt(victims, undefined);
      return;
    }
  }

  #preempt(victims: readonly RunningSequence[], claim: { prompt: QueuedPrompt; sequences: number } | undefined): void {
    if (claim) this.#claim = claim;
    metrics.preemptions.inc(victims.length);
    this.#callBack(victims);
  }

  #callBack(sequences: readonly RunningSequence[]): void {
    for (const sequence of sequences) {
      this.#running.delete(sequence);
      this.#leaving.add(sequence);
    }
    this.#holders = undefined;
    for (const { preempted } of sequences) preempted.abort(PREEMPTED);
  }

  #leave(prompt: QueuedPrompt, reason: unknown): void {
    const index = this.#replays.indexOf(prompt);
    if (index >= 0) this.#replays.splice(index, 1);
    else if (!this.#queue.remove(prompt)) return;
    if (this.#claim?.prompt === prompt) this.#claim = undefined;
    this.#blocked = this.#blocked.filter((each) => each !== prompt);
    prompt.refuse(reason);
    this.#pump(); // the prompt behind it may fit
  }

  /** How long a prompt waits for a worker to come up, in ms. */
  #patienceMs(wasServed: boolean): number {
    const { connectTimeoutMs } = this.#options;
    return wasServed ? connectTimeoutMs : Math.min(connectTimeoutMs, GRACE_MS);
  }

  /** Notices that an outage begins or ends. While it lasts, waiting prompts are refused when their patience is over. */
  #watchOutage(): void {
    const { usable } = this.#options.pool;
    if (usable === (this.#outageSinceMs === undefined)) return;
    this.#outageSinceMs = usable ? undefined : this.#now();
    if (usable) this.#upSinceMs = this.#now();
    for (const timer of this.#outageTimers.splice(0)) clearTimeout(timer);
    if (usable) return;
    for (const wasServed of [false, true]) {
      const timer = setTimeout(() => this.#giveUp(wasServed), this.#patienceMs(wasServed));
      this.#outageTimers.push(timer.unref());
    }
  }

  #giveUp(wasServed: boolean): void {
    const waiting = [...this.#replays, ...this.#queue.entries].filter((prompt) => prompt.wasServed === wasServed);
    try {
      this.#options.pool.assertUsable();
    } catch (error) {
      for (const prompt of waiting) this.#leave(prompt, error);
    }
  }

  #observe(): void {
    this.#countWaiting(this.#queue.size + this.#replays.length);
    this.#countWaitingTokens(this.#queue.tokens);
  }
}

const keyOf = ({ gateway, tenant }: BlockedElsewhere) => `${gateway} ${tenant}`;
