/**
 * Shares of a store between tenants. The bytes that are on their way from the store at a time are bounded, and so are
 * those of one tenant. Of the tenants whose reads wait, the one that was given the fewest bytes comes next (start-time
 * fair queueing): a tenant with large rows waits for its own reads, and another one's small read waits for no more than
 * what is on its way already.
 *
 * Heads are not counted: they are small, and have a connection of their own.
 */
import { LRUCache } from 'lru-cache';
import { FairShares, type Party } from '../../async/fair-shares.ts';
import { tenantOf } from './repo-key.ts';
import type { RowRead, Store } from './store.ts';

/** Bytes on their way for all tenants: 2 ms of a local Redis, 20 ms of a network of 1 Gbit/s. */
const IN_FLIGHT_BYTES = 2 * 1024 * 1024;
/** A tenant alone may have half of them on their way, so that another one finds room at once. */
const TENANT_BYTES = IN_FLIGHT_BYTES / 2;
/** Bytes of a row of a tenant from whom none has been read yet. */
const FIRST_ROW_BYTES = 2 * 1024;
/** Tenants whose usual size of a row is remembered. */
const MOST_TENANTS = 1_024;
/** How much the last read counts for the usual size of a row. */
const WEIGHT = 0.25;

interface Waiting {
  readonly cost: number;
  readonly begin: () => void;
}

/** `served` is in bytes. */
interface Tenant extends Party {
  /** Bytes on their way. */
  bytes: number;
  readonly waiting: Waiting[];
}

export function withShares(store: Store): Store {
  const shares = new Shares();
  return {
    address: store.address,
    head: (repo) => store.head(repo),
    snapshot: (repo) => store.snapshot(repo),
    entries: (repo, ids, read) => shares.run(repo, ids, read, (measured) => store.entries(repo, ids, measured)),
    contents: (repo, fingerprint, ids, read) =>
      shares.run(repo, ids, read, (measured) => store.contents(repo, fingerprint, ids, measured)),
    leftOut: (repo) => store.leftOut(repo),
    repositories: (tenant, which) => store.repositories(tenant, which),
    lock: (repo, ttlMs) => store.lock(repo, ttlMs),
    close: () => store.close(),
  };
}

class Shares {
  /** Tenants with reads on their way or waiting, or that were given more than others. */
  readonly #tenants = new FairShares<Tenant>((name, served) => ({ name, served, bytes: 0, waiting: [] }));
  /** Usual size of a row, by tenant. */
  readonly #rowBytes = new LRUCache<string, number>({ max: MOST_TENANTS });
  /** Bytes on their way. */
  #bytes = 0;

  /** @throws the signal's reason, if it is aborted before the read has begun; what `start` throws. */
  async run<T>(
    repo: string,
    { length: rows }: readonly string[],
    read: RowRead = {},
    start: (read: RowRead) => Promise<T>,
  ): Promise<T> {
    const name = tenantOf(repo);
    // How much a read brings is known when it is over. Until then it counts with what rows of this tenant usually have.
    const usual = this.#rowBytes.get(name) ?? FIRST_ROW_BYTES;
    const cost = Math.ceil(Math.min(rows * usual, read.bytes ?? Infinity));
    await this.#turn(name, cost, read.signal);
    try {
      return await start({
        ...read,
        onBytes: (bytes) => {
          if (rows > 0) this.#rowBytes.set(name, usual + WEIGHT * (bytes / rows - usual));
          read.onBytes?.(bytes);
        },
      });
    } finally {
      this.#end(name, cost);
    }
  }

  /** Waits until the tenant's next read may begin. */
  #turn(name: string, cost: number, signal: AbortSignal | undefined): Promise<void> {
    return new Promise((resolve, reject) => {
      if (signal?.aborted) return reject(signal.reason);
      const tenant = this.#tenants.of(name);
      if (tenant.waiting.length === 0) this.#tenants.wakes(tenant);
      const giveUp = () => {
        tenant.waiting.splice(tenant.waiting.indexOf(waiting), 1);
        reject(signal?.reason);
        this.#beginAll(); // others may have waited behind it
      };
      const waiting: Waiting = {
        cost,
        begin: () => {
          signal?.removeEventListener('abort', giveUp);
          resolve();
        },
      };
      signal?.addEventListener('abort', giveUp, { once: true });
      tenant.waiting.push(waiting);
      this.#beginAll();
    });
  }

  #end(name: string, cost: number): void {
    this.#bytes -= cost;
    const tenant = this.#tenants.find(name);
    if (tenant !== undefined) tenant.bytes -= cost; // a read of nothing does not keep its tenant in mind
    this.#beginAll();
  }

  /** Begins what may begin. */
  #beginAll(): void {
    for (let next = this.#next(); next !== undefined; next = this.#next()) {
      const { cost, begin } = next.waiting.shift()!;
      next.bytes += cost;
      this.#bytes += cost;
      this.#tenants.serve(next, cost);
      begin();
    }
    // When nothing is on its way nobody is behind: a tenant owes nothing later for what it was given so far.
    if (this.#bytes === 0) for (const { served } of this.#tenants.all) this.#tenants.passTo(served);
    this.#tenants.forget(({ bytes, waiting }) => bytes === 0 && waiting.length === 0);
  }

  /**
   * The tenant whose next read may begin. One that has its share on its way is passed over. Whoever is next waits for
   * room, so that small reads do not keep a large one waiting for ever.
   */
  #next(): Tenant | undefined {
    const least = this.#tenants.next(({ bytes, waiting: [first] }) => {
      return first !== undefined && fits(bytes, first.cost, TENANT_BYTES);
    });
    return least && fits(this.#bytes, least.waiting[0]!.cost, IN_FLIGHT_BYTES) ? least : undefined;
  }
}

/** Whether a read may begin beside others. A read that is larger than the limit goes alone. */
const fits = (others: number, cost: number, limit: number) => others === 0 || others + cost <= limit;
