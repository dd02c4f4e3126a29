/**
 * Loads of indexes, which take seconds and much memory: they wait in a queue, two are under way at a time, and tenants
 * take turns. A load that is there already serves all who ask for it.
 *
 * A load reserves memory before it reads, more and more as it learns how large the index is. What is kept and what is
 * reserved stay below the limit together. If two loads need more than there is, the younger one gives way, and begins
 * again when the older one has ended. A load that needs more than its tenant's share, while the others hold no more
 * than theirs, is refused.
 *
 * Requests wait for a few ms, loads take longer, and a user who types asks again a moment later. So a load is given up
 * when nobody has waited for it for a while, whether it has begun or not.
 */
import { ServingError } from '../../process/errors.ts';
import { tenantOf } from '../store/repo-key.ts';

/** Loads under way at a time: while one waits for the store, another one computes. */
const UNDER_WAY = 2;
/** Time in which a load goes on for nobody, in ms: longer than users pause who still complete. */
const INTEREST_MS = 10_000;
/** Loads that wait for their turn. */
const MOST_WAITING = 256;

/** The memory for indexes. */
export interface IndexMemory {
  readonly limitBytes: number;
  /** Bytes of the indexes that are kept. */
  readonly keptBytes: number;
  /**
   * Drops an index to make room for a tenant.
   * @param wanted bytes that the loads of each tenant want.
   * @param kept key of an index that is not dropped.
   * @returns whether there was one that may be dropped for it.
   */
  evictFor(tenant: string, wanted: ReadonlyMap<string, number>, kept?: string): boolean;
}

/** The load as its own work sees it. */
export interface Loading {
  /** Aborted when the load has to end: nobody wants it any more, or it gives way. */
  readonly signal: AbortSignal;
  /**
   * Reserves `bytes` in place of what is reserved so far. `bytes` is at most the limit.
   * @throws ServingError saturated if others would have to be dropped and may not; the signal's reason.
   */
  reserve(bytes: number): Promise<void>;
}

export interface LoadWork<T> {
  readonly repo: string;
  /** Whether other indexes may be dropped to make room. */
  readonly evicts: boolean;
  /** Key of the index that the load adds to, which is therefore not dropped to make room. */
  readonly extends?: string;
  /** Loads, and keeps what was loaded before it ends: the reservation ends with it. */
  readonly run: (loading: Loading) => Promise<T>;
}

/** The reason with which the younger of two loads ends that do not fit beside each other. */
const GIVES_WAY = new Error('the load gives way to an older one');

interface Caller<T> {
  readonly resolve: (value: T) => void;
  readonly reject: (reason: unknown) => void;
}

interface Load<T> {
  readonly key: string;
  readonly work: LoadWork<T>;
  readonly tenant: string;
  readonly callers: Set<Caller<T>>;
  /** Gives the load up when nobody has waited for a while. */
  interest: NodeJS.Timeout | undefined;
  /** Whether it has given way: it is not begun beside another load then. */
  alone: boolean;
  /** Bytes. */
  reserved: number;
  controller: AbortController;
  /** Resolves when the work has ended. */
  ended: Promise<void>;
}

export class LoadQueue<T> {
  readonly #memory: IndexMemory;
  readonly #loads = new Map<string, Load<T>>();
  /** In order of arrival. */
  readonly #waiting: Load<T>[] = [];
  /** The oldest first. */
  readonly #underWay: Load<T>[] = [];
  /** Tenants in the order in which a load of theirs began last. */
  readonly #served = new Set<string>();

  constructor(memory: IndexMemory) {
    this.#memory = memory;
  }

  /**
   * Waits for the load named `key`, which `work` describes if it is not there yet.
   * @throws ServingError saturated if too many loads wait; what the work throws; the signal's reason.
   */
  join(key: string, work: LoadWork<T>, signal?: AbortSignal): Promise<T> {
    if (signal?.aborted) return Promise.reject(signal.reason);
    const load = this.#loads.get(key) ?? this.#enter(key, work);
    if (load === undefined) return Promise.reject(busy(`${MOST_WAITING} indexes wait for being loaded`));
    clearTimeout(load.interest);
    return new Promise<T>((resolve, reject) => {
      const giveUp = () => this.#leave(load, caller, signal);
      const caller: Caller<T> = {
        resolve: (value) => {
          signal?.removeEventListener('abort', giveUp);
          resolve(value);
        },
        reject: (reason) => {
          signal?.removeEventListener('abort', giveUp);
          reject(reason);
        },
      };
      load.callers.add(caller);
      signal?.addEventListener('abort', giveUp, { once: true });
      this.#beginNext();
    });
  }

