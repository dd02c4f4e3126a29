/**
 * Several gateways over one set of workers, on the fake clock of vitest: real pools, queues, dispatchers and exchanges
 * of news, over workers that only let time pass. Prefill computes one prompt after the other; a sequence has its slot
 * from the moment its prompt is accepted, as in the product, and then puts out one token per step.
 */
import { setMaxListeners } from 'node:events';
import { onTestFinished, vi } from 'vitest';
import { Dispatcher } from '../../services/gateway/admission/dispatcher.ts';
import type { DecodeLease, Grant } from '../../services/gateway/admission/queued-prompt.ts';
import { NEWS_EVERY_MS, ServiceExchange } from '../../services/gateway/admission/service-exchange.ts';
import { WorkerPool } from '../../services/gateway/workers/worker-pool.ts';
import type { DecodeClient, PrefillClient } from '../../services/lib/rpc/contract.ts';
import { keepingLog } from './keeping-log.ts';

const FINGERPRINT = 'f'.repeat(64);
/** Pause between two questions of a gateway to a worker, as in the product, in ms. */
const ASK_EVERY_MS = 1_000;

/** Time before sequences make way unless a shape says otherwise, as in the product, in ms. */
export const PREEMPT_AFTER_MS = 50;

/** What a tenant asks for, again and again. */
export interface Demand {
  readonly tenant: string;
  /** Number of the gateway that it asks. */
  readonly gateway?: number;
  readonly promptTokens: number;
  /** Those of them that the prefill worker has cached. */
  readonly cachedTokens?: number;
  readonly outputTokens: number;
  readonly choices?: number;
  /** Requests that it keeps waiting or running. */
  readonly atOnce: number;
}

export interface SystemShape {
  readonly gateways?: number;
  readonly weights?: Readonly<Record<string, number>>;
  /** Slots of each decode worker. */
  readonly slots?: readonly number[];
  readonly prefillTokensPerSecond?: number;
  /** Time of one decode step, in ms. */
  readonly stepMs?: number;
  /** Delay of a message between gateways, in ms; undefined for one that is lost. */
  readonly delayMs?: (to: number) => number | undefined;
  /** Time before sequences make way, in ms; {@link PREEMPT_AFTER_MS} if not given. */
  readonly preemptAfterMs?: number;
  /** Slots of each worker that are left to tenants below their share; 1 if not given, as in the product. */
  readonly spareSlots?: number;
}

const OVER = new Error('the simulation is over');

const unlessOver = (error: unknown) => {
  if (error !== OVER) throw error;
};

const sleep = (ms: number) => new Promise<void>((resolve) => setTimeout(resolve, ms));

/** A prefill worker: one prompt after the other. */
class Prefill {
  readonly #tokensPerSecond: number;
  #last: Promise<unknown> = Promise.resolve();
  queued = 0;

  constructor(tokensPerSecond: number) {
    this.#tokensPerSecond = tokensPerSecond;
  }

  compute(tokens: number): Promise<void> {
    this.queued += tokens;
    const done = this.#last.then(() => sleep((tokens / this.#tokensPerSecond) * 1000));
    this.#last = done;
    return done.then(() => {
      this.queued -= tokens;
    });
  }
}

/** A decode worker: sequences have slots in the order in which they come. */
class Decode {
  readonly slots: number;
  taken = 0;
  readonly waiting: (() => void)[] = [];

  constructor(slots: number) {
    this.slots = slots;
  }

  /** Waits for a slot. @returns gives it back. Rejects, and holds nothing, if it is aborted before. */
  async slot(signal: AbortSignal): Promise<() => void> {
    if (this.taken >= this.slots) {
      await new Promise<void>((resolve, reject) => {
        const leave = () => {
          this.waiting.splice(this.waiting.indexOf(begin), 1);
          reject(signal.reason);
        };
        const begin = () => {
          signal.removeEventListener('abort', leave);
          resolve();
        };
        signal.addEventListener('abort', leave, { once: true });
        this.waiting.push(begin);
      });
    } else this.taken++;
    return () => {
      const next = this.waiting.shift();
      if (next) next();
      else this.taken--;
    };
  }
}

