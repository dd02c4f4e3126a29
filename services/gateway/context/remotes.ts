/**
 * Which repository has a remote URL. Indexes remember the URL of the checkout that they were made of; editors know the
 * URL of the one that they edit, and not the name under which it is indexed.
 */
import { ServingError } from '../../lib/process/errors.ts';
import { remoteForm } from '../../lib/rag/store/remote-form.ts';
import { nameOf } from '../../lib/rag/store/repo-key.ts';
import type { Store } from '../../lib/rag/store/store.ts';
import type { Identity } from '../tenants/api-keys.ts';

/** Keys of the repositories of a tenant, sorted, by the normal form of their remote URLs. */
type Known = ReadonlyMap<string, readonly string[]>;

interface Look {
  /** When it began, on the monotonic clock, in ms. */
  readonly atMs: number;
  readonly done: Promise<Known>;
  /** undefined until it is done. */
  known?: Known;
}

/** A URL that is not known is looked for again after this time, in ms; one that is known, after the second. */
const LOOK_AGAIN_MS = 2_000;
const FRESH_MS = 30_000;
/** Heads that one look reads at a time. */
const HEADS_AT_ONCE = 16;

export class Remotes {
  readonly #store: Pick<Store, 'repositories' | 'head'> | undefined;
  readonly #waitMs: number;
  readonly #now: () => number;
  /** The last look of each tenant. There are as many as there are tenants with keys. */
  readonly #looks = new Map<string, Look>();

  /**
   * @param store undefined where there is none.
   * @param waitMs longest time for which a request waits for a look, in ms. The look goes on for later ones.
   * @param now monotonic clock, in ms.
   */
  constructor(
    store: Pick<Store, 'repositories' | 'head'> | undefined,
    waitMs: number,
    now: () => number = () => performance.now(),
  ) {
    this.#store = store;
    this.#waitMs = waitMs;
    this.#now = now;
  }

  /**
   * The key of the first repository, by name, that has the URL and that this client may use; undefined if there is
   * none, or if the store does not tell in time.
   * @throws the signal's reason.
   */
  async find(
    url: string,
    { tenant, mayUse }: Pick<Identity, 'tenant' | 'mayUse'>,
    signal: AbortSignal,
  ): Promise<string | undefined> {
    const form = remoteForm(url);
    if (form === undefined || this.#store === undefined) return undefined;
    const keyIn = (known: Known | undefined) => known?.get(form)?.find((key) => mayUse(nameOf(key)));
    const last = this.#looks.get(tenant);
    const found = keyIn(last?.known);
    const ageMs = last === undefined ? Infinity : this.#now() - last.atMs;
    if (found !== undefined) {
      if (ageMs > FRESH_MS) this.#look(tenant, this.#store);
      return found;
    }
    const look = last === undefined || ageMs > LOOK_AGAIN_MS ? this.#look(tenant, this.#store) : last;
    return keyIn(await within(look.done, this.#waitMs, signal));
  }

  #look(tenant: string, store: Pick<Store, 'repositories' | 'head'>): Look {
    const before = this.#looks.get(tenant)?.known;
    const done = looked(tenant, store).catch(() => before ?? new Map());
    const look: Look = { atMs: this.#now(), done, ...(before && { known: before }) };
    void done.then((known) => {
      look.known = known;
    });
    this.#looks.set(tenant, look);
    return look;
  }
}

async function looked(tenant: string, store: Pick<Store, 'repositories' | 'head'>): Promise<Known> {
  const known = new Map<string, string[]>();
  const keys = await store.repositories(tenant);
  for (let start = 0; start < keys.length; start += HEADS_AT_ONCE) {
    const some = keys.slice(start, start + HEADS_AT_ONCE);
    const heads = await Promise.all(some.map((key) => store.head(key, { isListed: true }).catch(() => undefined)));
    for (const [i, head] of heads.entries()) {
      if (head?.remote === undefined) continue;
      known.set(head.remote, [...(known.get(head.remote) ?? []), some[i]!]);
    }
  }
  return known;
}

/** What a promise gives within a time; undefined when it is over. @throws the signal's reason. */
async function within<T>(work: Promise<T>, ms: number, signal: AbortSignal): Promise<T | undefined> {
  signal.throwIfAborted();
  const over = new AbortController();
  const timer = setTimeout(() => over.abort(new ServingError('deadline_exceeded', `a look took ${ms} ms`)), ms);
  const live = AbortSignal.any([signal, over.signal]);
  try {
    return await Promise.race([
      work,
      new Promise<undefined>((resolve) => live.addEventListener('abort', () => resolve(undefined), { once: true })),
    ]);
  } finally {
    clearTimeout(timer);
    signal.throwIfAborted();
  }
}