  /** Undefined if there is no room. A load for which nobody waits just now makes room for one that is asked for. */
  #enter(key: string, work: LoadWork<T>): Load<T> | undefined {
    if (this.#waiting.length >= MOST_WAITING) {
      const idle = this.#waiting.find(({ callers }) => callers.size === 0);
      if (idle === undefined) return undefined;
      this.#drop(idle);
    }
    const load: Load<T> = {
      key,
      work,
      tenant: tenantOf(work.repo),
      callers: new Set(),
      interest: undefined,
      alone: false,
      reserved: 0,
      controller: new AbortController(),
      ended: Promise.resolve(),
    };
    this.#loads.set(key, load);
    this.#waiting.push(load);
    return load;
  }

  /** A caller gives up. The load goes on for a while, in case the caller asks again. */
  #leave(load: Load<T>, caller: Caller<T>, signal: AbortSignal | undefined): void {
    load.callers.delete(caller);
    caller.reject(signal?.reason);
    if (load.callers.size > 0 || this.#loads.get(load.key) !== load) return;
    load.interest = setTimeout(() => this.#drop(load), INTEREST_MS).unref();
  }

  #drop(load: Load<T>): void {
    clearTimeout(load.interest);
    remove(this.#waiting, load);
    this.#loads.delete(load.key);
    load.controller.abort(busy(`nobody waits for the index of ${load.work.repo} any more`));
    this.#beginNext();
  }

  #beginNext(): void {
    while (this.#underWay.length < UNDER_WAY) {
      const next = this.#next();
      if (next === undefined) break;
      remove(this.#waiting, next);
      this.#served.delete(next.tenant);
      this.#served.add(next.tenant);
      this.#underWay.push(next);
      next.ended = this.#run(next);
    }
    // Only tenants with loads matter.
    const tenants = new Set([...this.#loads.values()].map(({ tenant }) => tenant));
    for (const tenant of this.#served) if (!tenants.has(tenant)) this.#served.delete(tenant);
  }

  /** The first load of the tenant whose turn it is. */
  #next(): Load<T> | undefined {
    const served = [...this.#served];
    const turnOf = ({ tenant }: Load<T>) => served.indexOf(tenant);
    const next = this.#waiting.reduce<Load<T> | undefined>(
      (best, load) => (best === undefined || turnOf(load) < turnOf(best) ? load : best),
      undefined,
    );
    const inTheWay = this.#underWay.length > 0 && (next?.alone || this.#underWay.some(({ alone }) => alone));
    return inTheWay ? undefined : next;
  }

  async #run(load: Load<T>): Promise<void> {
    const { signal } = load.controller;
    try {
      const value = await load.work.run({ signal, reserve: (bytes) => this.#reserve(load, bytes) });
      this.#settle(load, ({ resolve }) => resolve(value));
    } catch (error) {
      if (signal.reason === GIVES_WAY) this.#again(load);
      else this.#settle(load, ({ reject }) => reject(error));
    } finally {
      load.reserved = 0;
      remove(this.#underWay, load);
      this.#beginNext();
    }
  }

  #settle(load: Load<T>, tell: (caller: Caller<T>) => void): void {
    clearTimeout(load.interest);
    if (this.#loads.get(load.key) === load) this.#loads.delete(load.key);
    for (const caller of load.callers) tell(caller);
  }

  /** Puts a load that gave way in front. */
  #again(load: Load<T>): void {
    load.alone = true;
    load.controller = new AbortController();
    if (this.#loads.get(load.key) === load) this.#waiting.unshift(load);
  }

  async #reserve(load: Load<T>, bytes: number): Promise<void> {
    for (;;) {
      load.controller.signal.throwIfAborted();
      if (this.#bytesBeside(load) + bytes <= this.#memory.limitBytes) break;
      if (load.work.evicts && this.#memory.evictFor(load.tenant, this.#wanted(load, bytes), load.work.extends))
        continue;
      const younger = this.#underWay.at(-1);
      if (younger === undefined || this.#underWay.length === 1) {
        throw busy(`there is no room for the index of ${load.work.repo} beside those in use`);
      }
      younger.controller.abort(GIVES_WAY);
      if (younger !== load) await younger.ended;
    }
    load.reserved = bytes;
  }

  #bytesBeside(load: Load<T>): number {
    const reserved = this.#underWay.reduce((sum, other) => sum + (other === load ? 0 : other.reserved), 0);
    return this.#memory.keptBytes + reserved;
  }

  /** Bytes that the loads of each tenant want, if this one wants so many. */
  #wanted(load: Load<T>, bytes: number): Map<string, number> {
    const wanted = new Map<string, number>();
    for (const other of this.#underWay) {
      const more = other === load ? bytes : other.reserved;
      wanted.set(other.tenant, (wanted.get(other.tenant) ?? 0) + more);
    }
    return wanted;
  }
}

function remove<L>(list: L[], one: L): void {
  const at = list.indexOf(one);
  if (at >= 0) list.splice(at, 1);
}

const busy = (why: string) => new ServingError('saturated', why, { limit: 'index-cache-bytes' });