export function simulatedSystem(shape: SystemShape = {}) {
  vi.useFakeTimers();
  const over = new AbortController();
  setMaxListeners(0, over.signal); // each request listens
  const stop = () => {
    over.abort(OVER);
    for (const { pool } of members) pool.close();
    vi.useRealTimers();
  };
  onTestFinished(stop);
  const { weights = {}, slots = [4], gateways = 1, stepMs = 2 } = shape;
  const { preemptAfterMs = PREEMPT_AFTER_MS, spareSlots = 1 } = shape;
  const rate = shape.prefillTokensPerSecond ?? 10_000;
  const weightOf = (tenant: string) => weights[tenant] ?? 1;
  const prefill = new Prefill(rate);
  const decoders = new Map(slots.map((count, i) => [`d${i}`, new Decode(count)]));
  /** Tokens computed for each tenant: prompts once, when their first token comes, and output. */
  const tokens = new Map<string, number>();
  const count = (tenant: string, more: number) => tokens.set(tenant, (tokens.get(tenant) ?? 0) + more);
  /** How long each new prompt of a tenant waited for workers, in ms. */
  const waits = new Map<string, number[]>();
  let preemptions = 0;
  let finished = 0;
  const finishedOf = new Map<string, number>();

  const describe = (address: string) => async () => {
    const decode = decoders.get(address);
    const basic = { fingerprint: FINGERPRINT, capacity: 100_000, overdueMs: 0 };
    if (!decode) return { ...basic, slots: 0, freeSlots: 0, queued: prefill.queued, prefillTokensPerSecond: rate };
    const free = decode.slots - decode.taken;
    return { ...basic, slots: decode.slots, freeSlots: free, queued: decode.waiting.length, prefillTokensPerSecond: 0 };
  };
  const client = (address: string) =>
    ({ describe: describe(address), close: () => {} }) as unknown as PrefillClient & DecodeClient;

  const members = Array.from({ length: gateways }, (_, number) => {
    const pool = new WorkerPool({
      fingerprint: FINGERPRINT,
      connectPrefill: client,
      connectDecode: client,
      connectTimeoutMs: 60_000,
      stallTimeoutMs: 60_000,
      localPrefill: 'auto',
      localPrefillTokens: 256,
      sequencesElsewhere: (address) => exchange?.sequencesElsewhere(address) ?? 0,
      log: keepingLog([]),
    });
    pool.setPrefill(['p']);
    pool.setDecode([...decoders.keys()]);
    const exchange: ServiceExchange | undefined =
      gateways === 1
        ? undefined
        : new ServiceExchange({
            weightOf,
            self: `gw${number}`,
            slots: () => dispatcher.slotNews,
            charge: (costs) => dispatcher.charge(costs),
            waiting: () => dispatcher.waitingTenants,
            after: (ms, task) => void setTimeout(task, ms),
            publish: (news) => {
              const text = JSON.stringify(news);
              for (const [to, other] of members.entries()) {
                const delay = other === member ? undefined : (shape.delayMs ?? (() => 5))(to);
                if (delay === undefined) continue;
                setTimeout(() => other.hear(`gw${number}`, JSON.parse(text)), delay);
              }
            },
          });
    const dispatcher: Dispatcher = new Dispatcher({
      pool,
      weightOf,
      targetTtftMs: 1e9,
      queueOrder: 'fifo',
      connectTimeoutMs: 60_000,
      preemptAfterMs,
      spareSlots,
      exchange,
    });
    const hear = (from: string, news: unknown) => {
      exchange?.heard(from, news);
      if (dispatcher.isBlocked) pool.refreshSoon();
    };
    const member = { pool, exchange, dispatcher, hear };
    const tick = () => {
      exchange?.tick();
      if (dispatcher.contends) pool.refreshSoon();
    };
    const every = (ms: number, task: () => void) => {
      const timer = setInterval(task, ms);
      over.signal.addEventListener('abort', () => clearInterval(timer), { once: true });
    };
    // Gateways do not tick together.
    setTimeout(() => every(NEWS_EVERY_MS, () => tick()), (number * NEWS_EVERY_MS) / gateways);
    setTimeout(() => every(ASK_EVERY_MS, () => void pool.refresh()), (number * ASK_EVERY_MS) / gateways);
    return member;
  });

  /** A sequence on its workers, and again on others as often as it has to make way. */
  async function decode(
    gateway: number,
    demand: Demand,
    grant: Grant,
    lease: DecodeLease,
    computed: Promise<void>,
    left: number,
  ): Promise<void> {
    const begunMs = () => Math.floor((performance.now() - sinceMs) / stepMs);
    let sinceMs = Number.POSITIVE_INFINITY;
    let free = () => {};
    try {
      free = await decoders.get(lease.address)!.slot(lease.preempted);
      const gone = new Promise<never>((_, reject) => {
        const fail = () => reject(lease.preempted.reason);
        if (lease.preempted.aborted) fail();
        else lease.preempted.addEventListener('abort', fail, { once: true });
      });
      gone.catch(() => {});
      await Promise.race([computed, gone]);
      lease.started();
      sinceMs = performance.now();
      await Promise.race([sleep(left * stepMs), gone]);
      count(demand.tenant, left);
      finished++;
      finishedOf.set(demand.tenant, (finishedOf.get(demand.tenant) ?? 0) + 1);
      free();
      lease.release();
    } catch {
      preemptions++;
      const done = Math.max(0, Math.min(left - 1, begunMs()));
      count(demand.tenant, done);
      free();
      lease.release();
      await run(gateway, demand, 1, left - done, grant.enteredMs);
    }
  }

  /** A request from its place in the queue to the end of its last sequence. */
  async function run(gateway: number, demand: Demand, choices: number, left: number, enteredMs?: number) {
    const { tenant, promptTokens, cachedTokens = 0, outputTokens } = demand;
    const continues = outputTokens > 1;
    const request = {
      tenant,
      promptTokens: promptTokens + (outputTokens - left),
      positions: promptTokens + outputTokens,
      continues,
      choices,
      priority: 0,
      remainingMs: 1e9,
      isReplay: false,
      enteredMs,
    };
    let isNew = enteredMs === undefined;
    const sequences: Promise<void>[] = [];
    const askedMs = performance.now();
    for (let next: Promise<Grant> | undefined = members[gateway]!.dispatcher.place(request, over.signal); next; ) {
      const grant: Grant = await next;
      if (isNew) waits.set(tenant, [...(waits.get(tenant) ?? []), performance.now() - askedMs]);
      // What comes back finds its prompt in the worker's cache.
      const computed = prefill.compute(isNew ? promptTokens - cachedTokens : 2).then(() => grant.prefill.release());
      if (isNew) {
        void computed.then(() => {
          count(tenant, promptTokens - cachedTokens);
          grant.giveBack('prompt', cachedTokens);
        });
      }
      isNew = false;
      if (!continues) sequences.push(computed);
      for (const lease of grant.decodes) {
        const sequence = decode(gateway, demand, grant, lease, computed, left);
        sequence.catch(() => {}); // it is awaited below
        sequences.push(sequence);
      }
      next = grant.next;
    }
    await Promise.all(sequences);
  }

  return {
    members,
    /** Asks again and again, until the test ends. @returns stops asking. */
    ask: (demand: Demand): (() => void) => {
      let wanted = true;
      const one = async () => {
        while (wanted && !over.signal.aborted) {
          await run(demand.gateway ?? 0, demand, demand.choices ?? 1, demand.outputTokens);
        }
      };
      for (let i = 0; i < demand.atOnce; i++)
        one().catch((error) => {
          if (error !== OVER) throw error;
        });
      return () => {
        wanted = false;
      };
    },
    /** Asks once. */
    once: (demand: Demand) => {
      return run(demand.gateway ?? 0, demand, demand.choices ?? 1, demand.outputTokens).catch(unlessOver);
    },
    /** Ends everything; the end of the test does so too. */
    stop,
    start: () => Promise.all(members.map(({ pool }) => pool.refresh())),
    pass: (ms: number) => vi.advanceTimersByTimeAsync(ms),
    /** Tokens computed for each tenant so far, divided by its weight. */
    service: (...tenants: string[]) => tenants.map((tenant) => (tokens.get(tenant) ?? 0) / weightOf(tenant)),
    /** Sequences that a gateway has on decode workers. */
    held: (gateway: number) => members[gateway]!.dispatcher.slotNews.held.reduce((sum, [, , count]) => sum + count, 0),
    /**
     * Whether a slot is free, or would be if all sequences of one worker that may move did: all but the oldest that
     * each gateway has of a tenant.
     */
    mayFreeSlot: () => {
      const held = members.flatMap(({ dispatcher }) => dispatcher.slotNews.held);
      return [...decoders].some(([address, { slots: count }]) => {
        const here = held.filter((each) => each[1] === address);
        const staying = here.reduce((sum, [, , sequences, movable]) => sum + sequences - movable, 0);
        return staying < count;
      });
    },
    /** How long each new prompt of a tenant waited for its first workers, in ms, in the order in which they came. */
    waitsOf: (tenant: string): readonly number[] => waits.get(tenant) ?? [],
    preemptions: () => preemptions,
    finished: () => finished,
    finishedOf: (tenant: string) => finishedOf.get(tenant) ?? 0,
  };
}

/** Jain's fairness index: 1 for equal shares, 1/n if one has everything. */
export function jain(shares: readonly number[]): number {
  const sum = shares.reduce((total, share) => total + share, 0);
  const squares = shares.reduce((total, share) => total + share * share, 0);
  return squares === 0 ? 1 : (sum * sum) / (shares.length * squares);
}
